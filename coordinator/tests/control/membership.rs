//! Whole action lists of membership and terms, in virtual time.

use std::time::{Duration, Instant};

use phalanx_coordinator::control::drain::{Drained, Manner};
use phalanx_coordinator::control::membership::{Action, Joining, Membership, MembershipSettings, State};
use phalanx_coordinator::data::ids::LinkId;
use phalanx_coordinator::placement::NodeId;
use transport::carrier::Vouched;
use transport::security::{ClusterId, PeerName, Role};
use transport::wire::cluster::{ActorId, Assignment, DeviceOffer, Join};

const MS: Duration = Duration::from_millis(1);

fn offer(term: u64) -> Join {
    let device = DeviceOffer { kind: "cpu".into(), memory_bytes: 100 };
    Join {
        devices: vec![device; 2],
        labels: vec![("rack".into(), "a".into())],
        term,
        checkpoint: None,
        held: vec![],
    }
}

fn joining(link: u32, name: &str, incarnation: u64, term: u64) -> Joining {
    let vouched = Vouched::Nobody;
    Joining { link: LinkId(link), name: name.into(), vouched, incarnation, join: offer(term) }
}

fn actions(membership: &mut Membership) -> Vec<Action> {
    std::iter::from_fn(|| membership.poll_action()).collect()
}

fn admit(link: u32, node: u32, term: u64) -> Action {
    Action::Admit { link: LinkId(link), node: NodeId(node), term }
}

/// A membership past its window, with term 1.
fn settled(begun: Instant) -> Membership {
    let mut membership = Membership::new(MembershipSettings::default(), 0, begun);
    membership.handle_timeout(begun + 1000 * MS);
    membership.handle_stored(1);
    assert_eq!(actions(&mut membership), [Action::StoreTerm(1), Action::TakeTerm(1)]);
    membership
}

/// 1 + the highest of what is stored and what is announced within the window; and it is on disk before anybody is
/// told, or a crash in between would use it twice.
#[test]
fn a_term_is_taken_after_the_window_and_stored_before_it_is_used() {
    let begun = Instant::now();
    let mut membership = Membership::new(MembershipSettings::default(), 4, begun);
    membership.handle_join(joining(0, "a", 1, 7), begun + 300 * MS);
    membership.handle_join(joining(1, "b", 1, 2), begun + 600 * MS);
    membership.handle_timeout(begun + 999 * MS);
    assert_eq!(actions(&mut membership), []);
    assert_eq!(membership.poll_timeout(), Some(begun + 1000 * MS));
    membership.handle_timeout(begun + 1000 * MS);
    assert_eq!(actions(&mut membership), [Action::StoreTerm(8)]);
    assert_eq!((membership.term(), membership.poll_timeout()), (None, None));
    membership.handle_stored(8);
    assert_eq!(
        actions(&mut membership),
        [Action::TakeTerm(8), admit(0, 0, 8), admit(1, 1, 8), Action::Changed]
    );
    // What has seen our own term is not ahead of us.
    membership.handle_join(joining(2, "c", 1, 8), begun + 2000 * MS);
    assert_eq!(actions(&mut membership), [admit(2, 2, 8), Action::Changed]);
}

/// What is stored counts where nobody announces anything.
#[test]
fn the_stored_term_is_never_used_again() {
    let begun = Instant::now();
    let mut membership = Membership::new(MembershipSettings::default(), 4, begun);
    membership.handle_timeout(begun + 1000 * MS);
    assert_eq!(actions(&mut membership), [Action::StoreTerm(5)]);
}

/// The node that has seen more waits until we are ahead of it; the others are served meanwhile.
#[test]
fn a_higher_term_announced_later_raises_ours() {
    let begun = Instant::now();
    let mut membership = settled(begun);
    membership.handle_join(joining(0, "a", 1, 9), begun);
    membership.handle_join(joining(1, "b", 1, 0), begun);
    assert_eq!(actions(&mut membership), [Action::StoreTerm(10), admit(1, 1, 1), Action::Changed]);
    membership.handle_join(joining(2, "c", 1, 20), begun);
    membership.handle_stored(10);
    assert_eq!(membership.term(), Some(1), "it is behind before it is used");
    membership.handle_stored(21);
    assert_eq!(
        actions(&mut membership),
        [Action::StoreTerm(21), Action::TakeTerm(21), admit(0, 0, 21), admit(2, 2, 21), Action::Changed]
    );
}

