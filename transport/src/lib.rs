//! Bytes between named peers. It imports no other crate of this workspace.

pub mod wire;
