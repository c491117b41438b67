//! The data plane of a coordinator: it drives the product's scheduler, flow and exchange.
//!
//! A shell, as `data/actor.rs`, `carry_out.rs` and `pump.rs` are: it tells the cores what has come and carries out what they
//! ask for, in the same order. Bugs that are planted for the checkers to find are in here too.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coordinator::data::aside::Aside;
use coordinator::data::exchange::{Exchange, ExchangeSettings, LinkRoom, Stranded};
use coordinator::data::flow::{Flow, FlowSettings};
use coordinator::data::forwarding::{AutoForwarding, Choice, Passed};
use coordinator::data::ids::{LinkId, RowId, SequenceId, SlotId};
use coordinator::data::request::OnMissing;
use coordinator::data::scheduler::{Action, Asked, Refused, RequestId, Scheduler, SchedulerSettings};
use coordinator::placement::{NodeId, Placement};
use transport::wire::cluster::Epoch;

use crate::bugs::Bug;
use crate::clients::{Failure, Heard, Submission};
use crate::clock::US;
use crate::coordinator::{CoordinatorEvent, Observed};
use crate::frame::{Moving, ROW_BYTES};
use crate::holders::Holders;
use crate::landing::{Keep, Slot, Source, aims, clear, dispatch};
use crate::model::LAST;
use crate::network::EndId;
use crate::trunk::{Begin, Computed, Order, Trunk, Work};
use crate::world::{Event, Sky};

#[derive(Debug)]
pub(crate) struct Request {
    id: RequestId,
    pub(crate) submission: Submission,
    /// What rows went on without, by layer and expert, that was not said yet.
    pub(crate) missing: BTreeMap<(u32, u32), u64>,
    /// Something was left out of it in this life or an earlier one.
    pub(crate) has_lacked: bool,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) end: EndId,
    pub(crate) node: NodeId,
    pub(crate) keep: Keep,
    /// Nothing can be sent on it any more.
    pub(crate) is_over: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) at: usize,
    pub(crate) life: u32,
    pub(crate) scheduler: Scheduler,
    pub(crate) flow: Flow,
    pub(crate) exchange: Exchange,
    pub(crate) trunk: Trunk,
    pub(crate) links: BTreeMap<LinkId, Link>,
    waiting: BTreeMap<RequestId, Request>,
    aside: Aside,
    pub(crate) running: Vec<Option<Request>>,
    deadlines: BTreeSet<(Instant, RequestId)>,
    request_next: u64,
    /// Rows as they go out, and what they chose.
    sources: Vec<Option<Source>>,
    pub(crate) slots: Vec<Slot>,
    computing: Vec<RowId>,
    computed: Option<Computed>,
    published: Epoch,
    closed_told: Epoch,
    timer: Option<u64>,
    /// How rows go on, where trials decide, and what has passed.
    auto: Option<AutoForwarding>,
    passed: Passed,
    /// What the control plane is to hear.
    pub(crate) observed: Vec<Observed>,
    /// Where the rows of dispatches would land, for bugs that do not ask.
    pub(crate) aims: BTreeMap<u64, Vec<SlotId>>,
    pub(crate) holders: Holders,
}

