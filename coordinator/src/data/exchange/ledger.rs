//! Open dispatches: what each may still fill, and when it is overdue.
//!
//! Pure. Dispatch ids count up and are never used again, so the ids that are open lie close together: a table with open
//! addressing finds them, and eight ids that follow one another share two of its cache lines. The rows of a dispatch lie in
//! pieces of one cache line each, out of one pool. Nothing is allocated but when more is open than ever before.

use std::time::{Duration, Instant};

use super::NONE;

/// What a dispatch may fill: a slot, in this life of its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) slot: u32,
    pub(super) life: u32,
}

const ENTRIES: usize = 7;

/// Some of the rows of a dispatch, in one cache line.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Piece {
    entries: [Entry; ENTRIES],
    next: u32,
}

/// One dispatch: one group that was sent.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Dispatch {
    pub(super) id: u64,
    /// When, in nanoseconds since the first.
    pub(super) sent: u64,
    pub(super) link: u32,
    pub(super) actor: u32,
    pub(super) frame: u32,
    pub(super) rows: u32,
    /// Of the placement that it was sent under.
    pub(super) epoch: u32,
    /// The actor had nothing else from us when it was sent.
    pub(super) was_alone: bool,
    /// Sent to be alone: nothing else is sent to its actor until it is back.
    pub(super) is_retry: bool,
    pub(super) is_overdue: bool,
    first_piece: u32,
    of_link: Linked,
    of_all: Linked,
}

#[derive(Debug, Clone, Copy)]
struct Linked {
    before: u32,
    next: u32,
}

/// First and last of a list of dispatches.
#[derive(Debug, Clone, Copy)]
struct Ends {
    first: u32,
    last: u32,
}

const NO_ENDS: Ends = Ends { first: NONE, last: NONE };
const UNLINKED: Linked = Linked { before: NONE, next: NONE };

/// The room that a frame has taken on its link.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameRoom {
    pub(super) charge: u64,
    pub(super) groups_open: u32,
}

