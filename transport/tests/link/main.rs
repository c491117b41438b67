//! The link's core, driven by hand: whole lists of actions, hostile peers, two ends back to back, and what a
//! step costs.

mod hostile;
mod pair;
mod script;
mod steps;
mod support;
mod told;
