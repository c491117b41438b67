//! Whole answers to drains: who may be drained, who may not and why, and that nothing is stored for nothing.

use std::time::{Duration, Instant};

use phalanx_coordinator::control::cluster::Statistics;
use phalanx_coordinator::control::drain::{DrainRefused, Drained, Held, Manner};
use phalanx_coordinator::control::may_drain::{Change, Deciding};
use phalanx_coordinator::control::membership::{Joining, Membership, MembershipSettings};
use phalanx_coordinator::control::placer::{Facts, Placer, PlacerSettings};
use phalanx_coordinator::control::policy::Policy;
use phalanx_coordinator::control::publisher::{Action, Publisher};
use phalanx_coordinator::data::ids::LinkId;
use transport::carrier::Vouched;
use transport::wire::cluster::{DeviceOffer, Join};

use super::make::demand;

/// Nodes `a`, `b` and so on with one device each, over which four experts of 10 bytes are laid out and published.
struct Cluster {
    membership: Membership,
    publisher: Publisher,
    placer: Placer,
}

impl Cluster {
    fn new(memory: &[u64]) -> Self {
        let now = Instant::now();
        let settings = MembershipSettings { join_window: Duration::ZERO, ..MembershipSettings::default() };
        let placer = PlacerSettings { policy: Policy::Pack, ..PlacerSettings::default() };
        let mut cluster = Self {
            membership: Membership::new(settings, 0, now),
            publisher: Publisher::new(demand(0..1, 4, 10)),
            placer: Placer::new(placer, now),
        };
        cluster.membership.handle_timeout(now);
        cluster.membership.handle_stored(1);
        cluster.publisher.handle_term(1);
        for (link, (name, memory)) in ["a", "b", "c"].into_iter().zip(memory).enumerate() {
            let device = DeviceOffer { kind: "cpu".into(), memory_bytes: *memory };
            let join =
                Join { devices: vec![device], labels: vec![], term: 0, checkpoint: None, held: vec![] };
            let link = LinkId(link as u32);
            let joining = Joining { link, name: name.into(), vouched: Vouched::Nobody, incarnation: 1, join };
            cluster.membership.handle_join(joining, now);
            let node = cluster.membership.named(name).unwrap().node;
            cluster.publisher.handle_joined(node, vec![*memory], &[]);
        }
        cluster.lay_out(now);
        cluster
    }

