//! Credits: how much may be on its way to an end that has not given the room back.
//!
//! Pure. All figures are totals since the link began, never differences: a total that is told twice, or late,
//! does no harm, and both ends can check it against what they know. 2^64 bytes are five years at 100 GB/s.

use super::ended::{Broken, Ended};
use crate::Lane;

/// A grant is told once this part of the window has come together. Fewer would halve what a sender may
/// have on its way, more would cost a control message for every few frames.
const GRANT_PARTS: u64 = 4;

/// Why a frame may not be sent now. Nothing was charged.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SendRefused {
    /// Later: `Event::Writable` says when.
    #[error("a frame that costs {charge} bytes must wait: {left} bytes of credit are left")]
    NoCredit {
        /// What the frame costs.
        charge: u64,
        /// What is left.
        left: u64,
    },
    /// Never: the peer takes no such frame.
    #[error("a frame that costs {charge} bytes is too long, the peer takes {max}; cut it into several")]
    TooLong {
        /// What the frame costs.
        charge: u64,
        /// What the longest may cost.
        max: u64,
    },
    /// The handshake is not done.
    #[error("the link is not open yet")]
    NotOpen,
    /// The lanes are being finished in order.
    #[error("the link is ending in order and takes nothing more; send it over another")]
    Draining,
    /// It is over.
    #[error("{0}")]
    Closed(Ended),
}

/// One lane, seen by its sender.
#[derive(Debug, Default)]
pub(super) struct Sending {
    window: u64,
    charge_max: u64,
    granted: u64,
    sent: u64,
    /// The cheapest frame that was refused since somebody was last told to try again.
    wanted: Option<u64>,
}

impl Sending {
    /// `charge_max` is what the longest frame costs that the receiver takes.
    pub(super) fn new(window: u64, charge_max: u64) -> Self {
        Self { window, charge_max, granted: window, sent: 0, wanted: None }
    }

    /// What may be sent now.
    pub(super) fn left(&self) -> u64 {
        self.granted - self.sent
    }

    /// The whole window.
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// What was sent so far.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// What the longest frame may cost.
    pub(super) fn charge_max(&self) -> u64 {
        self.charge_max
    }

    /// Charges a frame, or says why not.
    pub(super) fn take(&mut self, charge: u64) -> Result<(), SendRefused> {
        let left = self.left();
        if charge <= left && charge <= self.charge_max {
            self.sent += charge;
            return Ok(());
        }
        if charge > self.charge_max {
            return Err(SendRefused::TooLong { charge, max: self.charge_max });
        }
        self.wanted = Some(self.wanted.map_or(charge, |wanted| wanted.min(charge)));
        Err(SendRefused::NoCredit { charge, left })
    }

    /// Takes back a charge whose frame was never sent.
    pub(super) fn untake(&mut self, charge: u64) -> bool {
        assert!(charge <= self.sent, "only what was charged is taken back");
        self.sent -= charge;
        self.writable()
    }

    /// Takes a grant; true if a frame that was refused can go now.
    pub(super) fn grant(&mut self, lane: Lane, total: u64) -> Result<bool, Broken> {
        // It must advance, and nobody can have released what was not sent.
        let most = self.sent.saturating_add(self.window);
        if total <= self.granted || total > most {
            return Err(Broken::Grant { lane, total, least: self.granted.saturating_add(1), most });
        }
        self.granted = total;
        Ok(self.writable())
    }

    fn writable(&mut self) -> bool {
        let left = self.left();
        self.wanted.take_if(|wanted| *wanted <= left).is_some()
    }
}

/// One lane, seen by its receiver.
#[derive(Debug)]
pub(super) struct Receiving {
    window: u64,
    received: u64,
    /// Released by the link itself: control messages that it dealt with.
    by_link: u64,
    /// Released by the application, which counts on its own.
    by_application: u64,
    /// Of both, as last told.
    told: u64,
}

impl Receiving {
    pub(super) fn new(window: u64) -> Self {
        Self { window, received: 0, by_link: 0, by_application: 0, told: 0 }
    }

    /// A frame came.
    pub(super) fn receive(&mut self, lane: Lane, charge: u64) -> Result<(), Broken> {
        let left = self.told + self.window - self.received;
        if charge > left {
            return Err(Broken::Credit { lane, charge, left });
        }
        self.received += charge;
        Ok(())
    }

    /// The link is done with a message.
    pub(super) fn release(&mut self, charge: u64) {
        self.by_link += charge;
        self.assert_received();
    }

    /// The application has released so much in all; an older total, come late, says nothing.
    pub(super) fn release_total(&mut self, total: u64) {
        self.by_application = self.by_application.max(total);
        self.assert_received();
    }

    fn assert_received(&self) {
        let released = self.by_link + self.by_application;
        assert!(released <= self.received, "{released} bytes released, {} received", self.received);
    }

    /// A total to be told, if enough has come together.
    pub(super) fn poll_grant(&mut self) -> Option<u64> {
        let released = self.by_link + self.by_application;
        if released - self.told < (self.window / GRANT_PARTS).max(1) {
            return None;
        }
        self.told = released;
        Some(released + self.window)
    }

    /// What came so far.
    pub(super) fn received(&self) -> u64 {
        self.received
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANE: Lane = Lane::Data;

    /// The receiver's sum and the sender's are the same sum.
    #[test]
    fn a_window_is_used_up_and_given_back_in_quarters() {
        let (mut sending, mut receiving) = (Sending::new(1024, 512), Receiving::new(1024));
        for _ in 0..8 {
            sending.take(128).unwrap();
            receiving.receive(LANE, 128).unwrap();
        }
        assert_eq!(sending.take(128), Err(SendRefused::NoCredit { charge: 128, left: 0 }));
        assert_eq!(receiving.receive(LANE, 64), Err(Broken::Credit { lane: LANE, charge: 64, left: 0 }));
        receiving.release_total(128);
        assert_eq!(receiving.poll_grant(), None, "an eighth is not told");
        receiving.release_total(256);
        receiving.release_total(128);
        assert_eq!(receiving.poll_grant(), Some(1280));
        assert_eq!(receiving.poll_grant(), None, "told once");
        assert_eq!(sending.grant(LANE, 1280), Ok(true));
        assert_eq!(sending.left(), 256);
    }

    #[test]
    fn only_a_grant_that_advances_and_can_be_true_is_taken() {
        let mut sending = Sending::new(1024, 512);
        sending.take(512).unwrap();
        let broken = |total| Err(Broken::Grant { lane: LANE, total, least: 1025, most: 1536 });
        for total in [0, 1023, 1024, 1537, u64::MAX] {
            assert_eq!(sending.grant(LANE, total), broken(total));
        }
        assert_eq!(sending.grant(LANE, 1536), Ok(false), "nobody waits");
    }

    /// A frame longer than the peer takes would wait for ever.
    #[test]
    fn too_long_is_said_at_once_and_the_cheapest_refused_is_remembered() {
        let mut sending = Sending::new(1024, 512);
        assert_eq!(sending.take(513), Err(SendRefused::TooLong { charge: 513, max: 512 }));
        sending.take(512).unwrap();
        sending.take(512).unwrap();
        assert!(sending.take(400).is_err());
        assert!(sending.take(200).is_err());
        assert!(sending.take(300).is_err());
        assert_eq!(sending.grant(LANE, 1024 + 199), Ok(false));
        assert_eq!(sending.grant(LANE, 1024 + 200), Ok(true));
        assert_eq!(sending.grant(LANE, 1024 + 300), Ok(false), "told once");
    }
}