impl Data {
    pub(crate) fn new(at: usize, life: u32, sky: &Sky) -> Self {
        let case = &sky.case;
        let (model, rows_max) = (&case.model, case.rows_max);
        let (top_k_max, shards) = (model.top_k_max(), model.shards);
        let exchange = ExchangeSettings {
            dispatch_time_max: case.dispatch_time_max,
            ..ExchangeSettings::new(rows_max, top_k_max as u32, shards as u32, ROW_BYTES)
        };
        let mut own = Self {
            at,
            life,
            scheduler: Scheduler::new(SchedulerSettings {
                sequences_max: case.sequences_max,
                queue_max: case.queue_max,
                pages: case.pages,
                rows_in_flight_max: rows_max,
                chunk_rows_max: case.chunk_rows_max,
                prefill_rows_max: case.chunk_rows_max,
                prefix_cache: case.prefix_cache,
            }),
            flow: Flow::new(FlowSettings {
                stages: model.stages.len() as u32,
                head_has_layers: model.head_has_layers(),
                rows_max,
                sequences_max: case.sequences_max,
                batch_rows_max: rows_max,
                forwarding: match case.forwarding {
                    Choice::Always(forwarding) => forwarding,
                    Choice::Auto => AutoForwarding::new(case.shared_cores).forwarding(),
                },
            }),
            exchange: Exchange::new(exchange),
            trunk: Trunk::new(model, case.pages as usize, rows_max as usize),
            links: BTreeMap::new(),
            waiting: BTreeMap::new(),
            aside: Aside::default(),
            running: std::iter::repeat_with(|| None).take(case.sequences_max as usize).collect(),
            deadlines: BTreeSet::new(),
            request_next: 1,
            sources: vec![None; rows_max as usize],
            slots: vec![Slot::Empty; rows_max as usize * top_k_max * shards],
            computing: Vec::new(),
            computed: None,
            published: Epoch::default(),
            closed_told: Epoch::default(),
            timer: None,
            auto: (case.forwarding == Choice::Auto).then(|| AutoForwarding::new(case.shared_cores)),
            passed: Passed::default(),
            observed: Vec::new(),
            aims: BTreeMap::new(),
            holders: Holders::default(),
        };
        own.look_for_holders(sky);
        own
    }

    pub(crate) fn slots_per_row(sky: &Sky) -> usize {
        sky.case.model.top_k_max() * sky.case.model.shards
    }

    fn later(&self, nanos: u64, what: CoordinatorEvent, sky: &mut Sky) {
        sky.clock.after(nanos, Event::Coordinator { coordinator: self.at, life: self.life, what });
    }

    /// It looks again soon: what comes until then is told before anything is carried out.
    pub(crate) fn wake(&mut self, sky: &mut Sky) {
        let at = sky.clock.nanos() + sky.random.below(30 * US);
        if self.timer.is_none_or(|timer| timer > at) {
            self.timer = Some(at);
            self.later(at - sky.clock.nanos(), CoordinatorEvent::Pump, sky);
        }
    }

    /// A link to a node is open.
    pub(crate) fn opened(&mut self, link: LinkId, node: NodeId, end: EndId, room: LinkRoom, sky: &mut Sky) {
        self.exchange.handle_link(link, node, room, sky.clock.now());
        self.links.insert(link, Link { end, node, keep: Keep::new(room.back_bytes), is_over: false });
        self.look_for_holders(sky);
        if sky.network.end(end).is_over {
            self.link_over(end, sky);
        }
        self.wake(sky);
    }

    /// A placement was published.
    pub(crate) fn placed(&mut self, placement: Arc<Placement>, sky: &mut Sky) {
        sky.watch.handle_published((self.at, self.life), placement.epoch);
        self.published = placement.epoch;
        self.holders.handle_placement(&placement);
        self.look_for_holders(sky);
        self.exchange.handle_placement(placement, sky.clock.now());
        self.observed.push(Observed::Changed(Duration::from_micros(50)));
        if sky.has_bug(Bug::DropsEarly) {
            self.observed.push(Observed::ClosedThrough(self.published));
        }
        self.wake(sky);
    }

    /// A node has been silent for longer than usual, or is no more.
    pub(crate) fn silent(&mut self, link: LinkId, is_late: bool, sky: &mut Sky) {
        let now = sky.clock.now();
        match is_late {
            true => self.exchange.handle_late(link, now),
            false => self.exchange.handle_awake(link, now),
        }
        self.wake(sky);
    }

    /// The data lane of a link has ended.
    pub(crate) fn link_over(&mut self, end: EndId, sky: &mut Sky) {
        let Some(link) = self.links.iter().find(|(_, link)| link.end == end).map(|(id, _)| *id) else {
            return;
        };
        self.links.remove(&link);
        self.look_for_holders(sky);
        sky.watch.handle_link_over((self.at, self.life), end);
        self.exchange.handle_link_ended(link, sky.clock.now());
        self.wake(sky);
    }

