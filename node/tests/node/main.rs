//! Nodes in this process and in others, before a coordinator that is nothing but `support`.

mod breaches;
mod falls;
mod orders;
mod program;
mod serve;
mod support;
