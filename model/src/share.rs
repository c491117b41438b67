//! Handing out pieces of a loop to the compute threads, one by one.

use std::sync::{Mutex, PoisonError};

use crate::pool::Pool;

/// Rows of one piece of a row-wise loop: enough to hide the claim, few enough to balance.
pub const PIECE_ROWS: usize = 8;

/// Runs `work` on every item, on all threads, or on this one if there is no more than one item.
///
/// Items are claimed in order, so a core slowed by a neighbour takes fewer of them.
pub fn share<I>(pool: &Pool, items: I, work: impl Fn(I::Item) + Sync)
where
    I: ExactSizeIterator + Send,
    I::Item: Send,
{
    if items.len() <= 1 || pool.threads() == 1 {
        items.for_each(work);
        return;
    }
    let items = Mutex::new(items);
    pool.run(&|_| {
        loop {
            let item = items.lock().unwrap_or_else(PoisonError::into_inner).next();
            match item {
                Some(item) => work(item),
                None => break,
            }
        }
    });
}
