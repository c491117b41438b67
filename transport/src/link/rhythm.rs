//! Judges from the rhythm of its heartbeats whether the peer is late, and from silence whether it is dead.
//!
//! Pure: every instant is passed in.
//!
//! A peer that beats every 100 ms is missed after 300 ms; one that beats every second is not. Late is only a
//! hint, to try another replica; dead is final, and comes after one fixed silence. A time in which this end
//! itself was not listening (its process was stopped, its threads had no core) is no silence of the peer.
//!
//! A peer that is heard, and says that it has not heard the last beats of this end, is late too: the network may have lost one
//! direction alone, and then what is sent there comes no sooner than to a peer that is silent.

use std::time::{Duration, Instant};

/// One beat may be lost on the way, two seldom are.
pub(super) const LATE_INTERVALS_MAX: u32 = 3;
/// Beats that a peer may not have heard: as many, and one that is on its way.
const UNHEARD_MAX: u64 = LATE_INTERVALS_MAX as u64 + 1;

/// What the silence says now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Nothing new.
    Same,
    /// It has just become late.
    Late(Duration),
    /// It is dead.
    Dead(Duration),
}

/// What a beat says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing new.
    Same,
    /// The peer does not hear this end.
    Deaf,
    /// It was late, and is not any more.
    Awake,
}

/// The rhythm of the peer.
#[derive(Debug)]
pub(super) struct Rhythm {
    interval: Duration,
    interval_min: Duration,
    interval_max: Duration,
    silence_max: Duration,
    last_beat: Instant,
    last_heard: Instant,
    is_silent: bool,
    is_deaf: bool,
}

impl Rhythm {
    /// `interval` is what the peer said it would keep; the handshake has seen that three fit into
    /// `silence_max`.
    pub(super) fn new(interval: Duration, silence_max: Duration, now: Instant) -> Self {
        Self {
            interval,
            interval_min: interval,
            interval_max: interval.max(silence_max / LATE_INTERVALS_MAX),
            silence_max,
            last_beat: now,
            last_heard: now,
            is_silent: false,
            is_deaf: false,
        }
    }

    /// A heartbeat came, of a peer that has not heard so many beats of this end. Its being late is over, or has begun.
    pub(super) fn handle_beat(&mut self, unheard: u64, now: Instant) -> Heard {
        let was_deaf = std::mem::replace(&mut self.is_deaf, unheard > UNHEARD_MAX);
        // Clamped, so that neither a burst nor one long pause rewrites the rhythm.
        let elapsed =
            now.saturating_duration_since(self.last_beat).clamp(self.interval_min, self.interval_max);
        self.interval = (self.interval * 7 + elapsed) / 8;
        self.last_beat = now;
        self.last_heard = self.last_heard.max(now);
        let was_late = std::mem::take(&mut self.is_silent) || was_deaf;
        match (was_late, self.is_deaf) {
            (true, false) => Heard::Awake,
            (false, true) => Heard::Deaf,
            _ => Heard::Same,
        }
    }

    /// Something else came on the control lane. It shows life, and nothing of the rhythm. True if the peer had been late.
    pub(super) fn handle_heard(&mut self, now: Instant) -> bool {
        self.last_heard = self.last_heard.max(now);
        std::mem::take(&mut self.is_silent) && !self.is_deaf
    }

    /// This end did not listen for so long.
    pub(super) fn handle_deaf(&mut self, deaf: Duration, now: Instant) {
        self.last_heard = (self.last_heard + deaf).min(now);
        self.last_beat = (self.last_beat + deaf).min(now);
    }

