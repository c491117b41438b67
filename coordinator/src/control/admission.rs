//! What a node must offer to be let in.
//!
//! Pure. Version, cluster and numeric class have been compared by the link's handshake already.

use transport::carrier::Vouched;
use transport::wire::cluster::{DEVICES_MAX, Join, LABELS_MAX};

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
