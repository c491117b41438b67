//! Nodes in this process and in others, before a coordinator that is nothing but `support`.
#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

mod breaches;
mod emulation;
mod falls;
mod orders;
mod program;
mod serve;
mod support;