    /// All that follows from the cluster as it is: loads succeed, and nothing is out.
    fn lay_out(&mut self, now: Instant) {
        self.want(now);
        while let Some(action) = self.publisher.poll_action() {
            match action {
                Action::Tell { node, epoch, .. } => self.publisher.handle_holding(node, epoch, &[]),
                Action::Publish(placement) => self.publisher.handle_closed_through(placement.epoch),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The placement that suits the cluster as it is.
    fn want(&mut self, now: Instant) {
        let facts = Facts {
            demand: &demand(0..1, 4, 10),
            cluster: &self.membership.cluster(),
            statistics: &Statistics::default(),
            previous: &self.publisher.previous(),
            published: self.publisher.published(),
            banned: self.publisher.banned(),
            forced: &self.membership.forced(),
        };
        let wanted = self.placer.handle_changed(facts, now).unwrap();
        self.publisher.handle_wanted(wanted);
    }

    fn ask<T>(&self, ask: impl FnOnce(Deciding<'_>) -> T) -> T {
        ask(Deciding {
            membership: &self.membership,
            publisher: &self.publisher,
            placer: &self.placer,
            demand: &demand(0..1, 4, 10),
            statistics: &Statistics::default(),
        })
    }

    fn drain(&self, name: &str, manner: Manner) -> Result<Change, DrainRefused> {
        self.ask(|deciding| deciding.drain(name, manner))
    }

    fn undrain(&self, name: &str) -> Result<Change, DrainRefused> {
        self.ask(|deciding| deciding.undrain(name))
    }

    /// Experts that are published, each with the node of its replica.
    fn published(&self) -> Vec<(u32, String)> {
        let actors = self.publisher.published().actors();
        actors.map(|(actor, seat)| (actor.expert, self.membership.name(seat.node))).collect()
    }

    /// As a shell does that has stored it.
    fn go_by(&mut self, change: Change) {
        self.membership.handle_drained(change.news.unwrap());
        self.lay_out(Instant::now());
    }
}

fn held(name: &str, experts: &[u32], alone: &[u32]) -> Held {
    let of = |experts: &[u32]| experts.iter().map(|expert| (0, *expert)).collect();
    Held { name: name.into(), experts: of(experts), alone: of(alone) }
}

fn drained(names: &[(&str, Manner)]) -> Drained {
    names.iter().fold(Drained::default(), |drained, (name, manner)| drained.with(name, *manner))
}

/// A node whose experts have room elsewhere may be drained; said twice it is no news, and by force it is news again.
#[test]
fn who_leaves_room_is_drained_and_said_twice_is_no_news() {
    let mut cluster = Cluster::new(&[20, 20, 40]);
    let of_a = cluster.drain("a", Manner::Kindly).unwrap();
    let news = Some(drained(&[("a", Manner::Kindly)]));
    let own = of_a.held.clone().unwrap();
    assert_eq!(of_a, Change { news: news.clone(), held: Some(held("a", &numbers(&own), &numbers(&own))) });
    assert!(!own.experts.is_empty(), "it holds something");
    assert_eq!(cluster.membership.drained(), &Drained::default(), "it was asked and not done");
    cluster.go_by(of_a);
    let empty = Some(held("a", &[], &[]));
    assert_eq!(cluster.drain("a", Manner::Kindly), Ok(Change { news: None, held: empty.clone() }));
    let forced = Some(drained(&[("a", Manner::ByForce)]));
    assert_eq!(cluster.drain("a", Manner::ByForce), Ok(Change { news: forced, held: empty }));
    assert_eq!(cluster.undrain("a"), Ok(Change { news: Some(Drained::default()), held: None }));
    assert_eq!(cluster.undrain("b"), Ok(Change { news: None, held: None }));
}

fn numbers(held: &Held) -> Vec<u32> {
    held.experts.iter().map(|(_, expert)| *expert).collect()
}

/// Kindly nothing is given up; by force what has no room is, but not the last node that may hold experts.
#[test]
fn who_leaves_too_little_room_is_drained_by_force_alone_and_the_last_one_never() {
    let mut cluster = Cluster::new(&[20, 20]);
    let Err(DrainRefused::NoRoom { name, held: own, .. }) = cluster.drain("a", Manner::Kindly) else {
        panic!("a may be drained, and b has room for two of four")
    };
    assert_eq!((name.as_str(), own.experts.len(), own.alone.len()), ("a", 2, 2));
    let by_force = cluster.drain("a", Manner::ByForce).unwrap();
    assert_eq!(by_force.news, Some(drained(&[("a", Manner::ByForce)])));
    cluster.go_by(by_force);
    for manner in [Manner::Kindly, Manner::ByForce] {
        assert_eq!(cluster.drain("b", manner), Err(DrainRefused::OnlyOne { name: "b".into() }));
    }
}

/// Whoever is drained by force gives up what has no room elsewhere. Others that are drained or want to go beside him do not: they
/// are waited for, and their experts are served as long as they are there.
#[test]
fn force_takes_nothing_from_those_who_are_drained_kindly() {
    let mut cluster = Cluster::new(&[20, 20, 40]);
    let both = cluster.published();
    let of = |name: &str| both.iter().filter(|(_, node)| node == name).cloned().collect::<Vec<_>>();
    assert!(["a", "b", "c"].iter().all(|name| !of(name).is_empty()), "{both:?}");
    // Before anything has moved, the only one dies that could take anything.
    let forced = drained(&[("a", Manner::ByForce), ("b", Manner::Kindly)]);
    cluster.membership.handle_drained(forced);
    let c = cluster.membership.named("c").unwrap().node;
    cluster.membership.handle_link_ended(LinkId(2), Instant::now());
    cluster.publisher.handle_link_ended(c);
    cluster.lay_out(Instant::now());
    assert_eq!(cluster.published(), of("b"));
    let idle = ["a", "b"].map(|name| cluster.publisher.is_idle(cluster.membership.named(name).unwrap().node));
    assert_eq!(idle, [true, false]);
}

/// ... nor when what they hold is on its way to him already.
#[test]
fn who_is_to_take_over_and_is_drained_by_force_leaves_it_where_it_is() {
    let now = Instant::now();
    let mut cluster = Cluster::new(&[10, 10, 40]);
    let before = cluster.published();
    cluster.membership.handle_drained(drained(&[("b", Manner::Kindly)]));
    cluster.want(now);
    assert_eq!(cluster.published(), before, "c loads what b holds");
    cluster.membership.handle_drained(drained(&[("b", Manner::Kindly), ("c", Manner::ByForce)]));
    cluster.lay_out(now);
    let others = before.into_iter().filter(|(_, node)| node != "c").collect::<Vec<_>>();
    assert_eq!((others.len(), cluster.published()), (2, others));
}

/// A name that nobody has is a slip; one that is drained or was here is known, whether or not it is there.
#[test]
fn who_is_not_there_is_known_by_name() {
    let mut cluster = Cluster::new(&[40, 40]);
    let unknown = DrainRefused::Unknown { name: "z".into(), known: vec!["a".into(), "b".into()] };
    assert_eq!(cluster.drain("z", Manner::ByForce), Err(unknown.clone()));
    assert_eq!(cluster.undrain("z"), Err(unknown));
    cluster.membership.handle_link_ended(LinkId(0), Instant::now());
    let gone = Change { news: Some(drained(&[("a", Manner::Kindly)])), held: None };
    assert_eq!(cluster.drain("a", Manner::Kindly), Ok(gone));
    // In another life of the coordinator nobody has joined yet.
    cluster.membership.handle_drained(drained(&[("z", Manner::Kindly)]));
    assert_eq!(cluster.drain("z", Manner::Kindly), Ok(Change { news: None, held: None }));
    assert_eq!(cluster.undrain("z"), Ok(Change { news: Some(Drained::default()), held: None }));
}

/// What another coordinator says would be overruled, and nobody would be drained.
#[test]
fn who_does_not_publish_drains_nobody() {
    let mut cluster = Cluster::new(&[40, 40]);
    cluster.publisher.handle_stale(2);
    assert_eq!(cluster.drain("a", Manner::ByForce), Err(DrainRefused::Superseded));
    assert_eq!(cluster.undrain("a"), Err(DrainRefused::Superseded));
}