/// A killed process is back before its old link is known to be dead.
#[test]
fn a_newer_incarnation_replaces_the_older_session_at_once() {
    let begun = Instant::now();
    let mut membership = settled(begun);
    membership.handle_join(joining(0, "a", 1, 0), begun);
    membership.handle_join(joining(1, "a", 2, 1), begun + MS);
    assert_eq!(
        actions(&mut membership),
        [
            admit(0, 0, 1),
            Action::Changed,
            Action::CloseOlder { link: LinkId(0), node: NodeId(0) },
            Action::Changed,
            admit(1, 0, 1),
            Action::Changed,
        ]
    );
    membership.handle_link_ended(LinkId(0), begun + 2 * MS);
    assert_eq!(actions(&mut membership), [], "the end of the older link is no news");
    assert_eq!(membership.node(LinkId(1)), Some(NodeId(0)));
}

/// Same name, same number, for as long as the coordinator lives.
#[test]
fn a_node_that_comes_back_has_its_number() {
    let begun = Instant::now();
    let mut membership = settled(begun);
    for (link, name) in [(0, "a"), (1, "b")] {
        membership.handle_join(joining(link, name, 1, 0), begun);
    }
    membership.handle_link_ended(LinkId(0), begun);
    assert_eq!(membership.cluster().nodes().len(), 1);
    membership.handle_join(joining(2, "a", 2, 1), begun);
    let all = actions(&mut membership);
    assert_eq!(all[all.len() - 3..], [Action::Changed, admit(2, 0, 1), Action::Changed]);
    assert_eq!(membership.cluster().nodes()[0].id, NodeId(0));
}

/// The running cluster goes on, and the newcomer reads who has his name.
#[test]
fn a_name_that_another_certificate_holds_is_refused() {
    let begun = Instant::now();
    let mut membership = settled(begun);
    let name = PeerName::new(ClusterId([7; 16]), Role::Node, "a").unwrap();
    let mut first = joining(0, "a", 1, 0);
    first.vouched = Vouched::Certificate(name);
    membership.handle_join(first.clone(), begun);
    membership.handle_join(joining(1, "a", 2, 0), begun);
    let all = actions(&mut membership);
    assert_eq!(all[..2], [admit(0, 0, 1), Action::Changed]);
    let [Action::Refuse { link: LinkId(1), why }] = &all[2..] else { panic!("{all:?}") };
    assert!(why.starts_with("the name a is held by a node that is known by the certificate of"), "{why}");
    assert_eq!(membership.node(LinkId(0)), Some(NodeId(0)));
    membership.handle_link_ended(LinkId(0), begun);
    membership.handle_join(joining(2, "a", 2, 0), begun);
    assert_eq!(actions(&mut membership), [Action::Changed, admit(2, 0, 1), Action::Changed]);
}

/// Two processes of one name would replace one another for ever.
#[test]
fn two_processes_of_one_name_are_stopped() {
    let begun = Instant::now();
    let mut membership = settled(begun);
    for turn in 0..6 {
        membership.handle_join(joining(turn, "a", u64::from(turn % 2), 0), begun);
    }
    let admitted =
        actions(&mut membership).iter().filter(|action| matches!(action, Action::Admit { .. })).count();
    assert_eq!(admitted, 6, "the first, and five takeovers");
    membership.handle_join(joining(6, "a", 0, 0), begun + 9000 * MS);
    assert!(matches!(actions(&mut membership)[..], [Action::Refuse { link: LinkId(6), .. }]));
    // The same process that dials again is nobody else.
    membership.handle_join(joining(7, "a", 1, 0), begun + 9000 * MS);
    assert!(matches!(actions(&mut membership)[..], [Action::CloseOlder { .. }, _, Action::Admit { .. }, _]));
    membership.handle_join(joining(8, "a", 0, 0), begun + 10_000 * MS);
    assert!(matches!(actions(&mut membership)[..], [Action::CloseOlder { .. }, _, Action::Admit { .. }, _]));
}

