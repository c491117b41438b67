//! The carriers as their users have them: endpoints, peers and inlets of the crate `transport`.

pub(super) mod link;
pub(super) mod memory;
pub(super) mod quic;
pub(super) mod shm;
pub(super) mod tcp;
