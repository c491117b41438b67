//! How the cluster is, for people: what `/cluster` and `/health` say.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use actix::{Handler, Message, MessageResult};
use serde_json::{Value, json};
use transport::wire::cluster::{ActorId, Load};

use super::actor::ControlActor;
use super::events::Event;
use super::hear::Session;
use super::loads::Recent;
use super::membership::Member;
use super::rebalance::{Rebalancer, Reckoning};
use crate::api;
use crate::placement::Seat;

/// Whether requests can be answered.
#[derive(Message)]
#[rtype(result = "api::Health")]
pub struct Health;

/// All of it, as `docs/api.md` has it; what the data plane knows is added by whoever asks both.
#[derive(Message)]
#[rtype(result = "Value")]
pub struct View;

/// What changes from second to second, for whoever watches: small, and numbers rather than words.
#[derive(Message)]
#[rtype(result = "Value")]
pub struct Pulse;

/// Experts that have had a holder and have none: who held each last, and how long ago that was.
#[derive(Message)]
#[rtype(result = "BTreeMap<(u32, u32), (String, Duration)>")]
pub struct Orphans;

impl Handler<Pulse> for ControlActor {
    type Result = MessageResult<Pulse>;

    fn handle(&mut self, _: Pulse, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.pulse())
    }
}

impl Handler<Orphans> for ControlActor {
    type Result = MessageResult<Orphans>;

    fn handle(&mut self, _: Orphans, _: &mut Self::Context) -> Self::Result {
        let now = Instant::now();
        let ago = |since: Instant| now.saturating_duration_since(since);
        let orphans = self.events.orphans().iter();
        MessageResult(orphans.map(|(id, of)| (*id, (of.node.clone(), ago(of.since)))).collect())
    }
}

impl Handler<Health> for ControlActor {
    type Result = MessageResult<Health>;

    fn handle(&mut self, _: Health, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.health())
    }
}

impl Handler<View> for ControlActor {
    type Result = MessageResult<View>;

    fn handle(&mut self, _: View, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.view())
    }
}

impl ControlActor {
    fn health(&self) -> api::Health {
        let standing = self.parts.publisher.standing();
        let state = match (standing.missing, self.has_served) {
            _ if self.is_leaving => api::State::Stopping,
            (0, true) => api::State::Serving,
            (_, true) => api::State::Waiting,
            (_, false) => api::State::Loading,
        };
        let mut missing = Vec::new();
        if !matches!(state, api::State::Serving | api::State::Stopping) {
            let total = self.parts.demand.experts();
            let nodes = self.parts.membership.cluster().nodes().len();
            missing.push(format!("{} of {total} experts have no holder; nodes: {nodes}", standing.missing));
            missing.extend(self.parts.placer.refused().map(ToString::to_string));
            let drained: Vec<&str> = self.parts.membership.drained().names().collect();
            if !drained.is_empty() {
                missing.push(format!("drained, and therefore not used: {}", drained.join(", ")));
            }
            if standing.loading > 0 {
                missing.push(format!("{} experts are being loaded", standing.loading));
            }
        }
        api::Health { state, missing }
    }

    fn view(&self) -> Value {
        let health = self.health();
        let published = self.parts.publisher.published();
        let mut on_device: BTreeMap<Seat, (u64, u64)> = BTreeMap::new();
        for (actor, seat) in published.actors() {
            let (actors, bytes) = on_device.entry(seat).or_default();
            *actors += 1;
            *bytes += self.parts.demand.shard_bytes(actor.layer);
        }
        let mut spares = 0;
        let nodes: Vec<Value> = self
            .parts
            .membership
            .members()
            .map(|member| {
                let session = self.session_of_member(member);
                let devices = (0..).zip(&member.offer.devices).map(|(device, memory)| {
                    let seat = Seat { node: member.node, device };
                    let (actors, used) = on_device.get(&seat).copied().unwrap_or_default();
                    let is_open = member.link.is_some() && !member.offer.is_leaving;
                    spares += u64::from(actors == 0 && *memory > 0 && is_open);
                    let kind = session.and_then(|session| session.kinds.get(usize::from(device)));
                    json!({ "kind": kind, "memory_bytes": memory, "used_bytes": used, "actors": actors })
                });
                let devices: Vec<Value> = devices.collect();
                json!({
                    "name": member.offer.name,
                    "node": member.node.0,
                    "address": session.map(|session| session.peer.address()),
                    "state": self.state_name(member),
                    "drained": self.parts.membership.drained().has(&member.offer.name),
                    "devices": devices,
                    "labels": member.offer.labels,
                    "round_trip_us": session.and_then(|session| micros(session.trips.middle()?)),
                    "round_trips": session.map(|Session { trips, .. }| {
                        json!({ "count": trips.count(), "sum_us": micros(trips.sum()) })
                    }),
                })
            })
            .collect();
        let layers = self.parts.demand.layers.iter().map(|(layer, of)| {
            json!({ "layer": layer, "experts": of.experts, "top_k": of.top_k, "dense": of.is_dense })
        });
        let layers: Vec<Value> = layers.collect();
        let total = self.parts.demand.experts();
        let missing = self.parts.publisher.standing().missing as u64;
        let held: u64 = total - missing;
        let replicas: usize = published.layers.values().flatten().map(Vec::len).sum();
        let now = Instant::now();
        let loads: Vec<Value> = published.actors().map(|(actor, seat)| self.load(actor, seat, now)).collect();
        let standing = self.parts.publisher.standing();
        json!({
            "epoch": { "term": published.epoch.term, "number": published.epoch.number },
            "state": health.state.name(),
            "missing": health.missing,
            "layers": layers,
            "nodes": nodes,
            "experts": { "total": total, "held": held, "replicas": replicas, "spares": spares },
            "moves": {
                "loading": standing.loading, "waiting": standing.waiting, "lingering": standing.lingering,
                "blocked": standing.blocked,
            },
            "refused": self.parts.placer.refused().map(ToString::to_string),
            "rebalance": self.parts.rebalancer.as_ref().map(rebalance),
            "bias": self.told_bias(),
            "events": self.told_events(now),
            "loads": loads,
        })
    }

