//! Who is in the cluster, who holds what, and when that changes: the control plane.
//!
//! All but `actor`, `admin`, `balance`, `hear`, `layout`, `store` and `view` are cores: events in, actions out, time an argument. The control actor strings
//! them together:
//!
//! ```text
//! links --> membership --> Cluster --+
//!                                    +--> policy::place --> wanted Placement --> publisher --> Hold, Placement
//! loads ----> loads -> Statistics ---+                                              ^
//!               +----> rebalance --------> policy::improve -------------------------+
//!               +----> bias -------------> versions -----------------------------------------> API
//! ```
//!
//! The data plane reads the published [`Placement`](crate::placement::Placement) and sends observations back.
//! Nothing else crosses: a bias goes with the requests that begin under it.

pub mod actor;
pub mod admin;
mod admission;
pub mod balance;
pub mod bias;
pub mod cluster;
pub mod diff;
pub mod drain;
pub mod events;
mod hear;
mod layout;
pub mod loads;
pub mod may_drain;
pub mod membership;
pub mod placer;
pub mod policy;
pub mod publisher;
pub mod rebalance;
pub(crate) mod stop;
pub mod store;
pub mod term;
pub mod trips;
pub mod versions;
pub mod view;
