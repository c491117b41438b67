//! Operators: they have nodes drained and used again, and hold every coordinator to what it told them.
//!
//! A shell around the product's `Deciding`, as `control/admin.rs` is, and the checkers of what it says and keeps.

use std::collections::BTreeMap;

use coordinator::control::drain::{DrainRefused, Drained, Manner};
use coordinator::control::may_drain::{Change, Deciding};
use coordinator::placement::NodeId;

use crate::bugs::Bug;
use crate::control::Control;
use crate::watch::violation;
use crate::world::Sky;

/// What an operator wants of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Drain(Manner),
    Undrain,
}

/// What a data directory holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    pub(crate) term: u64,
    /// The file of the drained nodes.
    pub(crate) drained: String,
    /// It takes nothing more.
    pub(crate) is_full: bool,
}

/// What operators were told, by coordinator: the nodes that are drained, and whether by force.
#[derive(Debug, Default)]
pub(crate) struct Operators {
    told: BTreeMap<usize, BTreeMap<String, bool>>,
    pub(crate) drained: u64,
    pub(crate) forced: u64,
    pub(crate) drained_again: u64,
    pub(crate) undrained: u64,
    /// By why: nobody has the name, no other is open, no room, another publishes, not stored.
    pub(crate) refused: [u64; 5],
    /// Nodes that were drained while they loaded something.
    pub(crate) loading: u64,
}

impl Operators {
    /// It is as was wished, says a coordinator.
    fn handle_granted(&mut self, coordinator: usize, name: &str, wish: Wish, is_news: bool) {
        let told = self.told.entry(coordinator).or_default();
        match wish {
            Wish::Drain(manner) => {
                let is_forced = manner == Manner::ByForce;
                *told.entry(name.to_owned()).or_default() |= is_forced;
                self.drained += u64::from(is_news);
                self.forced += u64::from(is_news && is_forced);
                self.drained_again += u64::from(!is_news);
            }
            Wish::Undrain => {
                told.remove(name);
                self.undrained += u64::from(is_news);
            }
        }
    }

    fn handle_refused(&mut self, why: &DrainRefused) {
        self.refused[match why {
            DrainRefused::Unknown { .. } => 0,
            DrainRefused::OnlyOne { .. } => 1,
            DrainRefused::NoRoom { .. } => 2,
            DrainRefused::Superseded => 3,
            DrainRefused::NotStored { .. } => 4,
        }] += 1;
    }

    /// A coordinator knows who is drained as it was told, in every life.
    pub(crate) fn check(&self, coordinator: usize, drained: &Drained) {
        let found: BTreeMap<String, bool> =
            drained.names().map(|name| (name.to_owned(), drained.is_forced(name))).collect();
        let told = self.told.get(&coordinator).cloned().unwrap_or_default();
        if found != told {
            let what =
                format!("coordinator {coordinator} has {found:?} drained, by force or not, not {told:?}");
            violation("drained", what);
        }
    }
}

impl Control {
    /// An operator wants something of a node.
    pub(crate) fn ask(&mut self, name: &str, wish: Wish, sky: &mut Sky) {
        let before = self.as_it_stands(sky);
        let answer = self.decide(name, wish, sky).and_then(|change| self.store(name, change, sky));
        match &answer {
            Ok(Change { news, .. }) => {
                sky.operators.handle_granted(self.at, name, wish, news.is_some());
                self.check_room(name, wish, news.as_ref(), sky);
            }
            Err(why) => {
                sky.operators.handle_refused(why);
                if let (true, Wish::Drain(manner)) = (sky.has_bug(Bug::StoresRefused), wish) {
                    sky.disks[self.at].drained = self.membership.drained().with(name, manner).text();
                }
            }
        }
        match answer {
            Ok(Change { news: Some(drained), .. }) => {
                let node = self.membership.named(name).map(|member| member.node);
                let is_loading = node.is_some_and(|node| self.publisher.loading_bytes(node) > 0);
                sky.operators.loading += u64::from(is_loading && wish != Wish::Undrain);
                self.membership.handle_drained(drained);
                self.carry_out(sky);
            }
            _ => {
                let after = self.as_it_stands(sky);
                if before != after {
                    violation("drained", format!("{wish:?} of {name} changes {before:?} to {after:?}"));
                }
            }
        }
        sky.operators.check(self.at, self.membership.drained());
    }

    fn decide(&self, name: &str, wish: Wish, sky: &Sky) -> Result<Change, DrainRefused> {
        let deciding = Deciding {
            membership: &self.membership,
            publisher: &self.publisher,
            placer: &self.placer,
            demand: &sky.case.demand,
            statistics: &self.loads.statistics(sky.clock.now()),
        };
        match wish {
            Wish::Drain(Manner::Kindly) if sky.has_bug(Bug::GrantsAll) => {
                let change = deciding.drain(name, Manner::ByForce)?;
                let kindly = |_| self.membership.drained().with(name, Manner::Kindly);
                Ok(Change { news: change.news.map(kindly), ..change })
            }
            Wish::Drain(manner) => deciding.drain(name, manner),
            Wish::Undrain => deciding.undrain(name),
        }
    }

    /// Who is drained is on the disk before anybody goes by it.
    fn store(&self, name: &str, change: Change, sky: &mut Sky) -> Result<Change, DrainRefused> {
        let disk = &mut sky.disks[self.at];
        if let Some(drained) = &change.news {
            if disk.is_full {
                return Err(DrainRefused::NotStored { name: name.to_owned(), why: "it is full".to_owned() });
            }
            disk.drained = drained.text();
        }
        Ok(change)
    }

    /// What a refusal must not change.
    fn as_it_stands(&self, sky: &Sky) -> impl PartialEq + std::fmt::Debug + use<> {
        let published = self.publisher.published().epoch;
        let (wanted, told) = (self.publisher.wanted().cloned(), self.to_data.len());
        (sky.disks[self.at].drained.clone(), self.membership.drained().clone(), published, wanted, told)
    }

    /// Whoever is drained kindly leaves others that could hold everything, by the sum of their memory and by their number.
    fn check_room(&self, name: &str, wish: Wish, news: Option<&Drained>, sky: &Sky) {
        let Some(node) = self.membership.named(name).filter(|member| member.is_in()) else { return };
        if wish != Wish::Drain(Manner::Kindly) || news.is_none() {
            return;
        }
        let cluster = self.membership.cluster();
        let is_open = |id: NodeId, is_leaving: bool| id != node.node && !is_leaving;
        let others = || cluster.nodes().iter().filter(|offer| is_open(offer.id, offer.is_leaving));
        let room: u64 = others().flat_map(|offer| &offer.devices).sum();
        let of_layer = |(layer, of): (&u32, &coordinator::control::cluster::LayerDemand)| {
            u64::from(of.experts) * u64::from(sky.case.demand.shards) * sky.case.demand.shard_bytes(*layer)
        };
        let replicas = u64::from(sky.case.constraints.replicas_min);
        let bytes = sky.case.demand.layers.iter().map(of_layer).sum::<u64>() * replicas;
        if room < bytes || (others().count() as u64) < replicas {
            let count = others().count();
            let what = format!(
                "{name} is drained, {count} others have {room} bytes for {bytes} in {replicas} replicas"
            );
            violation("drained", what);
        }
    }
}
