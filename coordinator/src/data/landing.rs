//! Where returned rows lie until they are combined.
//!
//! A row that has landed stays in the frame that brought it, without a copy, and holds that frame's credit. But a
//! whole row may have to wait for earlier positions of its sequence, whose returns need credit on the same link: so
//! frames are kept for at most half of a link's window, and beyond that rows are copied out and the credit goes
//! back at once. The other half is always there for what is to come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use transport::Frame;
use transport::buffer::{Payload, Pool};

/// The bytes of frames that one link's rows keep.
#[derive(Debug, Clone)]
pub struct Keep {
    kept: Arc<AtomicU64>,
    max: u64,
}

/// A frame whose rows have landed.
#[derive(Debug)]
pub struct Kept {
    frame: Frame,
    kept: Arc<AtomicU64>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.kept.fetch_sub(self.frame.charge(), Ordering::Relaxed);
    }
}

/// The rows of a frame.
#[derive(Debug, Clone)]
pub enum Rows {
    /// In the frame.
    Kept(Arc<Kept>),
    /// Copied out of it.
    Copied(Payload),
}

impl Rows {
    /// The payload of the frame.
    pub fn payload(&self) -> &Payload {
        match self {
            Self::Kept(kept) => &kept.frame.payload,
            Self::Copied(payload) => payload,
        }
    }
}

/// One returned row.
#[derive(Debug, Clone)]
pub struct Landed {
    /// The payload that holds it.
    pub rows: Rows,
    /// Byte at which it begins there.
    pub at: u32,
}

/// What has come of a slot.
#[derive(Debug, Clone, Default)]
pub enum Slot {
    /// Nothing.
    #[default]
    Empty,
    /// What its expert returned.
    Landed(Landed),
    /// The row goes on without this expert.
    LeftOut,
}

impl Keep {
    /// Frames of a link with that window for what it receives.
    pub fn new(window_bytes: u64) -> Self {
        Self { kept: Arc::default(), max: window_bytes / 2 }
    }

    /// What may be on its way back on the link at once.
    pub fn back_bytes(&self) -> u64 {
        self.max
    }

    /// Takes the rows of a frame. Where `pool` has no room for a copy the frame is kept all the same.
    pub fn take(&self, frame: Frame, pool: &Pool) -> Rows {
        let charge = frame.charge();
        if self.kept.load(Ordering::Relaxed) + charge > self.max
            && let Some(copy) = pool.copy_of(&frame.payload)
        {
            return Rows::Copied(copy.into());
        }
        self.kept.fetch_add(charge, Ordering::Relaxed);
        Rows::Kept(Arc::new(Kept { frame, kept: Arc::clone(&self.kept) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use transport::wire::{Header, Kind};

    fn frame(pool: &Pool) -> Frame {
        let mut buffer = pool.take(1000).expect("there is room");
        buffer.fill(7);
        Frame::new(Header::of_bytes(Kind::Return, 1, 1000), buffer)
    }

    /// Half of a window stays free for returns, whatever waits.
    #[test]
    fn frames_are_kept_for_half_a_window_and_copied_beyond() {
        let pool = Pool::new(1 << 20);
        let charge = frame(&pool).charge();
        let keep = Keep::new(5 * charge);
        let mut landed: Vec<Rows> = (0..4).map(|_| keep.take(frame(&pool), &pool)).collect();
        let kept = |rows: &[Rows]| rows.iter().filter(|rows| matches!(rows, Rows::Kept(_))).count();
        assert_eq!(kept(&landed), 2);
        assert!(landed.iter().all(|rows| rows.payload()[..] == [7; 1000]));
        landed.remove(0);
        landed.push(keep.take(frame(&pool), &pool));
        assert_eq!(kept(&landed), 2);
    }
}
