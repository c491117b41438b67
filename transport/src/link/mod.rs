//! The protocol of one link, without its bytes.
//!
//! Pure: no socket, no clock, no randomness. A [`Link`] is told what happened (`handle_*`) and asked what
//! to do (`poll_*`); time is an argument. Whoever drives it, after every `handle_*`:
//!
//! 1. sends what [`Link::poll_control`] yields on the control lane, until it yields nothing,
//! 2. carries out what [`Link::poll_event`] yields, until it yields nothing,
//! 3. sets its timer to [`Link::poll_timeout`].
//!
//! In this order the last words of a link are on their way before [`Event::Closed`] ends it.
//!
//! # The life of a link
//!
//! ```text
//! Greeting --Hello/Welcome--> Attaching --both lanes--> Open --Drain--> Draining --> Finishing --> Closed
//!     |                           |                       |                 |             |           ^
//!     +---------------------------+-----------------------+-----------------+-------------+-----------+
//!                      refused, broken, lost, silent, too slow, closed by either end
//! ```
//!
//! The accepting end may open while the other still waits for the answers on its lanes, so the dialling end
//! takes messages from its `Welcome` on. The accepting end takes none before it is open itself: its shell
//! calls [`Link::handle_attached`] before it answers `Attached`.
//!
//! # Draining
//!
//! Either end says `Drain`, and from then on neither begins a dispatch. The lanes are not ordered among one
//! another, so no end can know from its own tables that nothing comes any more: a dispatch may still be on
//! the data lane. Therefore each end says `Close(Drained)` for itself once what it sent has returned, and
//! what was sent to it is answered. Until it has said so it may still tell of the cluster, and says so only when
//! nothing of that waits any more: whatever was accepted for sending arrives. Whoever has said and heard it finishes its lanes. The link is closed
//! when all lanes have ended in both directions.
//!
//! # Last words
//!
//! A lane that is lost while the link is open may have been lost because the peer ended the link, and then its reason is
//! on the control lane, which is not ordered with the lane. So that loss is held back for a moment; what the peer says in
//! it is the end of the link, or else the loss is.
//!
//! # What a message costs
//!
//! Heartbeats, grants, the handshake and what ends a link are free, for they must go when nothing else can.
//! All of them are few by construction, or cost the receiver nothing to keep. Every other control message is
//! charged on the control lane like a frame, and its room is given back when it has been dealt with: a probe
//! once its echo is on its way, a message of the cluster once the application has read it. Peers that flood are
//! broken by the same rule that stops honest ones.

mod charged;
mod counters;
mod credit;
mod ended;
mod ending;
mod event;
mod handshake;
mod id_map;
mod in_flight;
mod opening;
mod rhythm;
mod state;
mod told;
mod traffic;

pub use charged::{ProbeRefused, RenewRefused, is_charged};
pub use counters::Counters;
pub use credit::SendRefused;
pub use ended::{Broken, Ended, Why};
pub use event::Event;
pub use handshake::Local;
pub use in_flight::DispatchRefused;
pub use state::{Link, Side, State};
pub use told::TellRefused;
