//! How actors are told what they must hear, whatever stands in their mailboxes.
//!
//! A mailbox has a limit, and groups of dispatches keep to it: who cannot be given one is refused. What is sent by
//! [`post`] goes past the limit, so only messages may be sent that bound themselves: that is what [`Bounded`] says,
//! and why, for each of them. `do_send` is for this file alone (`clippy.toml`).

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Message, Recipient};

/// A message of which there are only ever so many.
pub(crate) trait Bounded: Message<Result = ()> + Send + 'static {}

/// Sends a message past the limit of the mailbox. An actor that has ended does not hear it.
#[allow(clippy::disallowed_methods, reason = "see above")]
pub(crate) fn post<A, M>(to: &Addr<A>, message: M)
where
    M: Bounded,
    A: Actor<Context: ToEnvelope<A, M>> + Handler<M>,
{
    to.do_send(message);
}

/// The same, where only the message is known.
#[allow(clippy::disallowed_methods, reason = "see above")]
pub(crate) fn post_to<M: Bounded>(to: &Recipient<M>, message: M) {
    to.do_send(message);
}

macro_rules! bounded {
    ($($message:ty: $why:literal;)*) => {
        $(
            #[doc = $why]
            impl Bounded for $message {}
        )*
    };
}

bounded! {
    crate::device::Computed: "One for each batch, and an actor has one batch at a time.";
    crate::expert::Fall: "As many as tests ask for.";
    crate::expert::Leave: "One in an actor's life.";
    crate::expert::LinkEnded: "One for each link, and links are dialled at bounded distances.";
    crate::supervisor::Fetch: "One for each errand of a node's own.";
    crate::supervisor::Take: "One for each errand of a node's own.";
    crate::supervisor::Remove: "One for each actor that was started.";
    crate::supervisor::Fell: "One in an actor's life.";
    crate::supervisor::ActorFell: "One for each of the above.";
    crate::loader::Loaded: "One for each errand of a node's own.";
    crate::session::Linked: "One for each link.";
    crate::session::Unlinked: "One for each link.";
    crate::session::Over: "One for each coordinator.";
    crate::handle::Command: "As many as whoever holds the node asks for.";
}
