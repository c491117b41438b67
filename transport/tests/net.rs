//! The carriers over networks, and the framing underneath them.
//!
//! [`framing`] tries every way in which a stream can be cut, against bytes written out by hand
//! ([`reference`]); [`tcp`] and [`secure`] real sockets of this host; [`hostile`] what a peer sends that
//! means harm; [`allocations`] that a frame costs none.

#![allow(clippy::unwrap_used)] // As in all tests; clippy's own exception ends at helper functions.

#[path = "net/allocations.rs"]
mod allocations;
#[path = "net/cluster.rs"]
mod cluster;
#[path = "net/framing.rs"]
mod framing;
#[path = "net/hostile.rs"]
mod hostile;
#[path = "net/reference.rs"]
mod reference;
#[path = "net/secure.rs"]
mod secure;
#[path = "net/tcp.rs"]
mod tcp;
