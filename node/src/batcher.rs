//! Which groups one actor computes together, and what becomes of the others.
//!
//! Pure: every instant is passed in, and a group is a small handle; whoever has its rows keeps them.
//!
//! *Never wait when idle*: what is there is computed at once, a single row too. *Never split when busy*: what
//! arrives while a batch is computed is taken together next, in the order of arrival. A group is never cut: it comes
//! back as one, so it is computed as one, and where it is larger than a batch may be it is a batch of its own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use transport::wire::groups::Reason;

/// A group, as the shell knows it: used again once it has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u32);

/// The link that a group came over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// A group that waits to be computed, or is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Which.
    pub group: GroupId,
    /// Over which link it came.
    pub link: LinkId,
    /// How many rows it has.
    pub rows: u32,
    /// When it came.
    pub arrived: Instant,
    /// When nobody waits for it any more.
    pub deadline: Instant,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Compute [`Batcher::batch`]. Its end is `handle_computed` or `handle_fallen`.
    Compute,
    /// Send it back without rows.
    Refuse(GroupId, Reason),
    /// Forget it: nobody is there to be answered.
    Drop(GroupId),
}

/// What an actor has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Rows computed.
    pub rows: u64,
    /// Batches computed.
    pub batches: u64,
    /// Time that the device spent on them.
    pub busy: Duration,
    /// Time from their arrival to their return, summed over rows.
    pub service: Duration,
}

/// The queue of one actor.
#[derive(Debug)]
pub struct Batcher {
    rows_max: u32,
    waiting: VecDeque<Waiting>,
    /// Rows in `waiting`.
    waiting_rows: u32,
    /// Under way, if it is not empty.
    batch: Vec<Waiting>,
    actions: VecDeque<Action>,
    work: Work,
}

impl Batcher {
    /// An empty queue. A batch has at most `rows_max` rows: more rows read the weights less often, and keep the
    /// device from other actors for longer.
    pub fn new(rows_max: u32) -> Self {
        assert!(rows_max > 0, "a batch has a row");
        Self {
            rows_max,
            waiting: VecDeque::new(),
            waiting_rows: 0,
            batch: Vec::new(),
            actions: VecDeque::new(),
            work: Work::default(),
        }
    }

    /// Goes on counting from what another life of the actor has done.
    pub fn with_work(self, work: Work) -> Self {
        Self { work, ..self }
    }

    /// A group came, or came back from an actor that fell before it was computed.
    pub fn handle_group(&mut self, group: Waiting) {
        self.waiting_rows += group.rows;
        self.waiting.push_back(group);
    }

    /// The batch under way has been computed and returned; the device spent `busy` on it.
    pub fn handle_computed(&mut self, busy: Duration, now: Instant) {
        self.work.batches += 1;
        self.work.busy += busy;
        for group in self.batch.drain(..) {
            self.work.rows += u64::from(group.rows);
            self.work.service += now.saturating_duration_since(group.arrived) * group.rows;
        }
    }

    /// The batch under way fell.
    pub fn handle_fallen(&mut self) {
        let refused = self.batch.drain(..).map(|group| Action::Refuse(group.group, Reason::Failed));
        self.actions.extend(refused);
    }

    /// A link ended. What came over it and waits is dropped; what is computed of it is returned to nobody.
    pub fn handle_link_ended(&mut self, link: LinkId) {
        self.waiting.retain(|group| {
            let stays = group.link != link;
            if !stays {
                self.waiting_rows -= group.rows;
                self.actions.push_back(Action::Drop(group.group));
            }
            stays
        });
    }

    /// The actor is to leave: whoever waits is sent elsewhere.
    pub fn handle_leave(&mut self) {
        self.waiting_rows = 0;
        let refused = self.waiting.drain(..).map(|group| Action::Refuse(group.group, Reason::NotHeld));
        self.actions.extend(refused);
    }

