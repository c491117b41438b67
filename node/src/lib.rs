//! Devices, and the experts placed on them: the side of the program that knows no request.
//!
//! It may import `model` and `transport`, never `coordinator`.

pub mod host;
