//! Bytes between named peers. It imports no other crate of this workspace.
//!
//! The modules in the order a frame meets them: a sender takes a [`buffer`], fills it, names it in a
//! [`wire`] header and gives the [`Frame`] to its [`peer`]; the [`link`] says whether it may go now;
//! a [`carrier`] takes it across. [`security`] decides who the peer is.

pub mod buffer;
pub mod carrier;
pub mod frame;
pub mod limits;
pub mod link;
pub mod peer;
pub mod security;
pub mod wire;

pub use frame::Frame;
pub use limits::Limits;
pub use wire::Lane;