/// All open dispatches.
#[derive(Debug)]
pub(super) struct Ledger {
    dispatches: Vec<Dispatch>,
    free: Vec<u32>,
    ids: Ids,
    pieces: Vec<Piece>,
    piece_free: u32,
    frames: Vec<FrameRoom>,
    frames_free: Vec<u32>,
    /// In the order of sending, for each link: all of them.
    of_links: Vec<Ends>,
    /// In the order of sending: those that are not overdue.
    of_all: Ends,
    id_next: u64,
    open: u32,
    /// When the first was sent.
    began: Option<Instant>,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self {
            dispatches: Vec::new(),
            free: Vec::new(),
            ids: Ids::default(),
            pieces: Vec::new(),
            piece_free: NONE,
            frames: Vec::new(),
            frames_free: Vec::new(),
            of_links: Vec::new(),
            of_all: NO_ENDS,
            id_next: 1,
            open: 0,
            began: None,
        }
    }

    /// Nanoseconds since the first dispatch: eight bytes instead of an instant's sixteen.
    pub(super) fn nanos(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.began.unwrap_or(now));
        elapsed.as_secs() * 1_000_000_000 + u64::from(elapsed.subsec_nanos())
    }

    pub(super) fn open_count(&self) -> u32 {
        self.open
    }

    /// The id that the next dispatch will have.
    pub(super) fn id_next(&self) -> u64 {
        self.id_next
    }

    pub(super) fn get(&self, at: u32) -> &Dispatch {
        &self.dispatches[at as usize]
    }

    pub(super) fn find(&self, id: u64) -> Option<u32> {
        self.ids.find(id)
    }

    /// The dispatch of a link that was sent before all others of it.
    pub(super) fn first_of_link(&self, link: u32) -> Option<u32> {
        self.of_links.get(link as usize).map(|ends| ends.first).filter(|first| *first != NONE)
    }

    /// All of a link, in the order of sending.
    pub(super) fn of_link(&self, link: u32) -> impl Iterator<Item = u32> {
        std::iter::successors(self.first_of_link(link), |at| {
            Some(self.dispatches[*at as usize].of_link.next).filter(|next| *next != NONE)
        })
    }

    /// The dispatch that will be overdue next, or is.
    pub(super) fn first(&self) -> Option<u32> {
        Some(self.of_all.first).filter(|first| *first != NONE)
    }

    /// What every open dispatch may still fill.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, Entry)> + '_ {
        self.of_links.iter().flat_map(|ends| self.along(ends.first)).flat_map(|at| {
            let dispatch = &self.dispatches[at as usize];
            let first = Some(dispatch.first_piece).filter(|piece| *piece != NONE);
            let pieces = std::iter::successors(first, |piece| {
                Some(self.pieces[*piece as usize].next).filter(|piece| *piece != NONE)
            });
            let entries = pieces.flat_map(|piece| self.pieces[piece as usize].entries);
            entries.take(dispatch.rows as usize).map(move |entry| (at, entry))
        })
    }

    /// The dispatches of a link, from one on.
    fn along(&self, first: u32) -> impl Iterator<Item = u32> + '_ {
        let first = Some(first).filter(|at| *at != NONE);
        std::iter::successors(first, |at| {
            Some(self.dispatches[*at as usize].of_link.next).filter(|at| *at != NONE)
        })
    }

    /// A frame is begun. Its room is known when its groups are.
    pub(super) fn begin_frame(&mut self) -> u32 {
        let room = FrameRoom { charge: 0, groups_open: 0 };
        match self.frames_free.pop() {
            Some(at) => {
                self.frames[at as usize] = room;
                at
            }
            None => {
                self.frames.push(room);
                self.frames.len() as u32 - 1
            }
        }
    }

    pub(super) fn frame_mut(&mut self, frame: u32) -> &mut FrameRoom {
        &mut self.frames[frame as usize]
    }

    /// Nothing of the frame is open any more.
    pub(super) fn end_frame(&mut self, frame: u32) {
        self.frames_free.push(frame);
    }

    /// Opens a dispatch. `to` says all of it but its id and its rows.
    pub(super) fn open(&mut self, to: To, entries: impl ExactSizeIterator<Item = Entry>) -> u64 {
        let id = self.id_next;
        self.id_next += 1;
        let To { link, actor, frame, epoch, was_alone, is_retry, now } = to;
        self.began.get_or_insert(now);
        let mut dispatch = Dispatch {
            id,
            sent: self.nanos(now),
            link,
            actor,
            frame,
            rows: entries.len() as u32,
            epoch,
            was_alone,
            is_retry,
            is_overdue: false,
            first_piece: NONE,
            of_link: UNLINKED,
            of_all: UNLINKED,
        };
        dispatch.first_piece = self.write(entries);
        let at = match self.free.pop() {
            Some(at) => {
                self.dispatches[at as usize] = dispatch;
                at
            }
            None => {
                self.dispatches.push(dispatch);
                self.dispatches.len() as u32 - 1
            }
        };
        if self.of_links.len() <= link as usize {
            self.of_links.resize(link as usize + 1, NO_ENDS);
        }
        push_back(&mut self.of_links[link as usize], &mut self.dispatches, at, |d| &mut d.of_link);
        push_back(&mut self.of_all, &mut self.dispatches, at, |d| &mut d.of_all);
        self.ids.insert(id, at);
        self.frames[frame as usize].groups_open += 1;
        self.open += 1;
        id
    }

    /// Closes a dispatch and writes what it might have filled, in the order of its rows.
    pub(super) fn close(&mut self, at: u32, entries: &mut Vec<Entry>) -> Dispatch {
        let dispatch = self.dispatches[at as usize];
        self.ids.remove(dispatch.id);
        if !dispatch.is_overdue {
            remove(&mut self.of_all, &mut self.dispatches, at, |d| &mut d.of_all);
        }
        let of_link = &mut self.of_links[dispatch.link as usize];
        remove(of_link, &mut self.dispatches, at, |d| &mut d.of_link);
        self.free.push(at);
        self.open -= 1;
        entries.clear();
        let mut left = dispatch.rows as usize;
        let mut piece = dispatch.first_piece;
        while piece != NONE {
            let this = &mut self.pieces[piece as usize];
            let here = left.min(ENTRIES);
            entries.extend_from_slice(&this.entries[..here]);
            left -= here;
            let next = std::mem::replace(&mut this.next, self.piece_free);
            self.piece_free = std::mem::replace(&mut piece, next);
        }
        dispatch
    }

    /// A dispatch is overdue: it stays open, and is not waited for by itself any more.
    pub(super) fn set_overdue(&mut self, at: u32, entries: &mut Vec<Entry>) -> Dispatch {
        remove(&mut self.of_all, &mut self.dispatches, at, |d| &mut d.of_all);
        self.dispatches[at as usize].is_overdue = true;
        let dispatch = self.dispatches[at as usize];
        entries.clear();
        let mut left = dispatch.rows as usize;
        let mut piece = dispatch.first_piece;
        while piece != NONE {
            let this = &self.pieces[piece as usize];
            let here = left.min(ENTRIES);
            entries.extend_from_slice(&this.entries[..here]);
            left -= here;
            piece = this.next;
        }
        dispatch
    }

    /// When the next dispatch is overdue.
    pub(super) fn next_overdue(&self, time_max: Duration) -> Option<Instant> {
        let sent = self.dispatches[self.first()? as usize].sent;
        self.began.map(|began| began + Duration::from_nanos(sent) + time_max)
    }

    fn write(&mut self, mut entries: impl ExactSizeIterator<Item = Entry>) -> u32 {
        let (mut first, mut last) = (NONE, NONE);
        while entries.len() > 0 {
            let mut piece = Piece { entries: [Entry { slot: NONE, life: 0 }; ENTRIES], next: NONE };
            for (place, entry) in piece.entries.iter_mut().zip(&mut entries) {
                *place = entry;
            }
            let at = match self.piece_free {
                NONE => {
                    self.pieces.push(piece);
                    self.pieces.len() as u32 - 1
                }
                at => {
                    self.piece_free = self.pieces[at as usize].next;
                    self.pieces[at as usize] = piece;
                    at
                }
            };
            match last {
                NONE => first = at,
                _ => self.pieces[last as usize].next = at,
            }
            last = at;
        }
        first
    }
}

