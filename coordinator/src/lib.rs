//! Whole requests: scheduler, trunk, routing, and the control plane. It holds no expert's weights.
//!
//! It may import `model` and `transport`, never `node`. [`data`] is the way of a token, [`placement`] what the
//! control plane tells it.

pub mod data;
pub mod generation;
pub mod placement;
pub mod weights;
