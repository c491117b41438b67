//! The data plane: from an admitted request to its tokens.
//!
//! It reads the placement that the control plane publishes and sends observations back; nothing else crosses.

pub mod flow;
pub mod forwarding;
pub mod ids;
pub mod scheduler;
