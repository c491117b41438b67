//! A device that is slower than the one that computes for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix::ArbiterHandle;
use transport::wire::cluster::DeviceOffer;

use super::later::Later;
use super::{DeviceTime, Emulation};
use crate::device::{Batch, Device, DeviceMemory};

/// When the emulated device is free.
///
/// Pure. It computes one batch at a time, in the order in which they come.
#[derive(Debug, Default)]
struct Schedule {
    free: Option<Instant>,
}

impl Schedule {
    /// A batch that takes so long comes now. When is it done?
    fn handle_batch(&mut self, takes: Duration, now: Instant) -> Instant {
        let done = self.free.map_or(now, |free| free.max(now)) + takes;
        self.free = Some(done);
        done
    }
}

/// Hands batches to the real device when the emulated one would be done with them.
pub(crate) struct EmulatedDevice {
    real: Arc<dyn Device>,
    emulation: Emulation,
    time: DeviceTime,
    schedule: Mutex<Schedule>,
    later: Arc<Later>,
    /// Where batches are handed over.
    arbiter: ArbiterHandle,
}

impl EmulatedDevice {
    /// A device that takes as long as `emulation` says, if it says so of devices at all.
    pub(crate) fn around(
        real: Arc<dyn Device>,
        emulation: Emulation,
        later: &Arc<Later>,
        arbiter: &ArbiterHandle,
    ) -> Arc<dyn Device> {
        let time = emulation.device.unwrap_or(DeviceTime { base: Duration::ZERO, per_row: Duration::ZERO });
        let (schedule, later, arbiter) = (Mutex::default(), Arc::clone(later), arbiter.clone());
        Arc::new(Self { real, emulation, time, schedule, later, arbiter })
    }
}

impl Device for EmulatedDevice {
    fn offer(&self) -> DeviceOffer {
        let offer = self.real.offer();
        DeviceOffer { kind: format!("{} emulating {}", offer.kind, self.emulation), ..offer }
    }

    fn memory(&self) -> &DeviceMemory {
        self.real.memory()
    }

    fn submit(&self, batch: Batch) {
        if self.emulation.device.is_none() {
            return self.real.submit(batch);
        }
        let takes = self.time.of(batch.groups.iter().map(|group| group.rows()).sum());
        let batch = Batch { busy_min: takes, ..batch };
        let mut schedule = self.schedule.lock().unwrap_or_else(PoisonError::into_inner);
        let done = schedule.handle_batch(takes, Instant::now());
        let (real, arbiter) = (Arc::clone(&self.real), self.arbiter.clone());
        self.later.at(done, move || {
            // An arbiter that has ended takes the batch with it, whose groups are answered by that.
            arbiter.spawn_fn(move || real.submit(batch));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_batch_after_the_other() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        let ms = Duration::from_millis;
        let done = [
            schedule.handle_batch(ms(6), start),
            schedule.handle_batch(ms(10), start + ms(1)),
            schedule.handle_batch(ms(2), start + ms(30)),
        ];
        assert_eq!(done, [start + ms(6), start + ms(16), start + ms(32)]);
    }
}
