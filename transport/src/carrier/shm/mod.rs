//! The carrier between processes of one host: rings in shared memory, and a Unix socket as lifeline.
//!
//! Linux only. The modules in the order a connection meets them: `listen` makes the socket, `endpoint`
//! is the carrier and the acceptor, `setup` hands the memory over, `memory` checks and maps it,
//! `stream` is the control lane over the socket, `lane` are the others over a `ring` each way, and
//! `doorbell` is where an endpoint sleeps until a peer has news. `unsafe` is in `memory` alone.
//!
//! A peer is a process of the same user, or of one that was let in by name; the kernel says which. It may
//! still be broken: what it writes is checked as if it came over a network, and what it hands over is
//! checked before it is mapped, so it can end its own connection and nothing else.

mod doorbell;
mod end;
mod endpoint;
mod lane;
mod listen;
mod memory;
#[cfg(test)]
mod model;
mod ring;
mod setup;
mod stream;

pub use doorbell::{Doorbell, SPIN};
pub use endpoint::{ShmAcceptor, ShmCarrier};
pub use setup::{ShmSettings, ShmSettingsError};
