//! Devices, and the experts placed on them: the side of the program that knows no request.
//!
//! It may import `model` and `transport`, never `coordinator`. Modules stand in the order in which a dispatch meets
//! them; cores (`batcher`, `holdings`, `restarts`) are pure, the others are shells.
//!
//! | module | what it does with a dispatch |
//! |---|---|
//! | `receive` | the data lane of a link: checks the frame, hands its groups to actors |
//! | `directory` | finds them by name |
//! | `group` | rows of one dispatch for one actor, on their way |
//! | `expert` | one actor: mailbox, batcher, device |
//! | `batcher` | which groups are computed together |
//! | `device` | computes what all actors of its pool have handed over |
//! | `returns` | the way back over the link |
//!
//! Beside them stand devices and wires that are not there (`emulation`), who keeps actors alive (`supervisor`, `restarts`), who brings weights (`loader`, `source`, `fetch`), and
//! the node itself, which obeys coordinators (`agent`, `session`, `holdings`).

#![forbid(unsafe_code)]

pub mod config;
pub mod settings;

mod post;
mod receive;

pub mod batcher;
pub mod device;
pub mod directory;
pub mod expert;
pub mod group;
pub mod returns;

pub mod emulation;

pub mod restarts;
pub mod supervisor;

pub mod fetch;
pub mod loader;
pub mod source;

pub mod agent;
pub mod handle;
pub mod holdings;
mod session;

pub mod host;
pub mod runtime;

pub use emulation::Emulation;
pub use handle::{NodeHandle, NodeStatus, StartError, start};
pub use runtime::{Runtime, RuntimeSettings};
pub use settings::{CoordinatorAddress, Settings, SettingsError};
