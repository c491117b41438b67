//! Times of day, as certificates have them: whole seconds of UTC.
//!
//! Pure but for [`Utc::now`], which all of security asks, TLS too. Links never compare clocks; certificates must, so messages
//! about them show what this machine's clock says.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: i64 = 86_400;

/// Seconds that this process is told to be ahead of the machine's clock: none, but where a wrong clock is tried out.
static AHEAD: AtomicI64 = AtomicI64::new(0);

/// Seconds since 1970 in UTC. Shown as `2026-11-21 12:58:10 UTC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Utc(pub i64);

impl Utc {
    /// What this machine's clock says.
    pub fn now() -> Self {
        let seconds = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_secs().try_into().unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
        };
        Self(seconds.saturating_add(AHEAD.load(Ordering::Relaxed)))
    }

    /// From now on [`Utc::now`] is so many seconds later, in the whole process, as if somebody had set the machine's clock. For
    /// trying out what that does.
    pub fn set_ahead(seconds: i64) {
        AHEAD.store(seconds, Ordering::Relaxed);
    }

    /// Later by so much.
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span.as_secs().try_into().unwrap_or(i64::MAX)))
    }

    /// Earlier by so much.
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span.as_secs().try_into().unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is before.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0).try_into().unwrap_or(0))
    }

    /// For people, seen from `now`: `in 89 days`, `5 minutes ago`.
    pub fn seen_from(self, now: Self) -> String {
        let (ahead, span) = if self >= now { (true, self.since(now)) } else { (false, now.since(self)) };
        let seconds = span.as_secs();
        let (count, unit) = match seconds {
            0..120 => (seconds, "second"),
            120..7_200 => (seconds / 60, "minute"),
            7_200..172_800 => (seconds / 3_600, "hour"),
            _ => (seconds / 86_400, "day"),
        };
        let plural = if count == 1 { "" } else { "s" };
        if ahead { format!("in {count} {unit}{plural}") } else { format!("{count} {unit}{plural} ago") }
    }

    pub(crate) fn of_unix(time: rustls::pki_types::UnixTime) -> Self {
        Self(time.as_secs().try_into().unwrap_or(i64::MAX))
    }

    pub(crate) fn unix(self) -> rustls::pki_types::UnixTime {
        let seconds = self.0.try_into().unwrap_or(0);
        rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }
}

impl std::fmt::Display for Utc {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (days, second) = (self.0.div_euclid(DAY), self.0.rem_euclid(DAY));
        // Days are counted from 1 March of year 0, so that a leap day ends its year; 400 years have
        // 146,097 days. Five months from March on always have 153.
        let days = days + 719_468;
        let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = year + era * 400 + i64::from(month <= 2);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        write!(formatter, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each compared with `date -u -d @N`.
    #[test]
    fn times_are_shown_as_the_calendar_has_them() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (1_709_251_200, "2024-03-01 00:00:00 UTC"),
            (1_798_761_599, "2026-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (-1, "1969-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(Utc(seconds).to_string(), text);
        }
    }

    #[test]
    fn spans_are_for_people() {
        let now = Utc(1_000_000_000);
        for (seconds, text) in [
            (1, "in 1 second"),
            (119, "in 119 seconds"),
            (3_600, "in 60 minutes"),
            (86_399, "in 23 hours"),
            (89 * DAY + 5, "in 89 days"),
            (-60, "60 seconds ago"),
            (-3 * DAY, "3 days ago"),
        ] {
            assert_eq!(Utc(now.0 + seconds).seen_from(now), text);
        }
    }
}
