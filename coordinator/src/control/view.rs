//! How the cluster is, for people: what `/cluster` and `/health` say.

use std::collections::BTreeMap;

use actix::{Handler, Message, MessageResult};
use serde_json::{Value, json};
use transport::wire::cluster::{ActorId, Load};

use super::actor::ControlActor;
use super::membership::State;
use crate::api;
use crate::placement::{NodeId, Seat};

/// Whether requests can be answered.
#[derive(Message)]
#[rtype(result = "api::Health")]
pub struct Health;

/// All of it, as `docs/api.md` has it; what the data plane knows is added by whoever asks both.
#[derive(Message)]
#[rtype(result = "Value")]
pub struct View;

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
            (0, true) => api::State::Serving,
            (_, true) => api::State::Waiting,
            (_, false) => api::State::Loading,
        };
        let mut missing = Vec::new();
        if state != api::State::Serving {
            let total = self.parts.demand.experts();
            let nodes = self.parts.membership.cluster().nodes().len();
            missing.push(format!("{} of {total} experts have no holder; nodes: {nodes}", standing.missing));
            missing.extend(self.parts.placer.refused().map(ToString::to_string));
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
                let session = member.link.and_then(|link| self.session_of(link));
                let devices = (0..).zip(&member.offer.devices).map(|(device, memory)| {
                    let seat = Seat { node: member.node, device };
                    let (actors, used) = on_device.get(&seat).copied().unwrap_or_default();
                    spares += u64::from(actors == 0 && *memory > 0 && member.link.is_some());
                    let kind = session.and_then(|(_, kinds)| kinds.get(usize::from(device)));
                    json!({ "kind": kind, "memory_bytes": memory, "used_bytes": used, "actors": actors })
                });
                let devices: Vec<Value> = devices.collect();
                json!({
                    "name": member.offer.name,
                    "node": member.node.0,
                    "address": session.map(|(peer, _)| peer.address()),
                    "state": state_name(member.state),
                    "devices": devices,
                    "labels": member.offer.labels,
                    "round_trip_us": null,
                })
            })
            .collect();
        let total = self.parts.demand.experts();
        let missing = self.parts.publisher.standing().missing as u64;
        let held: u64 = total - missing;
        let replicas: usize = published.layers.values().flatten().map(Vec::len).sum();
        let loads: Vec<Value> = published.actors().map(|(actor, seat)| self.load(actor, seat)).collect();
        json!({
            "epoch": { "term": published.epoch.term, "number": published.epoch.number },
            "state": health.state.name(),
            "missing": health.missing,
            "nodes": nodes,
            "experts": { "total": total, "held": held, "replicas": replicas, "spares": spares },
            "loads": loads,
        })
    }

    fn load(&self, actor: ActorId, seat: Seat) -> Value {
        let of = |node: NodeId| self.loads.get(&node)?.iter().find(|load| load.actor == actor);
        let Load { rows, queued, busy_us, service_us, .. } = of(seat.node).copied().unwrap_or(Load {
            actor,
            rows: 0,
            batches: 0,
            busy_us: 0,
            service_us: 0,
            queued: 0,
        });
        json!({
            "layer": actor.layer, "expert": actor.expert, "replica": actor.replica, "shard": actor.shard,
            "node": seat.node.0, "device": seat.device,
            "rows": rows, "queued": queued, "busy_us": busy_us,
            "service_us": service_us.checked_div(rows).unwrap_or(0),
        })
    }
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Joining => "joining",
        State::Joined => "joined",
        State::Late => "late",
        State::Leaving => "leaving",
        State::Gone => "gone",
    }
}