/// Late is a hint: nothing is placed anew. Leaving is not.
#[test]
fn silence_makes_late_and_a_word_makes_leaving() {
    let begun = Instant::now();
    let mut membership = settled(begun);
    membership.handle_join(joining(0, "a", 1, 0), begun);
    actions(&mut membership);
    let state = |membership: &Membership| membership.members().next().unwrap().state;
    membership.handle_late(LinkId(0));
    assert_eq!((state(&membership), actions(&mut membership)), (State::Late, vec![]));
    membership.handle_awake(LinkId(0));
    assert_eq!((state(&membership), actions(&mut membership)), (State::Joined, vec![]));
    membership.handle_leaving(LinkId(0));
    assert_eq!((state(&membership), actions(&mut membership)), (State::Leaving, vec![Action::Changed]));
    membership.handle_late(LinkId(0));
    assert_eq!(state(&membership), State::Leaving);
    assert!(membership.cluster().nodes()[0].is_leaving);
    membership.handle_link_ended(LinkId(0), begun);
    assert_eq!((state(&membership), actions(&mut membership)), (State::Gone, vec![Action::Changed]));
    membership.handle_link_ended(LinkId(0), begun);
    assert_eq!(actions(&mut membership), []);
}

/// A node that goes before it was let in is nobody's news.
#[test]
fn who_goes_before_the_window_ends_was_never_in() {
    let begun = Instant::now();
    let mut membership = Membership::new(MembershipSettings::default(), 0, begun);
    membership.handle_join(joining(0, "a", 1, 3), begun);
    membership.handle_link_ended(LinkId(0), begun);
    membership.handle_timeout(begun + 1000 * MS);
    membership.handle_stored(4);
    assert_eq!(actions(&mut membership), [Action::StoreTerm(4), Action::TakeTerm(4)]);
    assert_eq!(membership.cluster().nodes(), []);
}

/// A lost device offers nothing, until its node joins anew.
#[test]
fn a_lost_device_offers_nothing() {
    let begun = Instant::now();
    let mut membership = settled(begun);
    membership.handle_join(joining(0, "a", 1, 0), begun);
    actions(&mut membership);
    membership.handle_device_lost(NodeId(0), 1);
    membership.handle_device_lost(NodeId(0), 1);
    assert_eq!(actions(&mut membership), [Action::Changed]);
    assert_eq!(membership.cluster().nodes()[0].devices, [100, 0]);
    membership.handle_join(joining(1, "a", 2, 0), begun);
    assert_eq!(membership.cluster().nodes()[0].devices, [100, 100]);
}

/// It stays in and offers nothing, over links and lives; that it is drained and that it wants to go are two things.
#[test]
fn a_drained_node_stays_and_offers_nothing() {
    let begun = Instant::now();
    let mut membership = settled(begun);
    for (link, name) in [(0, "a"), (1, "b")] {
        membership.handle_join(joining(link, name, 1, 0), begun);
    }
    actions(&mut membership);
    let closed = |membership: &Membership| {
        let cluster = membership.cluster();
        cluster.nodes().iter().map(|node| node.is_leaving).collect::<Vec<_>>()
    };
    let state = |membership: &Membership| membership.named("a").unwrap().state;
    let drained = Drained::default().with("a", Manner::Kindly).with("z", Manner::ByForce);
    membership.handle_drained(drained.clone());
    assert_eq!(actions(&mut membership), [Action::Changed]);
    assert_eq!((closed(&membership), state(&membership)), (vec![true, false], State::Joined));
    assert!(membership.forced().is_empty(), "z is not there");
    membership.handle_drained(drained.clone());
    assert_eq!(actions(&mut membership), [], "twice is once");
    // Another life of the process.
    membership.handle_join(joining(2, "a", 2, 1), begun + MS);
    actions(&mut membership);
    assert_eq!((closed(&membership), state(&membership)), (vec![true, false], State::Joined));
    membership.handle_leaving(LinkId(2));
    assert_eq!((state(&membership), actions(&mut membership)), (State::Leaving, vec![Action::Changed]));
    membership.handle_drained(drained.without("a"));
    assert_eq!(
        (closed(&membership), actions(&mut membership)),
        (vec![true, false], vec![]),
        "it goes all the same"
    );
    membership.handle_join(joining(3, "a", 3, 1), begun + 2 * MS);
    actions(&mut membership);
    assert_eq!((closed(&membership), state(&membership)), (vec![false, false], State::Joined));
    membership.handle_join(joining(4, "z", 1, 0), begun);
    actions(&mut membership);
    let z = membership.named("z").unwrap().node;
    assert_eq!(membership.forced(), [z].into());
    // Nothing changes for anybody when one is drained that is not there.
    membership.handle_link_ended(LinkId(1), begun);
    actions(&mut membership);
    membership.handle_drained(drained.without("a").with("b", Manner::Kindly));
    assert_eq!(actions(&mut membership), []);
}

