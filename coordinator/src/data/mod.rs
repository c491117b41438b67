//! The data plane: from an admitted request to its tokens.
//!
//! It reads the placement that the control plane publishes and sends observations back; nothing else crosses.
//! `scheduler`, `flow` and `exchange` are its cores; `actor` drives them, `trunk` computes what they want.

pub mod request;

pub mod pace;
pub mod scheduler;

mod ahead;
pub mod flow;
pub mod forwarding;
pub mod stage;
pub mod trunk;

pub mod exchange;
pub mod frames;
pub mod landing;

pub mod actor;
pub mod aside;
mod carry_out;
pub mod patience;
mod pump;
mod ready;
pub mod report;
pub mod start;
pub mod steer;
pub mod traced;
pub mod why;

pub mod ids;