    /// A request comes.
    pub(crate) fn submit(&mut self, submission: Submission, sky: &mut Sky) -> RequestId {
        let id = RequestId(self.request_next);
        self.request_next += 1;
        let asked = Asked {
            request: id,
            prompt: &submission.prompt,
            tokens: &submission.tokens,
            tokens_max: submission.tokens_max,
            priority: submission.priority,
            goes_alone: submission.on_missing == OnMissing::Drop,
            is_scored: false,
            bias: None,
        };
        let taken = self.scheduler.handle_request(asked);
        match taken {
            Ok(()) => {
                self.deadlines.insert((submission.deadline, id));
                let missing = BTreeMap::new();
                self.waiting.insert(id, Request { id, submission, missing, has_lacked: false });
            }
            Err(why) => {
                let failure = match why {
                    Refused::QueueFull { .. } => Failure::QueueFull,
                    Refused::TooLong { .. } => Failure::TooLong,
                };
                sky.tell_client(submission.client, Heard::Failed(failure));
            }
        }
        self.wake(sky);
        id
    }

    /// A client wants no more of its answer.
    pub(crate) fn give_up(&mut self, id: RequestId, sky: &mut Sky) {
        self.scheduler.handle_cancel(id);
        self.aside.handle_ended(id);
        if let Some(request) = self.waiting.remove(&id) {
            self.deadlines.remove(&(request.submission.deadline, id));
        }
        let of = |request: &Option<Request>| request.as_ref().is_some_and(|request| request.id == id);
        if let Some(at) = self.running.iter().position(of) {
            self.forget_request(SequenceId(at as u32));
        }
        self.wake(sky);
    }

    /// Takes the time, then carries out what the cores ask for, until nothing is left to do.
    pub(crate) fn pump(&mut self, sky: &mut Sky) {
        let nanos = sky.clock.nanos();
        if self.timer.is_none_or(|timer| timer > nanos) {
            return; // It has looked since.
        }
        self.timer = None;
        loop {
            let now = sky.clock.now();
            self.exchange.handle_timeout(now);
            self.end_late(now, sky);
            self.steer(now);
            let done = self.carry_out(now, sky);
            self.tell_closed();
            if !done {
                break;
            }
        }
        self.holders.handle_looked();
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let steering = self.auto.as_ref().and_then(AutoForwarding::poll_timeout);
        let due = self.exchange.poll_timeout().into_iter().chain(deadline).chain(steering).min();
        if let Some(due) = due {
            let at = sky.clock.nanos_of(due).max(sky.clock.nanos() + 1);
            self.timer = Some(at);
            self.later(at - sky.clock.nanos(), CoordinatorEvent::Pump, sky);
        }
    }

    /// Rows go on as trials show to be better.
    fn steer(&mut self, now: Instant) {
        let Some(auto) = &mut self.auto else { return };
        auto.handle_running(self.scheduler.running() as u32, now);
        auto.handle_passed(self.passed, now);
        auto.handle_timeout(now);
        self.flow.set_forwarding(auto.forwarding());
    }

    fn tell_closed(&mut self) {
        let closed = self.exchange.epoch_oldest().unwrap_or(self.published);
        if closed > self.closed_told {
            self.closed_told = closed;
            self.observed.push(Observed::ClosedThrough(closed));
        }
    }

    fn end_late(&mut self, now: Instant, sky: &mut Sky) {
        let late: Vec<RequestId> =
            self.deadlines.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect();
        for id in late {
            self.deadlines.retain(|(_, other)| *other != id);
            let waiting = self.waiting.get(&id);
            let running = || self.running.iter().flatten().find(|request| request.id == id);
            if let Some(request) = waiting.or_else(running) {
                sky.tell_client(request.submission.client, Heard::Failed(Failure::TooLate));
            }
            self.give_up(id, sky);
        }
    }