/// A coordinator that was started anew knows it before the node is back.
#[test]
fn a_node_is_drained_before_it_joins() {
    let begun = Instant::now();
    let drained = Drained::default().with("a", Manner::Kindly);
    let mut membership = Membership::new(MembershipSettings::default(), 0, begun).with_drained(drained);
    membership.handle_join(joining(0, "a", 1, 0), begun);
    membership.handle_timeout(begun + 1000 * MS);
    membership.handle_stored(1);
    assert_eq!(
        actions(&mut membership),
        [Action::StoreTerm(1), Action::TakeTerm(1), admit(0, 0, 1), Action::Changed],
        "it is let in like all others"
    );
    assert!(membership.cluster().nodes()[0].is_leaving);
    assert_eq!(membership.cluster().open_seats().count(), 0);
}

/// Each reason in words; nothing of the running cluster changes.
#[test]
fn bad_offers_are_refused_in_words() {
    let begun = Instant::now();
    let settings =
        MembershipSettings { checkpoint: Some([1; 32]), nodes_max: 2, ..MembershipSettings::default() };
    let mut membership = Membership::new(settings, 0, begun);
    let mut refused = |change: &dyn Fn(&mut Joining)| {
        let mut joining = joining(9, "x", 1, 0);
        change(&mut joining);
        membership.handle_join(joining, begun);
        match actions(&mut membership).as_slice() {
            [Action::Refuse { why, .. }] => why.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        refused(&|joining| joining.join.checkpoint = Some([2; 32])),
        "the node's checkpoint is another: its config.json has digest 02020202…, the coordinator's 01010101…; give it \
         the same checkpoint, or none, and it is sent what it needs"
    );
    assert_eq!(
        refused(&|joining| joining.join.devices.clear()),
        "a node offers 1 to 1024 devices, this one 0"
    );
    assert_eq!(
        refused(&|joining| joining.join.devices.iter_mut().for_each(|device| device.memory_bytes = 0)),
        "none of the node's devices has memory for experts; raise --memory"
    );
    assert_eq!(
        refused(&|joining| joining.join.term = u64::MAX),
        format!("the node announces term {}, which no coordinator can have had", u64::MAX)
    );
    let held = |device| {
        let actor = ActorId { layer: 3, expert: 9, replica: 1, shard: 0 };
        Assignment { actor, device, digest: None }
    };
    assert_eq!(
        refused(&|joining| joining.join.held = vec![held(1), held(0)]),
        "the node says twice that it holds layer 3 expert 9 replica 1 shard 0; start it anew"
    );
    assert_eq!(
        refused(&|joining| joining.join.held = vec![held(2)]),
        "the node says that it holds layer 3 expert 9 replica 1 shard 0 on device 2, and offers devices 0 to 1; start it anew"
    );
    for (link, name) in [(0, "a"), (1, "b")] {
        membership.handle_join(joining(link, name, 1, 0), begun);
    }
    membership.handle_join(joining(2, "c", 1, 0), begun);
    let full = "the cluster has 2 nodes and takes no more".to_string();
    assert_eq!(actions(&mut membership), [Action::Refuse { link: LinkId(2), why: full }]);
    // A name that is gone makes room for another.
    membership.handle_link_ended(LinkId(1), begun);
    membership.handle_join(joining(3, "c", 1, 0), begun);
    assert_eq!((actions(&mut membership), membership.node(LinkId(3))), (vec![], Some(NodeId(2))));
}
