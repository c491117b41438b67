//! Which rows the trunk computes next, and how they go on.
//!
//! [`actions`] compares whole lists of batches; [`properties`] drives a flow at random beside a model of it that is as
//! simple as it is slow ([`oracle`]); [`simulation`] puts it into a cluster of service times, in which [`forwarding`] has to
//! find out by itself what is best; in [`held`] an expert does not answer.

#![allow(clippy::unwrap_used)] // As in all tests; clippy's own exception ends at helper functions.

#[path = "flow/actions.rs"]
mod actions;
#[path = "flow/forwarding.rs"]
mod forwarding;
#[path = "flow/held.rs"]
mod held;
#[path = "flow/oracle.rs"]
mod oracle;
#[path = "flow/properties.rs"]
mod properties;
#[path = "flow/simulation.rs"]
mod simulation;
