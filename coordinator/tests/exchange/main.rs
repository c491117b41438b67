//! The exchange in virtual time: whole lists of what it asks for, and a random cluster against a plain model of it.

#![allow(clippy::unwrap_used)] // As in all tests; clippy's own exception ends at helper functions.

mod failures;
mod missing;
mod random;
mod rooms;
mod routes;
mod stranded;
mod support;