/// Where a dispatch goes, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct To {
    pub(super) link: u32,
    pub(super) actor: u32,
    pub(super) frame: u32,
    pub(super) epoch: u32,
    pub(super) was_alone: bool,
    pub(super) is_retry: bool,
    pub(super) now: Instant,
}

fn push_back(
    ends: &mut Ends,
    dispatches: &mut [Dispatch],
    at: u32,
    linked: impl Fn(&mut Dispatch) -> &mut Linked,
) {
    let last = std::mem::replace(&mut ends.last, at);
    *linked(&mut dispatches[at as usize]) = Linked { before: last, next: NONE };
    match last {
        NONE => ends.first = at,
        _ => linked(&mut dispatches[last as usize]).next = at,
    }
}

fn remove(
    ends: &mut Ends,
    dispatches: &mut [Dispatch],
    at: u32,
    linked: impl Fn(&mut Dispatch) -> &mut Linked,
) {
    let Linked { before, next } = *linked(&mut dispatches[at as usize]);
    match before {
        NONE => ends.first = next,
        _ => linked(&mut dispatches[before as usize]).next = next,
    }
    match next {
        NONE => ends.last = before,
        _ => linked(&mut dispatches[next as usize]).before = before,
    }
}

#[derive(Debug, Clone, Copy)]
struct IdPlace {
    id: u64,
    at: u32,
}

/// From open ids to their dispatches: open addressing, linear probing, at most half full.
#[derive(Debug, Default)]
struct Ids {
    places: Vec<IdPlace>,
    len: usize,
}

/// Places of a table that has held anything.
const PLACES_MIN: usize = 64;

impl Ids {
    /// Runs of eight ids stay together, the runs are spread: some that stay open for long are in nobody's way.
    fn home(&self, id: u64) -> usize {
        let run = (id >> 3).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        ((run << 3 | id & 7) as usize) & (self.places.len() - 1)
    }

    fn find(&self, id: u64) -> Option<u32> {
        self.place_of(id).map(|place| self.places[place].at)
    }

    fn place_of(&self, id: u64) -> Option<usize> {
        if self.places.is_empty() {
            return None;
        }
        let mut place = self.home(id);
        loop {
            match self.places[place] {
                IdPlace { at: NONE, .. } => return None,
                found if found.id == id => return Some(place),
                _ => place = (place + 1) & (self.places.len() - 1),
            }
        }
    }

    fn insert(&mut self, id: u64, at: u32) {
        if (self.len + 1) * 2 > self.places.len() {
            let places = (self.places.len() * 2).max(PLACES_MIN);
            let empty = IdPlace { id: 0, at: NONE };
            let old = std::mem::replace(&mut self.places, vec![empty; places]);
            for IdPlace { id, at } in old.into_iter().filter(|place| place.at != NONE) {
                self.put(id, at);
            }
        }
        self.put(id, at);
        self.len += 1;
    }

    fn put(&mut self, id: u64, at: u32) {
        let mut place = self.home(id);
        while self.places[place].at != NONE {
            place = (place + 1) & (self.places.len() - 1);
        }
        self.places[place] = IdPlace { id, at };
    }

    fn remove(&mut self, id: u64) {
        let mut hole = self.place_of(id).expect("only ids that are open are closed");
        let mask = self.places.len() - 1;
        self.len -= 1;
        // Whoever was pushed past the hole moves back into it: every search still ends at the first empty place.
        let mut place = hole;
        loop {
            place = (place + 1) & mask;
            let this = self.places[place];
            if this.at == NONE {
                break;
            }
            if (place.wrapping_sub(self.home(this.id)) & mask) >= (place.wrapping_sub(hole) & mask) {
                self.places[hole] = this;
                hole = place;
            }
        }
        self.places[hole].at = NONE;
    }
}
