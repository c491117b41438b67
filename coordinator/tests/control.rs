//! The cores of the control plane: whole action lists in virtual time, and properties of random clusters.
#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

mod control {
    mod bias;
    mod events;
    mod improve;
    mod loads;
    mod make;
    mod may_drain;
    mod membership;
    mod placement;
    mod placement_property;
    mod publisher;
    mod rebalance;
    mod stability;
}
