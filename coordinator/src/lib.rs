//! Whole requests: scheduler, trunk, routing, and the control plane. It holds no expert's weights.
//!
//! It may import `model` and `transport`, never `node`. [`api`] is what clients speak to, [`texts`] stands between
//! their words and ids, [`data`] is the way of a token, [`placement`] what the control plane tells it,
//! [`trace`] what a collector hears of it. [`config`],
//! [`assemble`] and [`program`] make a program of them.

pub mod api;
pub mod assemble;
pub mod choice;
pub mod config;
pub mod control;
pub mod data;
pub mod generation;
pub mod grammar;
pub mod placement;
pub mod program;
pub mod start;
pub mod texts;
pub mod trace;
pub mod weights;
