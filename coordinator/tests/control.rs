//! The cores of the control plane: whole action lists in virtual time, and properties of random clusters.

mod control {
    mod make;
    mod membership;
    mod placement;
    mod placement_property;
    mod publisher;
    mod stability;
}
