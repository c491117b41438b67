//! What comes back to a data plane: rows land where the exchange says, but for bugs that know better.
//!
//! A shell, as `data/pump.rs` is.

use coordinator::data::exchange::{NOWHERE, Returned};
use coordinator::data::ids::SlotId;
use transport::wire::control::CloseReason;

use crate::bugs::Bug;
use crate::data::Data;
use crate::frame::{Credit, Return};
use crate::landing::{Landed, Slot};
use crate::network::EndId;
use crate::watch::violation;
use crate::world::Sky;

impl Data {
    /// A frame came back.
    pub(crate) fn returned(&mut self, end: EndId, frame: Return, credit: Credit, sky: &mut Sky) {
        let Some((&id, link)) = self.links.iter().find(|(_, link)| link.end == end) else { return };
        let kept = link.keep.take(credit);
        let now = sky.clock.now();
        for (group, places) in &frame.groups {
            if let Some(reason) = group.refused {
                if sky.has_bug(Bug::SwallowsRefusals) && sky.random.chance(300) {
                    continue;
                }
                sky.watch.handle_answered((self.at, self.life), group.dispatch);
                self.exchange.handle_refused(id, group.dispatch, reason, now);
                continue;
            }
            sky.watch.handle_answered((self.at, self.life), group.dispatch);
            let values = &frame.rows[places.clone()];
            let slots = match self.exchange.handle_return(id, group.dispatch, group.rows, now) {
                Returned::Taken(slots) => slots.to_vec(),
                Returned::Dropped => vec![NOWHERE; values.len()],
                Returned::Breach { actor, expected } => {
                    sky.close(
                        end,
                        CloseReason::Broken(format!("{} rows, not {expected}, of {actor:?}", group.rows)),
                    );
                    break;
                }
            };
            for (index, (slot, value)) in slots.into_iter().zip(values).enumerate() {
                let slot = self.aim(slot, group.dispatch, index, sky);
                if slot != NOWHERE {
                    let place = &mut self.slots[slot.0 as usize];
                    if !matches!(place, Slot::Empty) {
                        violation(
                            "once",
                            format!("slot {} is filled by dispatch {} again", slot.0, group.dispatch),
                        );
                    }
                    *place = Slot::Landed(Landed { value: *value, _kept: kept.clone() });
                }
            }
        }
        self.wake(sky);
    }

    /// Where a row really lands: where the exchange says, but for bugs that know better.
    fn aim(&self, slot: SlotId, dispatch: u64, index: usize, sky: &mut Sky) -> SlotId {
        if slot != NOWHERE {
            return slot;
        }
        let aim = self.aims.get(&dispatch).map_or(NOWHERE, |slots| slots[index]);
        let is_filled = aim != NOWHERE && !matches!(self.slots[aim.0 as usize], Slot::Empty);
        let writes = match sky.bug {
            // A second attempt fills what the first has filled.
            Some(Bug::FillsTwice) => is_filled,
            // A loser writes into a slot that its row, or another one, is waiting for again.
            Some(Bug::ReusesEarly) => !is_filled,
            _ => false,
        };
        if writes { aim } else { NOWHERE }
    }
}
