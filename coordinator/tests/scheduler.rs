//! Which rows may exist: who begins, who decodes, who gives way when pages run out.
//!
//! [`actions`] compares whole lists of actions, as [`stranded`] does where experts are missing; [`properties`] lets a scheduler and a
//! flow serve random requests in a small [`world`] that watches them.

#![allow(clippy::unwrap_used)] // As in all tests; clippy's own exception ends at helper functions.

#[path = "scheduler/actions.rs"]
mod actions;
#[path = "scheduler/properties.rs"]
mod properties;
#[path = "scheduler/stranded.rs"]
mod stranded;
#[path = "scheduler/world.rs"]
mod world;
