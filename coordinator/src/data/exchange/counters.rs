//! What the exchange has counted since it began.
//!
//! Pure data.

/// Totals; they only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExchangeCounters {
    /// Frames sent.
    pub frames: u64,
    /// Dispatches sent: groups of frames.
    pub dispatches: u64,
    /// Slots sent: rows of dispatches.
    pub slots_sent: u64,
    /// Slots filled.
    pub slots_filled: u64,
    /// Returns taken.
    pub returned: u64,
    /// Refusals taken, in the order of `Reason::ALL`.
    pub refused: [u64; 6],
    /// Returns and refusals of a link that had ended.
    pub late: u64,
    /// Of a dispatch that was closed already.
    pub twice: u64,
    /// Of a dispatch that never was, or was another link's.
    pub foreign: u64,
    /// Returns with a wrong number of rows.
    pub breaches: u64,
    /// Rows of returns that were taken but not needed: filled by another attempt, or not wanted any more.
    pub rows_unneeded: u64,
    /// Dispatches that became overdue.
    pub overdue: u64,
    /// Of these, those whose link was late: their rows went elsewhere too.
    pub hedged: u64,
    /// Dispatches that ended with their link.
    pub died: u64,
    /// Rows that failed.
    pub rows_failed: u64,
    /// Rows that went on without an expert that nobody held, once for each expert.
    pub left_out: u64,
}