    /// Everything that can be done now; true if there was anything.
    fn carry_out(&mut self, now: Instant, sky: &mut Sky) -> bool {
        let mut any = false;
        loop {
            let mut done = false;
            if self.exchange.poll_holders() {
                for id in self.aside.handle_holders(|lack| self.exchange.is_missing(lack)) {
                    self.scheduler.handle_called_back(id);
                }
            }
            self.scheduler.handle_rows_free(self.flow.rows_free());
            self.scheduler.handle_rows_stranded(self.flow.rows_stranded());
            while let Some(action) = self.scheduler.poll_action() {
                self.schedule(action, now, sky);
                done = true;
            }
            self.go_on(sky);
            while let Some(left_out) = self.exchange.poll_left_out() {
                self.leave_out(left_out, sky);
                done = true;
            }
            while let Some(stranded) = self.exchange.poll_stranded() {
                self.strand(stranded, now);
                done = true;
            }
            while let Some((row, why)) = self.exchange.poll_failed() {
                let (sequence, _) = self.flow.position(row);
                self.fail(sequence, Failure::Row(why), sky);
                done = true;
            }
            let mut whole = false;
            while !done && let Some(row) = self.exchange.poll_whole() {
                self.take_whole(row, sky);
                whole = true;
            }
            done |= whole;
            done |= self.send(now, sky);
            while let Some(sequence) = self.flow.poll_left() {
                self.scheduler.handle_left(sequence);
                done = true;
            }
            if sky.case.shared_cores {
                self.flow.handle_devices(self.exchange.dispatches_open() == 0);
            }
            done |= self.compute(sky);
            if !done {
                return any;
            }
            any = true;
        }
    }

    /// The trunk goes on with what it was told.
    fn go_on(&mut self, sky: &mut Sky) {
        let Some(computed) = self.trunk.go_on() else { return };
        let chosen = 20 * US + computed.rows as u64 * US + sky.random.below(150 * US);
        let done = chosen + 1 + sky.random.below(100 * US);
        if !computed.values.is_empty() {
            self.later(chosen, CoordinatorEvent::Chosen, sky);
        }
        self.later(done, CoordinatorEvent::Done, sky);
        self.computed = Some(computed);
    }

    fn schedule(&mut self, action: Action, now: Instant, sky: &mut Sky) {
        match action {
            Action::Begin { request, sequence } => {
                let request = self.waiting.remove(&request).expect("whoever begins has waited");
                let Submission { prompt, tokens, oracle, on_missing, .. } = &request.submission;
                self.trunk.tell(Order::Begin(Begin {
                    sequence,
                    tokens: prompt.iter().chain(tokens).copied().collect(),
                    prompt: prompt.len(),
                    oracle: Rc::clone(oracle),
                    may_leave_out: *on_missing == OnMissing::Drop,
                    has_lacked: request.has_lacked,
                }));
                self.running[sequence.0 as usize] = Some(request);
            }
            Action::Chunk(chunk) => {
                let count = chunk.count as usize;
                self.trunk.tell(Order::Extend { sequence: chunk.sequence, count });
                self.passed.prompt_rows += u64::from(chunk.count - u32::from(chunk.samples));
                self.flow.handle_chunk(chunk);
            }
            Action::Preempt { sequence } => {
                sky.watch.preempted += 1;
                if let Some(request) = self.running[sequence.0 as usize].take() {
                    self.waiting.insert(request.id, request);
                }
            }
            Action::SetAside { sequence } => {
                if let Some(request) = self.running[sequence.0 as usize].take() {
                    self.set_aside(request, sequence);
                }
            }
            Action::Full { request } => self.end_full(request, sky),
            Action::Leave { sequence } => self.leave(sequence, now, sky),
            Action::Release { sequence } => self.trunk.tell(Order::Release(sequence)),
            Action::Share { sequence, block } => {
                sky.watch.shared += 1;
                self.trunk.tell(Order::Share { sequence, block });
            }
            Action::Keep { sequence, index, block } => {
                self.trunk.tell(Order::Keep { sequence, index, block })
            }
            Action::Replace { sequence, index, block } => {
                self.trunk.tell(Order::Replace { sequence, index, block });
            }
            Action::Forget { block } => self.trunk.tell(Order::Forget(block)),
        }
    }

