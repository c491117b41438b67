//! Peers that mean harm, at a listener that has a good one too.
//!
//! Whatever they do, the good link goes on (every row that returns is compared bit for bit, all the time), no
//! thread panics, memory and descriptors come back, and the end of each bad link says what was wrong. What a
//! lane or the core of a link makes of single frames and messages is tested beside them (`net`, `link`, `wire`);
//! here everything is put together, over real sockets of this host.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

mod certificates;
mod floods;
mod noise;
mod prefixes;
mod raw;
mod replays;
mod slow;
mod target;
