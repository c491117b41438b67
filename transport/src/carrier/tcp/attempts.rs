//! Tries again beside a try that hangs.
//!
//! What is sent to an address that nobody has at the moment is not answered at all: the system asks again after 1, 3 and 7 s, and
//! names may be looked up as slowly. A peer that was started anew is there long before, and a new try finds it at once.

use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// How long a try is alone.
const EVERY: Duration = Duration::from_millis(500);
/// Tries at once.
const TRIES_MAX: usize = 10;

/// What the first try to come to an end comes to, well or not. Another begins beside those under way from time to time.
pub(super) async fn first<F: Future>(begin: impl Fn() -> F) -> F::Output {
    let mut tries = vec![Box::pin(begin())];
    let mut next = interval_at(Instant::now() + EVERY, EVERY);
    next.set_missed_tick_behavior(MissedTickBehavior::Delay);
    poll_fn(|context| {
        loop {
            for one in &mut tries {
                if let Poll::Ready(end) = one.as_mut().poll(context) {
                    return Poll::Ready(end);
                }
            }
            if tries.len() == TRIES_MAX || next.poll_tick(context).is_pending() {
                return Poll::Pending;
            }
            tries.push(Box::pin(begin()));
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Who was away when the first tries began is reached by the first that begins after that, and the others go.
    #[tokio::test(start_paused = true)]
    async fn a_later_try_ends_before_one_that_hangs() {
        let (start, begun) = (Instant::now(), Cell::new(0));
        let one = || {
            begun.set(begun.get() + 1);
            let number = begun.get();
            async move {
                let took = if start.elapsed() < 1200 * MS { 5000 * MS } else { 30 * MS };
                tokio::time::sleep(took).await;
                number
            }
        };
        assert_eq!(first(one).await, 4);
        assert_eq!((start.elapsed(), begun.get()), (1530 * MS, 4));
    }

    /// One that is refused is not asked twice, and of tries that all hang there are so many.
    #[tokio::test(start_paused = true)]
    async fn a_try_that_ends_is_the_last() {
        let begun = Cell::new(0);
        let after = |took: Duration| {
            begun.set(begun.get() + 1);
            async move { tokio::time::sleep(took).await }
        };
        first(|| after(400 * MS)).await;
        assert_eq!(begun.replace(0), 1);
        let start = Instant::now();
        first(|| after(60_000 * MS)).await;
        assert_eq!((start.elapsed(), begun.get()), (60_000 * MS, TRIES_MAX));
    }
}
