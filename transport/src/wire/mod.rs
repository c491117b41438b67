//! What stands on the wire, byte by byte; `docs/protocol.md` says the same for people.
//!
//! Pure. [`header`] is the fixed header of every frame, [`groups`] the table that a dispatch or return
//! carries before its rows, [`control`] the closed set of control messages, [`cluster`] those of them that nodes
//! and coordinators say of experts, [`enrolment`] those of getting a certificate, [`codec`] their bytes, [`crc`]
//! the checksum.

pub mod cluster;
pub mod codec;
pub mod control;
pub mod crc;
pub mod enrolment;
pub mod groups;
pub mod header;
mod lane;

pub use control::{Control, ControlError, control_frame, read_control};
pub use header::{Element, FINISH, HEADER_BYTES, Header, HeaderError, Kind, VERSION};
pub use lane::{Lane, PerLane, charge};
