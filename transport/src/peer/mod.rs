//! The shell that drives a link over a carrier: sockets, tasks and timers. It decides nothing; the
//! [`Link`](crate::link::Link) does.
//!
//! An [`Endpoint`] is who we are. It dials peers, or takes them from a [`Listener`]; either way the result
//! is [`Opened`]: a [`Peer`] to send with, from any thread, and one [`Inlet`] for each of the data and
//! weights lanes, which its consumer polls directly. The control lane is driven by a task of its own.

mod driver;
mod endpoint;
mod handle;
mod handshake;
mod inlet;
mod listener;
mod outlet;
pub mod renewal;
mod shared;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use endpoint::{DialError, Endpoint, EndpointError};
pub use handle::{Opened, Peer, SendError};
pub use inlet::Inlet;
pub use listener::{Arrived, Listener};
pub use shared::{Notice, Notices, Renewal};

/// What these locks guard is whole between any two calls, so a thread that panicked left nothing half done.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
