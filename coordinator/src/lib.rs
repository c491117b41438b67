//! Whole requests: the side of the program that knows tokens, sequences and people's text.
//!
//! It may import `model` and `transport`, never `node`. Cores (pure: events in, actions out) and the
//! shells that carry them out are kept apart.

pub mod generation;
