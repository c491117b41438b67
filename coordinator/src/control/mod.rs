//! Who is in the cluster, who holds what, and when that changes: the control plane.
//!
//! All but `actor`, `store` and `view` are cores: events in, actions out, time an argument. The control actor strings
//! them together:
//!
//! ```text
//! links --> membership --> Cluster --+
//!                                    +--> policy::place --> wanted Placement --> publisher --> Hold, Placement
//! loads --> load --> Statistics -----+                                              ^
//!             +-----> rebalance ----------------------------------------------------+
//! ```
//!
//! The data plane reads the published [`Placement`](crate::placement::Placement) and sends observations back.
//! Nothing else crosses.

pub mod actor;
mod admission;
pub mod cluster;
pub mod diff;
pub mod membership;
pub mod placer;
pub mod policy;
pub mod publisher;
pub mod store;
pub mod term;
pub mod view;
