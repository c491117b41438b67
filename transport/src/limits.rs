//! What a link may hold at once. Every queue, window and table of this crate has its bound here.
//!
//! Pure.

use std::time::Duration;

use crate::wire::PerLane;

/// The bounds of a link, as one end has them configured; the handshake tells the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest payload taken on each lane. Raising it costs pool memory: a window holds at least two.
    pub payload_bytes_max: PerLane<u64>,
    /// Credits granted on each lane, in bytes as `wire::charge` counts them: what a peer may have sent
    /// that has not been released here. This bounds the memory of both ends.
    pub window_bytes: PerLane<u64>,
    /// Dispatches that may wait for their returns at once.
    pub in_flight_max: u32,
    /// How often a heartbeat is sent.
    pub heartbeat_every: Duration,
    /// Silence on the control lane after which the link is dead, whatever the carrier says.
    pub silence_max: Duration,
    /// Most time from the first byte to an open link.
    pub handshake_max: Duration,
    /// Most time that an orderly end may take before it is cut.
    pub drain_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        Self {
            // A chunk of 512 rows of 7,168 BF16 values is 7 MiB.
            payload_bytes_max: PerLane { control: 4 * MIB, data: 16 * MIB, weights: 4 * MIB },
            window_bytes: PerLane { control: 16 * MIB, data: 64 * MIB, weights: 16 * MIB },
            in_flight_max: 65_536,
            heartbeat_every: Duration::from_millis(100),
            silence_max: Duration::from_secs(10),
            handshake_max: Duration::from_secs(5),
            drain_max: Duration::from_secs(30),
        }
    }
}

/// Why limits cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// A window must hold two of the longest frames, or the longest could wait for ever.
    #[error(
        "the {lane} lane's window of {window} bytes holds no two payloads of {payload} bytes; give it at least {needed}"
    )]
    Window {
        /// The lane.
        lane: crate::Lane,
        /// Its window.
        window: u64,
        /// Its longest payload.
        payload: u64,
        /// What would do.
        needed: u64,
    },
    /// A row does not fit.
    #[error(
        "a row of the model takes {row} bytes and its table, the data lane takes payloads of {payload} bytes; raise its limit to at least {needed}"
    )]
    Row {
        /// Bytes of a row.
        row: u64,
        /// Longest payload.
        payload: u64,
        /// What would do.
        needed: u64,
    },
    /// Silence must be longer than a few heartbeats.
    #[error(
        "a link silent for {silence:?} would be given up, but heartbeats come every {heartbeat:?}; let at least 3 fit"
    )]
    Silence {
        /// Silence allowed.
        silence: Duration,
        /// Between heartbeats.
        heartbeat: Duration,
    },
}

impl Limits {
    /// Checks them against one another.
    pub fn check(&self) -> Result<(), LimitsError> {
        for lane in crate::Lane::ALL {
            let (window, payload) = (self.window_bytes[lane], self.payload_bytes_max[lane]);
            let needed = 2 * crate::wire::charge(payload);
            if window < needed {
                return Err(LimitsError::Window { lane, window, payload, needed });
            }
        }
        let (silence, heartbeat) = (self.silence_max, self.heartbeat_every);
        if silence < 3 * heartbeat || heartbeat.is_zero() {
            return Err(LimitsError::Silence { silence, heartbeat });
        }
        Ok(())
    }

    /// Checks that rows of a model fit: the smallest dispatch is one row and a table of 64 bytes.
    pub fn check_row(&self, row_bytes: u64) -> Result<(), LimitsError> {
        let (payload, needed) = (self.payload_bytes_max.data, row_bytes + 64);
        if payload < needed {
            return Err(LimitsError::Row { row: row_bytes, payload, needed });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_agree_with_themselves() {
        assert_eq!(Limits::default().check(), Ok(()));
        assert_eq!(Limits::default().check_row(7168 * 4), Ok(()));
    }
}
