//! How a round ended, told to the arbiter that handed its batches over: all of it at once.
//!
//! A round brings a return for each link and a word for each actor, all for one thread. Told one by one from the devices' thread
//! each of them wakes that thread, which has dealt with it and sleeps again before the next comes; and as it often wakes on the
//! core that the devices compute on, they stand still meanwhile: of a layer's time at batch 1 that was a tenth. So the
//! devices' thread says one thing, and goes on to what is queued; returns are sent, and actors told, on the arbiter's thread.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use tokio::sync::mpsc;
use transport::buffer::Buffer;
use transport::wire::groups::{self, Reason};

use super::{Computed, Outcome};
use crate::expert::ExpertActor;
use crate::group::Group;
use crate::post::post;
use crate::returns::ReturnPath;

/// What came of a round, for one arbiter.
#[derive(Default)]
pub(super) struct End {
    pub(super) returns: Vec<Made>,
    pub(super) batches: Vec<Done>,
}

/// A return that is written but for its table.
pub(super) struct Made {
    pub(super) path: Arc<ReturnPath>,
    pub(super) layer: u32,
    /// None: there was no memory for its rows.
    pub(super) buffer: Option<Buffer>,
    pub(super) groups: Vec<groups::Group>,
}

/// A batch that was computed.
pub(super) struct Done {
    pub(super) actor: Addr<ExpertActor>,
    pub(super) groups: Vec<Group>,
    pub(super) busy: Duration,
}

/// An arbiter that is told how rounds end. There are only ever so many ends: an actor has one batch at a time.
#[derive(Clone)]
pub struct Ends(mpsc::UnboundedSender<End>);

thread_local! {
    static HERE: RefCell<Option<Ends>> = const { RefCell::new(None) };
}

impl Ends {
    /// This arbiter.
    pub fn here() -> Self {
        HERE.with_borrow_mut(|here| {
            // A thread may have had an arbiter before this one.
            if let Some(ends) = here.as_ref().filter(|ends| !ends.0.is_closed()) {
                return ends.clone();
            }
            let (tell, mut told) = mpsc::unbounded_channel::<End>();
            actix::spawn(async move {
                while let Some(end) = told.recv().await {
                    end.carry_out();
                }
            });
            here.insert(Self(tell)).clone()
        })
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.same_channel(&other.0)
    }

    /// Tells it. One that has ended has taken its links with it, and nobody waits for what is dropped here.
    pub(super) fn tell(&self, end: End) {
        let _ = self.0.send(end);
    }
}

impl End {
    fn carry_out(self) {
        for made in self.returns {
            made.send();
        }
        for Done { actor, mut groups, busy } in self.batches {
            groups.drain(..).for_each(Group::answered);
            // The list goes back to be filled again.
            post(&actor, Computed { groups, outcome: Outcome::Returned(busy) });
        }
    }
}

impl Made {
    fn send(self) {
        let Self { path, layer, buffer, groups } = self;
        match buffer {
            Some(buffer) => path.send(layer, buffer, groups.into_iter()),
            None => {
                let rows: u32 = groups.iter().map(|group| group.rows).sum();
                tracing::warn!(layer, rows, "no memory for a return, it is refused");
                let refused: Vec<_> = groups.into_iter().map(|group| (group, Reason::Busy)).collect();
                path.refuse(layer, &refused);
            }
        }
    }
}