    /// What to think at `now`.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Judgement {
        let silent = now.saturating_duration_since(self.last_heard);
        if silent >= self.silence_max {
            return Judgement::Dead(silent);
        }
        if !self.is_silent && silent >= self.interval * LATE_INTERVALS_MAX {
            self.is_silent = true;
            // Of a peer that does not hear it has been said.
            return if self.is_deaf { Judgement::Same } else { Judgement::Late(silent) };
        }
        Judgement::Same
    }

    /// When to ask next.
    pub(super) fn next(&self) -> Instant {
        let patience = if self.is_silent {
            self.silence_max
        } else {
            self.silence_max.min(self.interval * LATE_INTERVALS_MAX)
        };
        self.last_heard + patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn judged(rhythm: &mut Rhythm, at: Instant) -> Judgement {
        rhythm.handle_timeout(at)
    }

    #[test]
    fn a_quick_peer_is_missed_quickly_and_a_slow_one_is_not() {
        let start = Instant::now();
        let mut quick = Rhythm::new(100 * MS, 10_000 * MS, start);
        let mut now = start;
        for _ in 0..50 {
            now += 100 * MS;
            assert_eq!(quick.handle_beat(1, now), Heard::Same);
        }
        assert_eq!(judged(&mut quick, now + 299 * MS), Judgement::Same);
        assert_eq!(quick.next(), now + 300 * MS);
        assert_eq!(judged(&mut quick, now + 300 * MS), Judgement::Late(300 * MS));
        assert_eq!(judged(&mut quick, now + 400 * MS), Judgement::Same, "said once");
        assert_eq!(quick.next(), now + 10_000 * MS);
        assert!(quick.handle_heard(now + 401 * MS), "awake");

        let mut slow = Rhythm::new(100 * MS, 10_000 * MS, start);
        let mut now = start;
        for _ in 0..50 {
            now += 1000 * MS;
            slow.handle_beat(0, now);
        }
        assert_eq!(
            judged(&mut slow, now + 2900 * MS),
            Judgement::Same,
            "its own rhythm, not the promised one"
        );
        assert_eq!(judged(&mut slow, now + 3000 * MS), Judgement::Late(3000 * MS));
        assert_eq!(judged(&mut slow, now + 10_000 * MS), Judgement::Dead(10_000 * MS));
    }

    /// A burst of beats that were held up is no quick rhythm.
    #[test]
    fn a_burst_does_not_shorten_patience() {
        let start = Instant::now();
        let mut rhythm = Rhythm::new(100 * MS, 10_000 * MS, start);
        for _ in 0..100 {
            rhythm.handle_beat(0, start + MS);
        }
        assert_eq!(rhythm.next(), start + 301 * MS);
    }

    /// One that is heard and does not hear is late, until it hears; that it falls silent meanwhile is nothing new.
    #[test]
    fn a_peer_that_does_not_hear_is_late() {
        let start = Instant::now();
        let mut rhythm = Rhythm::new(100 * MS, 10_000 * MS, start);
        let mut heard = |unheard, at: u32| rhythm.handle_beat(unheard, start + at * MS);
        let found =
            [heard(4, 100), heard(5, 200), heard(6, 300), heard(1, 400), heard(0, 500), heard(9, 600)];
        let expected = [Heard::Same, Heard::Deaf, Heard::Same, Heard::Awake, Heard::Same, Heard::Deaf];
        assert_eq!(found, expected);
        assert_eq!(judged(&mut rhythm, start + 900 * MS), Judgement::Same);
        assert!(!rhythm.handle_heard(start + 1000 * MS), "it is heard, and does not hear");
        assert_eq!(judged(&mut rhythm, start + 1300 * MS), Judgement::Same);
        assert_eq!(rhythm.handle_beat(9, start + 1400 * MS), Heard::Same);
        assert_eq!(rhythm.handle_beat(0, start + 1500 * MS), Heard::Awake);
    }

    #[test]
    fn deafness_is_not_silence() {
        let start = Instant::now();
        let mut rhythm = Rhythm::new(100 * MS, 1000 * MS, start);
        rhythm.handle_deaf(900 * MS, start + 1000 * MS);
        assert_eq!(judged(&mut rhythm, start + 1000 * MS), Judgement::Same);
        assert_eq!(judged(&mut rhythm, start + 1900 * MS), Judgement::Dead(1000 * MS));
    }
}
