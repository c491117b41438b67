//! How often one actor may fall before its device counts as lost.
//!
//! Pure: every instant is passed in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Falls within [`WINDOW`] after which an actor is not started again.
pub const FALLS_MAX: u32 = 5;
/// In which they are counted.
pub const WINDOW: Duration = Duration::from_secs(10);

/// The recent falls of one actor.
#[derive(Debug, Default)]
pub struct Falls {
    recent: VecDeque<Instant>,
}

impl Falls {
    /// It fell at `now`. How often within the window, this time included.
    pub fn handle_fall(&mut self, now: Instant) -> u32 {
        while self.recent.front().is_some_and(|&then| now.duration_since(then) >= WINDOW) {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        u32::try_from(self.recent.len()).unwrap_or(u32::MAX)
    }

    /// Whether it has fallen too often to be started again.
    pub fn is_lost(&self) -> bool {
        self.recent.len() >= FALLS_MAX as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rare fall is restarted for ever; five in ten seconds are a device that is broken.
    #[test]
    fn only_falls_that_come_together_lose_a_device() {
        let mut now = Instant::now();
        let mut falls = Falls::default();
        for fall in 0..20 {
            assert_eq!(falls.handle_fall(now), (fall + 1).min(4), "fall {fall}");
            assert!(!falls.is_lost());
            now += WINDOW / 4;
        }
        for _ in 0..3 {
            falls.handle_fall(now);
        }
        assert!(falls.is_lost());
    }
}
