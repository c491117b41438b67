//! A bounded number of places for those who have arrived and are not known yet.
//!
//! Time is an argument; leaving is done through the handles of tokio, and waiting with its timer.
//!
//! Whoever comes when all places are taken must not be the one who is turned away, or a few hundred connections
//! that say nothing would keep everybody out. So the oldest loses its place, but not before it had
//! [`GRACE`]: in a burst of good peers the newest wait that long at most, and nobody is turned away who is
//! quick.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;
use tokio::time::Sleep;

/// How long a place is safe. A handshake takes some milliseconds on a network of one cluster.
pub(crate) const GRACE: Duration = Duration::from_millis(250);

/// Those who have a place, the oldest first.
#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    taken: VecDeque<(Instant, AbortHandle)>,
    /// Until the oldest has had its time.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Places {
    /// So many places.
    pub(crate) fn new(max: usize) -> Self {
        Self { max, taken: VecDeque::with_capacity(max), timer: None }
    }

    /// Whether everybody has to wait: all places are taken, and the oldest keeps its own until then. There may be
    /// room before, when anybody has left.
    pub(crate) fn full_until(&mut self, now: Instant) -> Option<Instant> {
        if self.taken.len() < self.max {
            return None;
        }
        self.taken.retain(|(_, place)| !place.is_finished());
        let (since, _) = self.taken.front().filter(|_| self.taken.len() >= self.max)?;
        Some(*since + GRACE).filter(|until| now < *until)
    }

    /// Ready when somebody may come. To be asked again whenever anybody has left: then there is room before the
    /// oldest has had its time.
    pub(crate) fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while let Some(until) = self.full_until(Instant::now()) {
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until.into())));
            if timer.deadline() != until.into() {
                timer.as_mut().reset(until.into());
            }
            ready!(timer.as_mut().poll(context));
        }
        Poll::Ready(())
    }

    /// Takes a place, of the oldest if there is no other. True if somebody lost its own.
    pub(crate) fn take(&mut self, now: Instant, place: AbortHandle) -> bool {
        let oldest = if self.taken.len() < self.max { None } else { self.taken.pop_front() };
        self.taken.push_back((now, place));
        oldest.is_some_and(|(_, oldest)| {
            let was_there = !oldest.is_finished();
            oldest.abort();
            was_there
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_leaves_and_not_before_its_time() {
        let start = Instant::now();
        let silent = || tokio::spawn(std::future::pending::<()>());
        let tasks = [silent(), silent(), silent()];
        let mut places = Places::new(2);
        for (at, task) in tasks.iter().enumerate().take(2) {
            let now = start + Duration::from_millis(at as u64);
            assert_eq!(places.full_until(now), None);
            assert!(!places.take(now, task.abort_handle()));
        }
        assert_eq!(places.full_until(start + GRACE / 2), Some(start + GRACE));
        assert_eq!(places.full_until(start + GRACE), None);
        // Nobody leaves before somebody comes.
        assert!(!tasks[0].is_finished());
        assert!(places.take(start + GRACE, tasks[2].abort_handle()));
        let [first, second, third] = tasks;
        assert!(first.await.unwrap_err().is_cancelled());
        assert!(!second.is_finished() && !third.is_finished());
        // Who is done has left by itself.
        second.abort();
        assert!(second.await.is_err());
        assert_eq!(places.full_until(start + GRACE / 2), None);
        assert!(!places.take(start + GRACE, third.abort_handle()));
        third.abort();
    }

    /// A burst of quick ones fills all places before any of them has run; nobody then waits for the time of
    /// the oldest.
    #[tokio::test(start_paused = true)]
    async fn room_is_there_as_soon_as_anybody_has_left() {
        let mut places = Places::new(1);
        let began = tokio::time::Instant::now();
        for _ in 0..3 {
            let mut quick = tokio::spawn(async {});
            assert!(!places.take(Instant::now(), quick.abort_handle()));
            std::future::poll_fn(|context| {
                // As acceptors do: those who are done wake it.
                let done = Pin::new(&mut quick).poll(context).is_ready();
                let room = places.poll_room(context);
                assert_eq!(room.is_ready(), done);
                room
            })
            .await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