    /// Whom to answer at once; never a batch.
    pub fn poll_answer(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// What is to be done next. To be asked until there is nothing.
    pub fn poll_action(&mut self, now: Instant) -> Option<Action> {
        if let Some(action) = self.poll_answer() {
            return Some(action);
        }
        if !self.batch.is_empty() {
            return None;
        }
        let mut rows = 0;
        while let Some(&next) = self.waiting.front() {
            if next.deadline <= now {
                self.actions.push_back(Action::Refuse(next.group, Reason::Late));
            } else if self.batch.is_empty() || next.rows <= self.rows_max - rows.min(self.rows_max) {
                rows += next.rows;
                self.batch.push(next);
            } else {
                break;
            }
            self.waiting_rows -= next.rows;
            self.waiting.pop_front();
        }
        // The device first: whoever is refused has lost more time than this takes.
        if self.batch.is_empty() { self.poll_answer() } else { Some(Action::Compute) }
    }

    /// The batch under way, in the order of arrival; empty if the actor is idle.
    pub fn batch(&self) -> &[Waiting] {
        &self.batch
    }

    /// Groups that wait.
    pub fn waiting(&self) -> impl Iterator<Item = &Waiting> {
        self.waiting.iter()
    }

    /// Rows that wait.
    pub fn waiting_rows(&self) -> u32 {
        self.waiting_rows
    }

    /// What has been done so far.
    pub fn work(&self) -> Work {
        self.work
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn group(group: u32, link: u64, rows: u32, arrived: Instant) -> Waiting {
        Waiting {
            group: GroupId(group),
            link: LinkId(link),
            rows,
            arrived,
            deadline: arrived + Duration::from_secs(10),
        }
    }

    /// All that is to be done now; a batch with its groups.
    fn actions(batcher: &mut Batcher, now: Instant) -> Vec<(Action, Vec<u32>)> {
        let mut all = Vec::new();
        while let Some(action) = batcher.poll_action(now) {
            let batch = if action == Action::Compute { batcher.batch() } else { &[] };
            all.push((action, batch.iter().map(|group| group.group.0).collect()));
        }
        all
    }

    fn compute(groups: &[u32]) -> (Action, Vec<u32>) {
        (Action::Compute, groups.to_vec())
    }

    fn refuse(group: u32, reason: Reason) -> (Action, Vec<u32>) {
        (Action::Refuse(GroupId(group), reason), Vec::new())
    }

    /// An idle device takes a single row; what comes meanwhile is one batch, whatever it came with.
    #[test]
    fn an_idle_device_waits_for_nobody_and_a_busy_one_takes_all_next() {
        let now = Instant::now();
        let mut batcher = Batcher::new(64);
        batcher.handle_group(group(0, 1, 1, now));
        assert_eq!(actions(&mut batcher, now), [compute(&[0])]);
        for id in 1..4 {
            batcher.handle_group(group(id, u64::from(id % 2), 5, now));
            assert_eq!(actions(&mut batcher, now), []);
        }
        assert_eq!(batcher.waiting_rows(), 15);
        batcher.handle_computed(2 * MS, now + 3 * MS);
        assert_eq!(actions(&mut batcher, now + 3 * MS), [compute(&[1, 2, 3])]);
        batcher.handle_computed(MS, now + 4 * MS);
        assert_eq!(actions(&mut batcher, now + 4 * MS), []);
        let work = Work { rows: 16, batches: 2, busy: 3 * MS, service: 63 * MS };
        assert_eq!(batcher.work(), work);
    }

    /// A group is one return, so it is one computation; the next larger one waits for the next batch, in order.
    #[test]
    fn a_batch_ends_before_the_group_that_is_too_much() {
        let now = Instant::now();
        let mut batcher = Batcher::new(10);
        for (id, rows) in [4, 6, 1, 25, 10, 1].into_iter().enumerate() {
            batcher.handle_group(group(id as u32, 1, rows, now));
        }
        for batch in [&[0_u32, 1][..], &[2], &[3], &[4], &[5]] {
            assert_eq!(actions(&mut batcher, now), [compute(batch)]);
            batcher.handle_computed(MS, now);
        }
        assert_eq!((actions(&mut batcher, now), batcher.waiting_rows()), (vec![], 0));
    }

    /// Nobody waits for it any more, and the device's time belongs to others.
    #[test]
    fn a_group_whose_time_is_over_is_refused_and_not_computed() {
        let now = Instant::now();
        let mut batcher = Batcher::new(10);
        let late = Waiting { deadline: now + MS, ..group(1, 1, 3, now) };
        batcher.handle_group(group(0, 1, 1, now));
        assert_eq!(actions(&mut batcher, now), [compute(&[0])]);
        batcher.handle_group(late);
        batcher.handle_group(group(2, 1, 1, now));
        batcher.handle_group(Waiting { group: GroupId(3), ..late });
        batcher.handle_computed(MS, now + MS);
        assert_eq!(
            actions(&mut batcher, now + MS),
            [compute(&[2]), refuse(1, Reason::Late), refuse(3, Reason::Late)]
        );
        batcher.handle_group(Waiting { group: GroupId(4), ..late });
        batcher.handle_computed(MS, now + MS);
        assert_eq!(actions(&mut batcher, now + MS), [refuse(4, Reason::Late)]);
    }

    /// Only the groups that were computed together share the guilt.
    #[test]
    fn a_fall_refuses_its_batch_and_nobody_else() {
        let now = Instant::now();
        let mut batcher = Batcher::new(10);
        batcher.handle_group(group(0, 1, 1, now));
        assert_eq!(actions(&mut batcher, now), [compute(&[0])]);
        batcher.handle_group(group(1, 1, 1, now));
        batcher.handle_fallen();
        assert_eq!(actions(&mut batcher, now), [refuse(0, Reason::Failed), compute(&[1])]);
        assert_eq!(batcher.work(), Work::default());
    }

    #[test]
    fn groups_of_a_link_that_ended_are_dropped() {
        let now = Instant::now();
        let mut batcher = Batcher::new(10);
        for (id, link) in [7, 8, 7, 8].into_iter().enumerate() {
            batcher.handle_group(group(id as u32, link, 1, now));
        }
        batcher.handle_link_ended(LinkId(7));
        let dropped = |id| (Action::Drop(GroupId(id)), vec![]);
        assert_eq!(actions(&mut batcher, now), [dropped(0), dropped(2), compute(&[1, 3])]);
        batcher.handle_link_ended(LinkId(8));
        assert_eq!(actions(&mut batcher, now), [], "what is computed goes on");
    }

    #[test]
    fn whoever_waits_for_an_actor_that_leaves_is_sent_elsewhere() {
        let now = Instant::now();
        let mut batcher = Batcher::new(10);
        batcher.handle_group(group(0, 1, 1, now));
        assert_eq!(actions(&mut batcher, now), [compute(&[0])]);
        batcher.handle_group(group(1, 1, 1, now));
        batcher.handle_leave();
        assert_eq!(actions(&mut batcher, now), [refuse(1, Reason::NotHeld)]);
        assert_eq!(batcher.waiting_rows(), 0);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Group { link: u64, rows: u32, life_ms: u32 },
        Computed,
        Fallen,
        LinkEnded(u64),
        Wait(u32),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0..3_u64, 1..20_u32, 1..30_u32)
                .prop_map(|(link, rows, life_ms)| Event::Group { link, rows, life_ms }),
            3 => Just(Event::Computed),
            1 => Just(Event::Fallen),
            1 => (0..3_u64).prop_map(Event::LinkEnded),
            1 => (1..10_u32).prop_map(Event::Wait),
        ]
    }

