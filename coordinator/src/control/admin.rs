//! What operators ask of the control plane: that a node is drained, or used again.
//!
//! A shell: [`may_drain`](super::may_drain) says whether it can be, the store remembers it.

use std::collections::BTreeSet;
use std::time::Instant;

use actix::{Context, Handler, Message};
use serde_json::{Value, json};

use super::actor::ControlActor;
use super::drain::{DrainRefused, Drained, Held, Manner, moves};
use super::events::Kind;
use super::may_drain::{Change, Deciding};
use super::membership::{Member, State};
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
        let Change { news, held } = self.decide(|deciding| deciding.drain(&name, manner))?;
        let is_news = news.is_some();
        if let Some(drained) = news {
            let how = if manner == Manner::ByForce { ", by force" } else { "" };
            let held = held.as_ref().map_or_else(|| "It is not there".to_owned(), Held::to_string);
            let text = format!("{name} is to be drained{how}. {held}");
            self.store(&name, drained, (Kind::Draining, text), context)?;
        }
        let (publisher, membership) = (&self.parts.publisher, &self.parts.membership);
        let to = publisher.wanted().map(|wanted| moves(publisher.published(), wanted, &self.parts.demand));
        let to = to.unwrap_or_default().into_iter();
        let to: Vec<Value> =
            to.map(|(node, count)| json!({ "node": membership.name(node), "experts": count })).collect();
        let held = held.unwrap_or_default();
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
        let Change { news, .. } = self.decide(|deciding| deciding.undrain(&name))?;
        let is_news = news.is_some();
        if let Some(drained) = news {
            let text = format!("{name} is not drained any more");
            self.store(&name, drained, (Kind::Undrained, text), context)?;
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
    fn decide<T>(&self, ask: impl FnOnce(Deciding<'_>) -> T) -> T {
        ask(Deciding {
            membership: &self.parts.membership,
            publisher: &self.parts.publisher,
            placer: &self.parts.placer,
            demand: &self.parts.demand,
            statistics: &self.loads.statistics(Instant::now()),
        })
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