    fn set_aside(&mut self, request: Request, sequence: SequenceId) {
        let (flow, exchange) = (&self.flow, &self.exchange);
        let of_row = |row: RowId| exchange.lacks(row).map(move |lack| (flow.position(row).1, lack));
        if !self.aside.handle_set_aside(request.id, flow.rows_out(sequence).flat_map(of_row)) {
            self.scheduler.handle_called_back(request.id);
        }
        self.waiting.insert(request.id, request);
    }

    fn strand(&mut self, Stranded { row, is_stranded }: Stranded, now: Instant) {
        if is_stranded && !self.flow.is_needed(row) {
            return self.exchange.handle_cancelled(row, now);
        }
        match self.flow.handle_stranded(row, is_stranded) {
            Some(sequence) if is_stranded => {
                // Nobody has patience here: more give way.
                self.scheduler.handle_stranded(sequence);
                self.scheduler.handle_long(sequence);
            }
            Some(sequence) => self.scheduler.handle_found(sequence),
            None => {}
        }
    }

    fn leave(&mut self, sequence: SequenceId, now: Instant, sky: &mut Sky) {
        let slots = Self::slots_per_row(sky);
        for row in self.flow.rows_at_doors(sequence) {
            clear(&mut self.slots, row, slots);
        }
        for row in self.flow.rows_out(sequence) {
            self.exchange.handle_cancelled(row, now);
        }
        self.flow.handle_cancel(sequence);
    }

    fn take_whole(&mut self, row: RowId, sky: &mut Sky) {
        self.sources[row.0 as usize] = None;
        if !self.flow.handle_whole(row) {
            clear(&mut self.slots, row, Self::slots_per_row(sky));
        }
    }

    fn end_full(&mut self, id: RequestId, sky: &mut Sky) {
        let mut all = self.running.iter_mut().flatten().chain(self.waiting.get_mut(&id));
        if let Some(request) = all.find(|request| request.id == id) {
            request.tell_missing(sky);
            sky.tell_client(request.submission.client, Heard::End { is_full: true });
        }
        self.give_up(id, sky);
    }

    fn forget_request(&mut self, sequence: SequenceId) {
        if let Some(request) = self.running[sequence.0 as usize].take() {
            self.deadlines.remove(&(request.submission.deadline, request.id));
        }
    }

    fn fail(&mut self, sequence: SequenceId, why: Failure, sky: &mut Sky) {
        if let Some(request) = &self.running[sequence.0 as usize] {
            sky.tell_client(request.submission.client, Heard::Failed(why));
        }
        self.scheduler.handle_failed(sequence);
        self.forget_request(sequence);
    }

    /// The rows of the batch have chosen their experts.
    pub(crate) fn chosen(&mut self, sky: &mut Sky) {
        let computed = self.computed.as_ref().expect("a batch is computed");
        let out = sky.case.model.stages[computed.stage].out.expect("only such stages choose");
        self.flow.handle_sent();
        let (mut wanted, mut experts) = (Vec::new(), Vec::new());
        let rows = self.computing.iter().zip(computed.chosen.chunks_exact(out.top_k)).zip(&computed.values);
        for ((row, chosen), value) in rows {
            if self.flow.is_out(*row) {
                self.sources[row.0 as usize] = Some((*value, chosen.to_vec()));
                wanted.push(*row);
                experts.extend_from_slice(chosen);
            }
        }
        let now = sky.clock.now();
        let deadline = now + sky.case.row_time_max;
        let may = |row: &RowId| self.may_leave_out(*row) || sky.has_bug(Bug::LeavesOutExact);
        let may: Vec<RowId> = wanted.iter().copied().filter(may).collect();
        if !sky.has_bug(Bug::LeavesOutNothing) {
            self.exchange.handle_may_leave_out(&may);
        }
        self.exchange.handle_chosen(out.layer as u32, &wanted, out.top_k, &experts, deadline, now);
        self.wake(sky);
    }

