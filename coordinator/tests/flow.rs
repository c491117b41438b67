//! Which rows the trunk computes next, and how they go on.
//!
//! [`actions`] compares whole lists of batches; [`properties`] drives a flow at random beside a model of it that is as
//! simple as it is slow ([`oracle`]).

#![allow(clippy::unwrap_used)] // As in all tests; clippy's own exception ends at helper functions.

#[path = "flow/actions.rs"]
mod actions;
#[path = "flow/oracle.rs"]
mod oracle;
#[path = "flow/properties.rs"]
mod properties;
