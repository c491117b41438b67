//! Whether a node may be drained, or used again, as the cluster is.
//!
//! Pure: it asks the cores, and changes none of them. Whoever gets a [`Change`] stores who is drained from now on, and then
//! tells membership.

use std::collections::BTreeSet;

use super::cluster::{Demand, Statistics};
use super::drain::{DrainRefused, Drained, Held, Manner, closed};
use super::membership::Membership;
use super::placer::{Facts, Placer};
use super::publisher::Publisher;
use crate::placement::NodeId;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Deciding<'a> {
    /// Who is in, and who is drained.
    pub membership: &'a Membership,
    /// What is published, and who publishes.
    pub publisher: &'a Publisher,
    /// Where experts would be.
    pub placer: &'a Placer,
    /// What is needed.
    pub demand: &'a Demand,
    /// What has been measured.
    pub statistics: &'a Statistics,
}

/// What would be another way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Who is drained from then on; nothing, where it is so already.
    pub news: Option<Drained>,
    /// What the node holds, if it is there.
    pub held: Option<Held>,
}

impl Deciding<'_> {
    /// A node is to hold nothing.
    pub fn drain(&self, name: &str, manner: Manner) -> Result<Change, DrainRefused> {
        self.check_publishes()?;
        let drained = self.membership.drained();
        let member = self.membership.named(name);
        // Who is drained may not have joined in this life of the coordinator.
        if member.is_none() && !drained.has(name) {
            return Err(self.unknown(name));
        }
        let here = member.filter(|member| member.is_in()).map(|member| member.node);
        let held = here.map(|node| self.held(node, name));
        let with = drained.with(name, manner);
        let news = Some(with).filter(|with| with != drained);
        if let (Some(node), Some(held), true) = (here, &held, news.is_some()) {
            self.check_room(held, node, manner)?;
        }
        Ok(Change { news, held })
    }

    /// A node may hold experts again.
    pub fn undrain(&self, name: &str) -> Result<Change, DrainRefused> {
        self.check_publishes()?;
        let drained = self.membership.drained();
        if !drained.has(name) && self.membership.named(name).is_none() {
            return Err(self.unknown(name));
        }
        Ok(Change { news: drained.has(name).then(|| drained.without(name)), held: None })
    }

    fn check_publishes(&self) -> Result<(), DrainRefused> {
        if self.publisher.is_superseded() { Err(DrainRefused::Superseded) } else { Ok(()) }
    }

    fn unknown(&self, name: &str) -> DrainRefused {
        let members = self.membership.members().map(|member| member.offer.name.as_str());
        let mut known: Vec<String> =
            members.chain(self.membership.drained().names()).map(str::to_owned).collect();
        known.sort();
        known.dedup();
        DrainRefused::Unknown { name: name.to_owned(), known }
    }

    /// What a node holds, where other drained nodes and those that want to go do not count.
    fn held(&self, node: NodeId, name: &str) -> Held {
        let cluster = self.membership.cluster();
        let is_closed = |other: NodeId| cluster.node(other).is_none_or(|offer| offer.is_leaving);
        Held::of(node, name, self.publisher.published(), is_closed)
    }

    /// Whether the others could take all that a node holds.
    fn check_room(&self, held: &Held, node: NodeId, manner: Manner) -> Result<(), DrainRefused> {
        let name = held.name.clone();
        let cluster = closed(&self.membership.cluster(), node);
        if cluster.open_seats().next().is_none() {
            return Err(DrainRefused::OnlyOne { name });
        }
        if manner == Manner::ByForce {
            return Ok(());
        }
        let facts = Facts {
            demand: self.demand,
            cluster: &cluster,
            statistics: self.statistics,
            previous: &self.publisher.previous(),
            published: self.publisher.published(),
            banned: self.publisher.banned(),
            forced: &BTreeSet::new(),
        };
        match self.placer.look(facts) {
            Ok(_) => Ok(()),
            Err(why) => Err(DrainRefused::NoRoom { name, held: Box::new(held.clone()), why: Box::new(why) }),
        }
    }
}