    /// The batch is done, and the trunk is free.
    pub(crate) fn done(&mut self, sky: &mut Sky) {
        let computed = self.computed.take().expect("a batch is computed");
        self.trunk.handle_done();
        self.flow.handle_attended();
        sky.watch.handle_progress(sky.clock.nanos());
        for (sequence, expert) in computed.lacked {
            if let Some(request) = &self.running[sequence.0 as usize] {
                sky.watch.handle_lacked(request.submission.client, expert);
            }
        }
        for (sequence, token) in computed.sampled {
            self.take_sampled(sequence, token, sky);
        }
        self.wake(sky);
    }

    fn take_sampled(&mut self, sequence: SequenceId, token: u32, sky: &mut Sky) {
        // Its client may have gone while it was computed.
        let Some(request) = &mut self.running[sequence.0 as usize] else { return };
        request.tell_missing(sky);
        let submission = &mut request.submission;
        submission.tokens.push(token);
        self.passed.tokens += 1;
        sky.tell_client(submission.client, Heard::Token(token));
        if token == LAST || submission.tokens.len() == submission.tokens_max as usize {
            sky.tell_client(submission.client, Heard::End { is_full: false });
            self.scheduler.handle_finished(sequence);
            self.forget_request(sequence);
        } else {
            self.scheduler.handle_token(sequence, token);
        }
    }

    /// Sends what the exchange wants sent.
    fn send(&mut self, now: Instant, sky: &mut Sky) -> bool {
        let mut any = false;
        while let Some(outgoing) = self.exchange.poll_dispatch(now) {
            any = true;
            let id = outgoing.link;
            let frame = dispatch(outgoing, &self.sources);
            for (group, _) in &frame.groups {
                let slots = aims(outgoing, group.dispatch, &self.sources, &sky.case.model);
                self.aims.insert(group.dispatch, slots);
            }
            let Some(link) = self.links.get_mut(&id) else {
                self.exchange.handle_link_ended(id, now);
                continue;
            };
            let end = link.end;
            sky.watch.handle_sent((self.at, self.life), end, &frame);
            if sky.send(end, Moving::Dispatch(frame)).is_err() {
                link.is_over = true;
                self.look_for_holders(sky);
                sky.watch.handle_link_over((self.at, self.life), end);
                self.exchange.handle_link_ended(id, now);
            }
        }
        any
    }

    /// Gives the trunk what the flow wants computed next.
    fn compute(&mut self, sky: &mut Sky) -> bool {
        let slots_per_row = Self::slots_per_row(sky);
        let Some(batch) = self.flow.poll_batch() else { return false };
        let stage = batch.stage as usize;
        let mut landed = Vec::new();
        if let Some(before) = stage.checked_sub(1) {
            let model = &sky.case.model;
            let slots = model.stages[before].out.expect("rows come back from experts").top_k * model.shards;
            for row in &batch.rows {
                let first = row.0 as usize * slots_per_row;
                landed.extend(self.slots[first..first + slots].iter_mut().map(std::mem::take));
            }
        }
        self.computing.clone_from(&batch.rows);
        let work = Work { stage, rows: batch.rows.clone(), runs: batch.runs.clone(), landed };
        self.trunk.tell(Order::Compute(work));
        true
    }

    /// Nothing is asked for, and nothing that landed is left.
    pub(crate) fn is_quiet(&self) -> bool {
        self.landed() == 0 && self.waiting.is_empty() && self.running.iter().all(Option::is_none)
    }

    /// Rows that landed and are kept, for messages.
    pub(crate) fn landed(&self) -> usize {
        self.slots.iter().filter(|slot| !matches!(slot, Slot::Empty)).count()
    }
}
