//! Where experts are to be, and how that is told: placements wanted, orders to nodes, epochs for the data plane.
//!
//! A shell around placer and publisher.

use std::time::Instant;

use actix::{ActorFutureExt, Addr, AsyncContext, Context, Handler, Message};
use model::weights::ExpertId;
use transport::wire::cluster::{ActorId, Assignment, Hold, ToNode};

use super::actor::ControlActor;
use super::events::Kind;
use super::placer::Facts;
use super::publisher::{self, Standing};
use super::rebalance::{self, Reckoning};
use crate::data::actor::{DataActor, Published};

impl ControlActor {
    /// Wants the placement that suits the cluster as it is.
    pub(super) fn lay_out(&mut self) {
        let now = Instant::now();
        // Nodes go as the program ends, and nobody takes their place then.
        if self.is_leaving || self.parts.placer.waits(self.parts.membership.nodes_in(), now) {
            return;
        }
        let cluster = self.parts.membership.cluster();
        let previous = self.parts.publisher.previous();
        let facts = Facts {
            demand: &self.parts.demand,
            cluster: &cluster,
            statistics: &self.loads.statistics(now),
            previous: &previous,
            published: self.parts.publisher.published(),
            banned: self.parts.publisher.banned(),
            forced: &self.parts.membership.forced(),
        };
        let refused = self.parts.placer.refused().map(ToString::to_string);
        if let Some(placement) = self.parts.placer.handle_changed(facts, now) {
            self.parts.publisher.handle_wanted(placement);
        } else if self.parts.placer.is_placed() {
            self.parts.publisher.handle_refused();
        }
        if let Some(why) =
            self.parts.placer.refused().map(ToString::to_string).filter(|why| Some(why) != refused.as_ref())
        {
            tracing::warn!(%why, "no placement");
        }
    }

    /// Has what is published made better, if it is time and it pays.
    pub(super) fn rebalance(&mut self, now: Instant) {
        let Some(rebalancer) = self.parts.rebalancer.as_mut().filter(|own| own.poll_timeout() <= now) else {
            return;
        };
        let cluster = self.parts.membership.cluster();
        let (previous, standing) = (self.parts.publisher.previous(), self.parts.publisher.standing());
        let (policy, constraints) = self.parts.placer.rules(self.parts.publisher.banned());
        let facts = rebalance::Facts {
            policy,
            constraints: &constraints,
            demand: &self.parts.demand,
            cluster: &cluster,
            loads: &self.loads,
            previous: &previous,
            is_settled: standing == Standing::default()
                && cluster
                    .nodes()
                    .iter()
                    .all(|node| !node.is_leaving || self.parts.publisher.is_idle(node.id)),
        };
        let placement = rebalancer.handle_look(facts, now);
        let look = rebalancer.last();
        for reckoning in &look.taken {
            let Reckoning { changes, saves_s, costs_s, bytes } = reckoning;
            tracing::info!(changes = changes.join("; "), saves_s, costs_s, bytes, "rebalancing");
            let text = format!("{}: saves {saves_s:.1} s, costs {costs_s:.1} s", changes.join("; "));
            self.events.handle(Kind::Rebalanced, None, text, now);
        }
        match &look.left {
            Some(Reckoning { changes, saves_s, costs_s, bytes }) => {
                let changes = changes.join("; ");
                tracing::debug!(why = look.why, changes, saves_s, costs_s, bytes, "not rebalanced");
            }
            None => tracing::debug!(why = look.why, "not rebalanced"),
        }
        if let Some(placement) = placement {
            self.parts.publisher.handle_wanted(placement);
        }
    }

    pub(super) fn publish(&mut self, action: publisher::Action, context: &mut Context<Self>) {
        match action {
            publisher::Action::Tell { node, epoch, actors } => {
                let assign = |(actor, device): (ActorId, u16)| {
                    let id = ExpertId { layer: actor.layer, expert: actor.expert };
                    let digest = self.parts.manifest.experts.get(&id).map(|digest| *digest.0.as_bytes());
                    Assignment { actor, device, digest }
                };
                let actors = actors.into_iter().map(assign).collect();
                let link = self.parts.membership.member(node).and_then(|member| member.link);
                let loading = self.parts.publisher.loading_bytes(node);
                if let Some(rebalancer) = &mut self.parts.rebalancer {
                    rebalancer.handle_ordered(node, loading, Instant::now());
                }
                if let Some(link) = link {
                    self.tell(link, ToNode::Hold(Hold { epoch, actors }));
                }
            }
            publisher::Action::Publish(placement) => {
                let epoch = placement.epoch;
                self.has_served |= placement.layers.values().flatten().all(|replicas| !replicas.is_empty());
                tracing::info!(term = epoch.term, epoch = epoch.number, "placement published");
                let membership = &self.parts.membership;
                self.events.handle_published(&placement, |node| membership.name(node), Instant::now());
                tell_data(&self.parts.data, Published(placement), context);
            }
            publisher::Action::Failed { node, actor, why } => {
                tracing::error!(%node, ?actor, %why, "an expert was not loaded");
                let (name, ActorId { layer, expert, .. }) = (self.parts.membership.name(node), actor);
                let text = format!("{name} could not load expert {expert} of layer {layer}: {why}");
                self.events.handle(Kind::NotLoaded, Some(&name), text, Instant::now());
                self.lay_out();
            }
            publisher::Action::Superseded { term } => {
                tracing::error!(term, "another coordinator publishes; this one reads only");
                let text = format!("another coordinator publishes under term {term}; this one reads only");
                self.events.handle(Kind::Superseded, None, text, Instant::now());
            }
        }
    }
}

/// Tells the data actor, in order.
pub(super) fn tell_data<M>(data: &Addr<DataActor>, message: M, context: &mut Context<ControlActor>)
where
    M: Message + Send + 'static,
    M::Result: Send,
    DataActor: Handler<M>,
{
    context.spawn(actix::fut::wrap_future::<_, ControlActor>(data.send(message)).map(|_, _, _| ()));
}
