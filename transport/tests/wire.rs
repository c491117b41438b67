//! What stands on the wire, held against `docs/protocol.md`, and against everything that a peer may send.

#![allow(clippy::unwrap_used)] // As in all tests; clippy's own exception ends at helper functions.

#[path = "wire/golden.rs"]
mod golden;
#[path = "wire/groups.rs"]
mod groups;
#[path = "wire/hostile.rs"]
mod hostile;
#[path = "wire/largest.rs"]
mod largest;
#[path = "wire/messages.rs"]
mod messages;
