//! The exchange: rows out to the experts, and back.
//!
//! Pure: every instant is passed in, and no byte of a row is seen here. The shell frames what [`Exchange::poll_dispatch`]
//! yields, and copies what [`Exchange::handle_return`] takes to where it says.
//!
//! A row at a layer is `top_k` **pairs** (row, rank), and a pair is one **slot** for each shard of its expert. Each
//! slot waits in the queue of its expert and shard until a replica takes it, is **out** in a dispatch, and is **filled**
//! by the first return that brings it. A row is whole when all its slots are filled. In the order in which a slot meets
//! them:
//!
//! | file | holds |
//! |---|---|
//! | `landing` | rows and slots: what has come, what is missing |
//! | `router` | queues, actors and links: who may take what, and who is the less loaded |
//! | `compose` | the frame: as many groups for one link as there is room for |
//! | `ledger` | open dispatches: what each may still fill, and when it is overdue |
//! | `settle` | what follows when a dispatch returned, was refused, or died |
//! | `late` | what is out to a peer that has gone silent |
//! | `stranded` | rows that wait for experts that nobody holds |
//! | `missing` | rows that go on without those |
//!
//! **Replicas are chosen when a frame is made**, not when rows come: whoever has room first takes what waits. All that
//! waits for an expert goes to one replica in one dispatch, unless that would overload it.
//!
//! **Bounds.** A slot waits at most once, so all queues together are bounded by the slots there are. What is out is
//! bounded on each link by its [`LinkRoom`], and on each actor by half of its link's: a frame's room is free again only
//! when its last group is back, so what an actor holds is counted in the credit of the *frames* that it has a part in.
//! All the room of a frame is taken in one step, or none: nobody holds one resource while he waits for another.
//!
//! **A return is taken if and only if** its dispatch is open on its link and its slot is empty. Slots are used again
//! when their row comes back at its next layer, so an attempt remembers the life of the row that it was made in: one
//! that outlived it finds no slot. A row that failed or was cancelled is handed back only when nothing of it is out, so
//! that nodes never have more to do than there are rows.

mod compose;
mod counters;
mod deadlines;
mod events;
mod interface;
mod landing;
mod late;
mod ledger;
mod links;
mod missing;
mod observed;
mod router;
mod seats;
mod settle;
mod stranded;
mod waits;

pub use counters::ExchangeCounters;
pub use events::Exchange;
pub use interface::{
    AttemptEnd, ExchangeSettings, LinkRoom, NOWHERE, Outgoing, OutgoingGroup, Returned, RowFailed,
};
pub use missing::LeftOut;
pub use observed::{ActorSeen, LinkSeen};
pub use stranded::{Lack, Stranded};
pub use waits::{Held, Wait};

/// No index.
const NONE: u32 = u32::MAX;
