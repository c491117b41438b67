//! What a node must offer to be let in, and what of that which it holds is of use.
//!
//! Pure. Version, cluster and numeric class have been compared by the link's handshake already.

use std::collections::BTreeSet;

use model::weights::{ExpertId, Manifest};
use transport::carrier::Vouched;
use transport::wire::cluster::{ActorId, Assignment, DEVICES_MAX, Join, LABELS_MAX};

use super::term::TERM_MAX;

/// How a name is known, for people.
pub(super) fn words(vouched: &Vouched) -> String {
    match vouched {
        Vouched::Certificate(name) => format!("the certificate of {name}"),
        Vouched::User(user) => format!("user {user} of this host"),
        Vouched::Nobody => "its word alone".into(),
    }
}

/// What an offer must be. `checkpoint`: digest of our `config.json`.
pub(super) fn check(checkpoint: Option<[u8; 32]>, join: &Join) -> Result<(), String> {
    let devices = join.devices.len();
    if devices == 0 || devices > DEVICES_MAX {
        return Err(format!("a node offers 1 to {DEVICES_MAX} devices, this one {devices}"));
    }
    if join.devices.iter().all(|device| device.memory_bytes == 0) {
        return Err("none of the node's devices has memory for experts; raise --memory".into());
    }
    if join.labels.len() > LABELS_MAX {
        return Err(format!("a node has at most {LABELS_MAX} labels, this one {}", join.labels.len()));
    }
    if join.term > TERM_MAX {
        return Err(format!("the node announces term {}, which no coordinator can have had", join.term));
    }
    let mut actors = BTreeSet::new();
    for Assignment { actor, device, .. } in &join.held {
        let ActorId { layer, expert, replica, shard } = actor;
        let what = format!("layer {layer} expert {expert} replica {replica} shard {shard}");
        if usize::from(*device) >= devices {
            return Err(format!(
                "the node says that it holds {what} on device {device}, and offers devices 0 to {}; start it anew",
                devices - 1
            ));
        }
        if !actors.insert(actor) {
            return Err(format!("the node says twice that it holds {what}; start it anew"));
        }
    }
    if let (Some(ours), Some(theirs)) = (checkpoint, join.checkpoint)
        && ours != theirs
    {
        let short =
            |digest: [u8; 32]| digest[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        return Err(format!(
            "the node's checkpoint is another: its config.json has digest {}…, the coordinator's {}…; give it the same \
             checkpoint, or none, and it is sent what it needs",
            short(theirs),
            short(ours)
        ));
    }
    Ok(())
}

/// What of all that a node holds is of the coordinator's tensors, as far as it knows their digests: a node asked to hold
/// the rest would load it anew.
pub(super) fn useful(held: &[Assignment], manifest: &Manifest) -> Vec<(ActorId, u16)> {
    let is_useful = |held: &&Assignment| {
        let id = ExpertId { layer: held.actor.layer, expert: held.actor.expert };
        let digest = manifest.experts.get(&id).map(|digest| *digest.0.as_bytes());
        digest.is_none() || digest == held.digest
    };
    held.iter().filter(is_useful).map(|held| (held.actor, held.device)).collect()
}

#[cfg(test)]
mod tests {
    use model::weights::Digest;

    use super::*;

    /// What a node would load anew, were it ordered, does not count as held: its tensors are others, or nobody has looked.
    #[test]
    fn what_is_of_other_tensors_is_of_no_use() {
        let held = |expert: u32, digest: Option<[u8; 32]>| {
            let actor = ActorId { layer: 1, expert, replica: 2, shard: 0 };
            Assignment { actor, device: 3, digest }
        };
        let own = Digest::of(b"own");
        let all = [held(0, Some(*own.0.as_bytes())), held(1, Some([7; 32])), held(2, None), held(3, None)];
        let mut manifest = Manifest::default();
        manifest.experts.extend((0..3).map(|expert| (ExpertId { layer: 1, expert }, own)));
        let found = useful(&all, &manifest);
        assert_eq!(found, [(all[0].actor, 3), (all[3].actor, 3)], "of expert 3 no digest is known");
        assert_eq!(useful(&all, &Manifest::default()).len(), 4);
    }
}