    /// Newest first.
    fn told_events(&self, now: Instant) -> Vec<Value> {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let told = |event: &Event| {
            let at = wall.saturating_sub(now.saturating_duration_since(event.at));
            json!({
                "number": event.number, "at": at.as_millis() as f64 / 1e3, "kind": event.kind.name(),
                "node": event.node, "text": event.text,
            })
        };
        self.events.kept().rev().map(told).collect()
    }

    fn pulse(&self) -> Value {
        let health = self.health();
        let published = self.parts.publisher.published();
        let now = Instant::now();
        let recent: Vec<Option<Recent>> =
            published.actors().map(|(actor, seat)| self.loads.recent(seat.node, actor, now)).collect();
        // A row more or less in a second is nothing to people, and digits are bytes.
        let rows =
            |recent: &Option<Recent>| recent.map_or(0.0, |recent| (recent.rows_per_s * 10.0).round() / 10.0);
        let busy =
            |recent: &Option<Recent>| recent.map_or(0.0, |recent| (recent.busy * 1000.0).round() / 1000.0);
        let trip = |member: &Member| {
            let round_trip_us = micros(self.session_of_member(member)?.trips.middle()?)?;
            Some(json!({ "node": member.node.0, "round_trip_us": round_trip_us }))
        };
        json!({
            "epoch": { "term": published.epoch.term, "number": published.epoch.number },
            "state": health.state.name(),
            "missing": health.missing,
            "round_trips": self.parts.membership.members().filter_map(trip).collect::<Vec<_>>(),
            "event": self.events.count(),
            "rows_per_s": recent.iter().map(rows).collect::<Vec<_>>(),
            "busy": recent.iter().map(busy).collect::<Vec<_>>(),
        })
    }

    fn session_of_member(&self, member: &Member) -> Option<&Session> {
        self.session_of(member.link?)
    }

    fn load(&self, actor: ActorId, seat: Seat, now: Instant) -> Value {
        let load = self.loads.load(seat.node, actor);
        let recent = self.loads.recent(seat.node, actor, now);
        let count = |of: fn(&Load) -> u64| load.map_or(0, of);
        let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
        let measured = |of: fn(&Recent) -> f64| recent.as_ref().map_or(0.0, |recent| rounded(of(recent)));
        json!({
            "layer": actor.layer, "expert": actor.expert, "replica": actor.replica, "shard": actor.shard,
            "node": seat.node.0, "device": seat.device,
            "rows": count(|load| load.rows), "batches": count(|load| load.batches),
            "queued": count(|load| load.queued.into()), "busy_us": count(|load| load.busy_us),
            "service_us": measured(|recent| recent.service_us),
            "rows_per_s": measured(|recent| recent.rows_per_s), "busy": measured(|recent| recent.busy),
        })
    }
}

/// What the last look for a better placement found.
fn rebalance(rebalancer: &Rebalancer) -> Value {
    let look = rebalancer.last();
    let reckoned = |reckoning: &Reckoning| {
        let Reckoning { changes, saves_s, costs_s, bytes } = reckoning;
        json!({ "changes": changes, "saves_s": saves_s, "costs_s": costs_s, "bytes": bytes })
    };
    json!({
        "changes": rebalancer.changes(),
        "taken": look.taken.iter().map(reckoned).collect::<Vec<_>>(),
        "left": look.left.as_ref().map(reckoned),
        "why": look.why,
    })
}

fn micros(time: Duration) -> Option<u64> {
    u64::try_from(time.as_micros()).ok()
}