    proptest! {
        /// Whatever happens: a group has one end, batches keep the order and the bound, and the device is never
        /// idle while somebody waits.
        #[test]
        fn every_group_has_exactly_one_end(events in proptest::collection::vec(event(), 1..200)) {
            const ROWS_MAX: u32 = 16;
            let mut now = Instant::now();
            let mut batcher = Batcher::new(ROWS_MAX);
            let mut next = 0;
            let mut open = std::collections::BTreeMap::new();
            let mut computed_last = None;
            for event in events {
                match event {
                    Event::Group { link, rows, life_ms } => {
                        let group = Waiting { deadline: now + life_ms * MS, ..group(next, link, rows, now) };
                        open.insert(next, group);
                        next += 1;
                        batcher.handle_group(group);
                    }
                    Event::Computed if !batcher.batch().is_empty() => {
                        for group in batcher.batch() {
                            prop_assert!(open.remove(&group.group.0).is_some());
                        }
                        batcher.handle_computed(MS, now);
                    }
                    Event::Fallen => batcher.handle_fallen(),
                    Event::LinkEnded(link) => batcher.handle_link_ended(LinkId(link)),
                    Event::Wait(ms) => now += ms * MS,
                    Event::Computed => {}
                }
                while let Some(action) = batcher.poll_action(now) {
                    match action {
                        Action::Compute => {
                            let rows: u32 = batcher.batch().iter().map(|group| group.rows).sum();
                            prop_assert!(rows <= ROWS_MAX || batcher.batch().len() == 1);
                            for group in batcher.batch() {
                                prop_assert!(computed_last < Some(group.group.0), "in the order of arrival");
                                prop_assert!(group.deadline > now);
                                computed_last = Some(group.group.0);
                            }
                        }
                        Action::Refuse(group, _) | Action::Drop(group) => {
                            prop_assert!(open.remove(&group.0).is_some(), "it ended twice");
                        }
                    }
                }
                prop_assert!(!batcher.batch().is_empty() || batcher.waiting().count() == 0);
                let rows: u32 = batcher.waiting().map(|group| group.rows).sum();
                prop_assert_eq!(rows, batcher.waiting_rows());
                prop_assert_eq!(open.len(), batcher.batch().len() + batcher.waiting().count());
            }
        }
    }
}
