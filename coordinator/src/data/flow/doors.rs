//! The doors of the stages: what is ready before each, and which of them the trunk turns to next.
//!
//! Pure. What waits at a door are runs: consecutive rows of one sequence that can be computed together. The line of a
//! door holds the first row of each.
//!
//! # Which door
//!
//! The one with most runs, and of several such the one that has waited longest. The crowd that is served first goes round
//! first, and takes along who waits at the doors it comes to: so batches grow until the trunk is no longer what everybody
//! waits for. Runs are counted and not rows, because a chunk of a prompt is a large batch by itself and gains nothing by
//! being preferred, while a decoded row gains by company.
//!
//! A door that was passed over for [`patience`](Doors::new) batches is due, and due doors are served before all
//! others, oldest first. So no door waits for more than `patience + stages` batches.
//!
//! The best door is kept by a tournament: a change at one door replays its matches only, 6 of them for 64 stages.

use super::lines::{Line, Links, NONE};

#[derive(Debug, Default, Clone)]
struct Door {
    runs: Line,
    ready: u32,
    /// The batch after which the oldest of its runs came, or the door was served last.
    since: u64,
}

/// All doors.
#[derive(Debug)]
pub(super) struct Doors {
    doors: Vec<Door>,
    /// Of rows.
    links: Links,
    /// Doors with anything ready, the one that has waited longest first.
    waiting: Line,
    /// Of doors.
    ages: Links,
    /// Winners: those of `winners[i]` are `winners[2 * i]` and `winners[2 * i + 1]`, leaves are doors.
    winners: Vec<u32>,
    /// Whether door 0 takes part.
    entrance_open: bool,
    /// Rows ready at doors other than 0.
    ready_inside: usize,
    batches: u64,
    patience: u64,
}

impl Doors {
    /// Doors of so many stages, with nothing before them. `patience` is the number of batches for which a door may be
    /// passed over.
    pub(super) fn new(stages: usize, rows_max: usize, patience: u64) -> Self {
        let leaves = stages.next_power_of_two();
        Self {
            doors: vec![Door::default(); stages],
            links: Links::new(rows_max),
            waiting: Line::default(),
            ages: Links::new(stages),
            winners: vec![NONE; 2 * leaves],
            entrance_open: true,
            ready_inside: 0,
            batches: 0,
            patience,
        }
    }

    /// Rows ready at doors other than the first.
    pub(super) fn ready_inside(&self) -> usize {
        self.ready_inside
    }

    /// Whether anything is ready at the first door.
    pub(super) fn is_anyone_outside(&self) -> bool {
        !self.doors[0].runs.is_empty()
    }

    /// Whether [`best`](Self::best) may name the first door.
    pub(super) fn set_entrance_open(&mut self, open: bool) {
        if open == self.entrance_open {
            return;
        }
        self.entrance_open = open;
        if !self.doors[0].runs.is_empty() {
            match open {
                true => self.enlist(0),
                false => self.ages.remove(&mut self.waiting, 0),
            }
            self.replay(0);
        }
    }

    /// A run that begins with `row` is ready. Its rows are counted by [`handle_ready`](Self::handle_ready).
    pub(super) fn push(&mut self, stage: u32, row: u32) {
        let door = &mut self.doors[stage as usize];
        self.links.push_back(&mut door.runs, row);
        if door.runs.len() == 1 && self.takes_part(stage) {
            self.enlist(stage);
        }
        self.replay(stage);
    }

    /// One more row is ready, as the first of a run or after another.
    pub(super) fn handle_ready(&mut self, stage: u32) {
        self.doors[stage as usize].ready += 1;
        self.ready_inside += usize::from(stage > 0);
    }

    /// A ready row was taken or dropped.
    pub(super) fn handle_gone(&mut self, stage: u32) {
        self.doors[stage as usize].ready -= 1;
        self.ready_inside -= usize::from(stage > 0);
    }

    /// The run that begins with `row` is dropped.
    pub(super) fn remove(&mut self, stage: u32, row: u32) {
        let door = &mut self.doors[stage as usize];
        self.links.remove(&mut door.runs, row);
        if door.runs.is_empty() && self.takes_part(stage) {
            self.ages.remove(&mut self.waiting, stage);
        }
        self.replay(stage);
    }

    /// The door to turn to.
    pub(super) fn best(&self) -> Option<u32> {
        let oldest = self.waiting.first()?;
        if self.doors[oldest as usize].since + self.patience <= self.batches {
            return Some(oldest);
        }
        Some(self.winners[1])
    }

    /// Takes the oldest run of a door for a batch, which [`end_batch`](Self::end_batch) ends.
    pub(super) fn take(&mut self, stage: u32) -> Option<u32> {
        self.links.pop_front(&mut self.doors[stage as usize].runs)
    }

    /// Puts back what is left of a run that was cut, before all others.
    pub(super) fn put_back(&mut self, stage: u32, row: u32) {
        self.links.push_front(&mut self.doors[stage as usize].runs, row);
    }

    /// A batch was taken from this door. What is left there begins to wait anew.
    pub(super) fn end_batch(&mut self, stage: u32) {
        self.batches += 1;
        if self.takes_part(stage) {
            self.ages.remove(&mut self.waiting, stage);
            if !self.doors[stage as usize].runs.is_empty() {
                self.enlist(stage);
            }
        }
        self.replay(stage);
    }

    fn takes_part(&self, stage: u32) -> bool {
        stage > 0 || self.entrance_open
    }

    fn enlist(&mut self, stage: u32) {
        self.doors[stage as usize].since = self.batches;
        self.ages.push_back(&mut self.waiting, stage);
    }

    fn replay(&mut self, stage: u32) {
        let mut at = self.winners.len() / 2 + stage as usize;
        let waits = !self.doors[stage as usize].runs.is_empty() && self.takes_part(stage);
        self.winners[at] = if waits { stage } else { NONE };
        while at > 1 {
            at /= 2;
            self.winners[at] = self.better(self.winners[2 * at], self.winners[2 * at + 1]);
        }
    }

    fn better(&self, a: u32, b: u32) -> u32 {
        if a == NONE || b == NONE {
            return a.min(b);
        }
        let (first, second) = (&self.doors[a as usize], &self.doors[b as usize]);
        let by_runs = first.runs.len().cmp(&second.runs.len());
        match by_runs.then(second.since.cmp(&first.since)) {
            std::cmp::Ordering::Greater => a,
            _ => b,
        }
    }
}
