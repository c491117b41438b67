//! What operators ask of the control plane: that a node is drained, or used again.
//!
//! A shell: membership, placer and publisher say whether it can be, the store remembers it.

use std::collections::BTreeSet;
use std::time::Instant;

use actix::{Context, Handler, Message};
use serde_json::{Value, json};

use super::actor::ControlActor;
use super::drain::{DrainRefused, Drained, Held, Manner, closed, moves};
use super::events::Kind;
use super::membership::{Member, State};
use super::placer::Facts;
use crate::placement::NodeId;

/// A node is to hold nothing from now on, and to stay.
#[derive(Debug, Message)]
#[rtype(result = "Result<Value, DrainRefused>")]
pub struct Drain {
    /// Its name.
    pub node: String,
    /// How.
    pub manner: Manner,
}

/// A drained node may hold experts again.
#[derive(Debug, Message)]
#[rtype(result = "Result<Value, DrainRefused>")]
pub struct Undrain {
    /// Its name.
    pub node: String,
}

impl Handler<Drain> for ControlActor {
    type Result = Result<Value, DrainRefused>;

    fn handle(&mut self, Drain { node: name, manner }: Drain, context: &mut Self::Context) -> Self::Result {
        self.check_publishes()?;
        let member = self.parts.membership.named(&name);
        // Who is drained may not have joined in this life of the coordinator.
        if member.is_none() && !self.parts.membership.drained().has(&name) {
            return Err(self.unknown(&name));
        }
        let here = member.filter(|member| member.is_in()).map(|member| member.node);
        let drained = self.parts.membership.drained().with(&name, manner);
        let is_news = drained != *self.parts.membership.drained();
        let held = here.map(|node| self.held(node, &name)).unwrap_or_default();
        if let Some(node) = here.filter(|_| is_news) {
            self.check_room(&held, node, manner)?;
        }
        if is_news {
            let how = if manner == Manner::ByForce { ", by force" } else { "" };
            let held = if here.is_some() { held.to_string() } else { "It is not there".to_owned() };
            let text = format!("{name} is to be drained{how}. {held}");
            self.store(&name, drained, (Kind::Draining, text), context)?;
        }
        let (publisher, membership) = (&self.parts.publisher, &self.parts.membership);
        let to = publisher.wanted().map(|wanted| moves(publisher.published(), wanted, &self.parts.demand));
        let to = to.unwrap_or_default().into_iter();
        let to: Vec<Value> =
            to.map(|(node, count)| json!({ "node": membership.name(node), "experts": count })).collect();
        Ok(json!({
            "node": name,
            "changed": is_news,
            "state": self.state_of(&name),
            "experts": held.experts.len(),
            "alone": held.alone.len(),
            "moves": to,
            "refused": self.parts.placer.refused().map(ToString::to_string),
            "kept": self.parts.store.is_kept(),
        }))
    }
}

impl Handler<Undrain> for ControlActor {
    type Result = Result<Value, DrainRefused>;

    fn handle(&mut self, Undrain { node: name }: Undrain, context: &mut Self::Context) -> Self::Result {
        self.check_publishes()?;
        let is_news = self.parts.membership.drained().has(&name);
        if !is_news && self.parts.membership.named(&name).is_none() {
            return Err(self.unknown(&name));
        }
        if is_news {
            let text = format!("{name} is not drained any more");
            let without = self.parts.membership.drained().without(&name);
            self.store(&name, without, (Kind::Undrained, text), context)?;
        }
        Ok(json!({
            "node": name,
            "changed": is_news,
            "state": self.state_of(&name),
            "kept": self.parts.store.is_kept(),
        }))
    }
}

impl ControlActor {
    fn check_publishes(&self) -> Result<(), DrainRefused> {
        if self.parts.publisher.is_superseded() { Err(DrainRefused::Superseded) } else { Ok(()) }
    }

    fn unknown(&self, name: &str) -> DrainRefused {
        let members = self.parts.membership.members().map(|member| member.offer.name.as_str());
        let mut known: Vec<String> =
            members.chain(self.parts.membership.drained().names()).map(str::to_owned).collect();
        known.sort();
        known.dedup();
        DrainRefused::Unknown { name: name.to_owned(), known }
    }

    /// What a node holds, where other drained nodes and those that want to go do not count.
    fn held(&self, node: NodeId, name: &str) -> Held {
        let cluster = self.parts.membership.cluster();
        let is_closed = |other: NodeId| cluster.node(other).is_none_or(|offer| offer.is_leaving);
        Held::of(node, name, self.parts.publisher.published(), is_closed)
    }

    /// Whether the others could take all that a node holds.
    fn check_room(&self, held: &Held, node: NodeId, manner: Manner) -> Result<(), DrainRefused> {
        let name = held.name.clone();
        let cluster = closed(&self.parts.membership.cluster(), node);
        if cluster.open_seats().next().is_none() {
            return Err(DrainRefused::OnlyOne { name });
        }
        if manner == Manner::ByForce {
            return Ok(());
        }
        let facts = Facts {
            demand: &self.parts.demand,
            cluster: &cluster,
            statistics: &self.loads.statistics(Instant::now()),
            previous: &self.parts.publisher.previous(),
            banned: self.parts.publisher.banned(),
            may_leave_out: false,
        };
        match self.parts.placer.look(facts) {
            Ok(_) => Ok(()),
            Err(why) => Err(DrainRefused::NoRoom { name, held: Box::new(held.clone()), why: Box::new(why) }),
        }
    }

    /// Stores who is drained, then says so and goes by it.
    fn store(
        &mut self,
        name: &str,
        drained: Drained,
        (kind, text): (Kind, String),
        context: &mut Context<Self>,
    ) -> Result<(), DrainRefused> {
        self.parts.store.store_drained(&drained).map_err(|why| {
            tracing::error!(%why, name, "it cannot be stored that a node is drained");
            DrainRefused::NotStored { name: name.to_owned(), why: why.to_string() }
        })?;
        self.events.handle(kind, Some(name), text, Instant::now());
        self.parts.membership.handle_drained(drained);
        self.carry_out(context);
        Ok(())
    }

    /// How a node is, in a word.
    pub(super) fn state_of(&self, name: &str) -> &'static str {
        self.parts.membership.named(name).map_or("gone", |member| self.state_name(member))
    }

    pub(super) fn state_name(&self, member: &Member) -> &'static str {
        match member.state {
            State::Joining => "joining",
            State::Joined if !self.parts.membership.drained().has(&member.offer.name) => "joined",
            State::Joined if self.parts.publisher.is_idle(member.node) => "drained",
            State::Joined => "draining",
            State::Late => "late",
            State::Leaving => "leaving",
            State::Gone => "gone",
        }
    }

    /// Tells once for each who has become empty that was to be.
    pub(super) fn tell_drained(&mut self) {
        let empty = self.parts.membership.members().filter(|member| self.state_name(member) == "drained");
        let empty: BTreeSet<NodeId> = empty.map(|member| member.node).collect();
        for node in empty.difference(&self.drained_told).copied().collect::<Vec<_>>() {
            let name = self.parts.membership.name(node);
            let text = format!("{name} is drained: it holds nothing");
            self.events.handle(Kind::Drained, Some(&name), text, Instant::now());
        }
        self.drained_told = empty;
    }
}
