//! How what people say of programs is read, the same way by all of them.
//!
//! | module | reads |
//! |---|---|
//! | `values` | sizes, cores, how the log is written: from a flag, a variable, or a file |
//! | `compute` | which kernels compute, and on how many threads |
//! | `program` | the file of settings and the variables of the environment; begins the log |
//! | `descriptors` | how many files may be open |
//!
//! `values` is pure. It may import `model`, and no other crate of ours.

#![forbid(unsafe_code)]

pub mod compute;
pub mod descriptors;
pub mod program;
pub mod values;

pub use values::{Bytes, Cores, LogFormat};
