//! Carries out what scheduler, flow and exchange ask for.

use std::collections::BTreeMap;
use std::time::Instant;

use model::kv::PAGE;
use tokio::task::spawn_local;
use transport::peer::SendError;

use super::actor::{DataActor, DataParts};
use super::exchange::{LeftOut, Stranded};
use super::frames::dispatch_frame;
use super::ids::{RowId, SequenceId};
use super::landing::Slot;
use super::request::{Event, Failure, OnMissing, Request, RequestId, Scores, Submission};
use super::scheduler::{Action, Asked, Refused};
use super::traced::Phases;
use super::trunk::{Begin, Order, Sampled, Scored};
use crate::choice::ChoiceError;
use crate::generation::{FinishReason, Token};

impl DataActor {
    /// Everything that can be done now; true if there was anything.
    pub(super) fn carry_out(&mut self, now: Instant) -> bool {
        let mut any = false;
        loop {
            let mut done = false;
            while let Some(sequence) = self.patience.poll_long(now) {
                self.parts.scheduler.handle_long(sequence);
            }
            if self.parts.exchange.poll_holders() {
                self.call_back();
            }
            self.parts.scheduler.handle_rows_free(self.parts.flow.rows_free());
            self.parts.scheduler.handle_rows_stranded(self.parts.flow.rows_stranded());
            while let Some(action) = self.parts.scheduler.poll_action() {
                self.schedule(action, now);
                done = true;
            }
            while let Some(left_out) = self.parts.exchange.poll_left_out() {
                self.leave_out(left_out);
                done = true;
            }
            while let Some(stranded) = self.parts.exchange.poll_stranded() {
                self.strand(stranded, now);
                done = true;
            }
            while let Some((row, why)) = self.parts.exchange.poll_failed() {
                let (sequence, _) = self.parts.flow.position(row);
                self.fail(sequence, Failure::Row(why.to_string()));
                done = true;
            }
            // Not before those who failed have left. A row that is whole may leave at the head, and others wait for its
            // place: so the scheduler is asked again.
            let mut whole = false;
            while !done && let Some(row) = self.parts.exchange.poll_whole() {
                self.take_whole(row);
                whole = true;
            }
            done |= whole;
            done |= self.send(now);
            while let Some(sequence) = self.parts.flow.poll_left() {
                self.parts.scheduler.handle_left(sequence);
                done = true;
            }
            if self.shared_cores {
                self.parts.flow.handle_devices(self.parts.exchange.dispatches_open() == 0);
            }
            done |= self.compute(now);
            // With the batch, if there is one: each word wakes the thread.
            if !self.orders.is_empty() {
                let orders = std::mem::take(&mut self.orders);
                self.trunk().tell(orders);
            }
            self.news.tell();
            if !done {
                return any;
            }
            any = true;
        }
    }

    /// A request comes.
    pub(super) fn take(&mut self, id: RequestId, mut submission: Submission) {
        let now = Instant::now();
        let trace = submission.trace.take();
        let phases = trace.map(|trace| Phases::new(trace, id, &self.dispatches, now));
        let asked = submission.generation.request();
        let asked = Asked {
            request: id,
            prompt: &asked.prompt,
            tokens: submission.generation.tokens(),
            // Also of a prompt that is only looked at the end shows in a token.
            tokens_max: u32::try_from(asked.tokens_max).unwrap_or(u32::MAX).max(1),
            priority: submission.priority,
            goes_alone: submission.on_missing == OnMissing::Drop,
            is_scored: asked.prompt_logprobs,
            bias: asked.bias.as_ref().map(|bias| *bias.digest().0.as_bytes()),
        };
        let taken = self.parts.scheduler.handle_request(asked);
        self.deadlines.insert((submission.deadline, id), ());
        let missing = BTreeMap::new();
        let mut request =
            Request { id, submission, cached: 0, has_token: false, missing, scores: None, phases };
        match taken {
            Ok(()) => drop(self.waiting.insert(id, request)),
            Err(why) => {
                self.deadlines.remove(&(request.submission.deadline, id));
                request.tell(
                    &mut self.news,
                    Event::Failed(match why {
                        Refused::QueueFull { waiting } => {
                            Failure::Busy { waiting, retry_after: self.pace.handle_turned_away(now) }
                        }
                        why => Failure::Refused(why.to_string()),
                    }),
                );
            }
        }
    }

    /// A client wants no more of its answer.
    pub(super) fn give_up(&mut self, id: RequestId) {
        self.parts.scheduler.handle_cancel(id);
        self.aside.handle_ended(id);
        if let Some(request) = self.waiting.remove(&id) {
            self.deadlines.remove(&(request.submission.deadline, id));
        }
        let of = |request: &Option<Request>| request.as_ref().is_some_and(|request| request.id == id);
        if let Some(at) = self.running.iter().position(of) {
            self.forget_request(SequenceId(at as u32));
        }
    }

    /// Ends requests that have had their time.
    pub(super) fn end_late(&mut self, now: Instant) {
        if self.deadlines.first_key_value().is_none_or(|((at, _), ())| *at > now) {
            return;
        }
        let mut late: BTreeMap<RequestId, Option<String>> = BTreeMap::new();
        while let Some(entry) = self.deadlines.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, id), ()) = entry.remove_entry();
            late.insert(id, None);
        }
        // Asked once for all of them, and before the first of them goes.
        for waiting in self.why(|id| late.contains_key(&id), now) {
            late.insert(waiting.request, Some(waiting.cause.to_string()));
        }
        for (id, missing) in late {
            let running = self.running.iter_mut().flatten().find(|request| request.id == id);
            if let Some(request) = self.waiting.get_mut(&id).or(running) {
                let within_ms = request.submission.within_ms;
                request.tell(&mut self.news, Event::Failed(Failure::TooLate { within_ms, missing }));
            }
            self.give_up(id);
        }
    }

    fn schedule(&mut self, action: Action, now: Instant) {
        match action {
            Action::Begin { request, sequence } => {
                let mut request = self.waiting.remove(&request).expect("whoever begins has waited");
                request.cached = 0;
                let is_scored = request.wants_scores();
                self.pace.handle_begun(self.waiting.len(), now);
                let generation = &request.submission.generation;
                let asked = generation.request();
                // What was known before it had to give way will come again.
                request.scores = is_scored.then(|| Scores::new(asked.prompt.len()));
                let begin = Begin {
                    sequence,
                    prompt: asked.prompt.clone(),
                    tokens: generation.tokens().to_vec(),
                    sampling: asked.sampling.clone(),
                    logprobs: asked.logprobs,
                    prompt_logprobs: asked.logprobs.filter(|_| is_scored),
                    experts: asked.experts,
                    grammar: asked.grammar.clone(),
                    bias: asked.bias.clone(),
                };
                if let Some(phases) = &mut request.phases {
                    phases.handle_begun(begin.prompt.len() + begin.tokens.len(), now);
                }
                self.orders.push(Order::Begin(Box::new(begin)));
                self.running[sequence.0 as usize] = Some(request);
            }
            Action::Chunk(chunk) => {
                let count = chunk.count as usize;
                self.orders.push(Order::Extend { sequence: chunk.sequence, count });
                self.steering.prompt_rows += u64::from(chunk.count - u32::from(chunk.samples));
                self.parts.flow.handle_chunk(chunk);
            }
            Action::Preempt { sequence } => {
                self.report.preempted += 1;
                self.wait_again(sequence, now);
            }
            Action::SetAside { sequence } => {
                self.report.set_aside += 1;
                if let Some(request) = self.wait_again(sequence, now) {
                    self.set_aside(request, sequence);
                }
            }
            Action::Full { request } => self.end_full(request),
            Action::Leave { sequence } => {
                self.patience.handle_over(sequence);
                self.leave(sequence, now);
            }
            Action::Release { sequence } => self.orders.push(Order::Release(sequence)),
            Action::Share { sequence, block } => {
                if let Some(request) = &mut self.running[sequence.0 as usize] {
                    request.cached += PAGE;
                }
                self.orders.push(Order::Share { sequence, block });
            }
            Action::Keep { sequence, index, block } => {
                self.orders.push(Order::Keep { sequence, index, block });
            }
            Action::Replace { sequence, index, block } => {
                self.orders.push(Order::Replace { sequence, index, block });
            }
            Action::Forget { block } => self.orders.push(Order::Forget(block)),
        }
    }

    /// A request waits again that ran.
    fn wait_again(&mut self, sequence: SequenceId, now: Instant) -> Option<RequestId> {
        let mut request = self.running[sequence.0 as usize].take()?;
        if let Some(phases) = &mut request.phases {
            phases.handle_preempted(now);
        }
        let id = request.id;
        self.waiting.insert(id, request);
        Some(id)
    }

    /// A request waits for what the rows lack that it had as this sequence.
    fn set_aside(&mut self, request: RequestId, sequence: SequenceId) {
        let Self { parts, aside, .. } = self;
        let (flow, exchange) = (&parts.flow, &parts.exchange);
        let of_row = |row: RowId| exchange.lacks(row).map(move |lack| (flow.position(row).1, lack));
        if !aside.handle_set_aside(request, flow.rows_out(sequence).flat_map(of_row)) {
            parts.scheduler.handle_called_back(request);
        }
    }

    /// Somebody holds what nobody held.
    fn call_back(&mut self) {
        let exchange = &self.parts.exchange;
        for request in self.aside.handle_holders(|lack| exchange.is_missing(lack)) {
            self.parts.scheduler.handle_called_back(request);
        }
    }

    /// A row waits for an expert that nobody holds, or does so no more.
    fn strand(&mut self, Stranded { row, is_stranded }: Stranded, now: Instant) {
        let DataParts { scheduler, flow, exchange, .. } = &mut self.parts;
        if is_stranded && !flow.is_needed(row) {
            return exchange.handle_cancelled(row, now);
        }
        match flow.handle_stranded(row, is_stranded) {
            Some(sequence) if is_stranded => {
                scheduler.handle_stranded(sequence);
                self.patience.handle_stranded(sequence, now);
            }
            Some(sequence) => {
                scheduler.handle_found(sequence);
                self.patience.handle_over(sequence);
            }
            None => {}
        }
    }

    /// Has the rows of a sequence leave.
    fn leave(&mut self, sequence: SequenceId, now: Instant) {
        let slots_per_row = self.parts.slots_per_row();
        let DataActor { parts, slots, .. } = self;
        for row in parts.flow.rows_at_doors(sequence) {
            clear(slots, row, slots_per_row);
        }
        for row in parts.flow.rows_out(sequence) {
            parts.exchange.handle_cancelled(row, now);
        }
        parts.flow.handle_cancel(sequence);
    }

    /// All that was sent for a row is back, or will never be.
    fn take_whole(&mut self, row: RowId) {
        self.sources[row.0 as usize] = None;
        if !self.parts.flow.handle_whole(row) {
            clear(&mut self.slots, row, self.parts.slots_per_row());
        }
    }

    /// Whether the request of a row goes on without experts that nobody holds.
    pub(super) fn may_leave_out(&self, row: RowId) -> bool {
        let request = self.request_of(self.parts.flow.position(row).0);
        request.is_some_and(|request| request.submission.on_missing == OnMissing::Drop)
    }

    /// A row goes on without an expert. What is computed of its sequence from now on is nobody else's.
    fn leave_out(&mut self, LeftOut { row, rank, layer, expert }: LeftOut) {
        let first = row.0 as usize * self.parts.slots_per_row() + rank as usize * self.parts.shards;
        self.slots[first..first + self.parts.shards].fill(Slot::LeftOut);
        if self.parts.flow.is_leaving(row) {
            return;
        }
        let (sequence, _) = self.parts.flow.position(row);
        self.parts.scheduler.handle_left_out(sequence);
        if let Some(request) = &mut self.running[sequence.0 as usize] {
            *request.missing.entry((layer, expert)).or_default() += 1;
        }
    }

    /// An answer is as long as there are pages.
    fn end_full(&mut self, id: RequestId) {
        let Self { waiting, running, .. } = self;
        let mut all = running.iter_mut().flatten().chain(waiting.get_mut(&id));
        if let Some(request) = all.find(|request| request.id == id) {
            let text = request.submission.generation.handle_full();
            request.tell_missing(&mut self.news);
            request.tell(&mut self.news, Event::Step { token: None, text });
            request.tell(&mut self.news, Event::End(FinishReason::Length));
        }
        self.give_up(id);
    }

    /// An answer has ended: its rows leave as they can.
    fn end(&mut self, sequence: SequenceId) {
        self.parts.scheduler.handle_finished(sequence);
        self.forget_request(sequence);
    }

    fn forget_request(&mut self, sequence: SequenceId) {
        if let Some(request) = self.running[sequence.0 as usize].take() {
            self.deadlines.remove(&(request.submission.deadline, request.id));
        }
    }

    fn fail(&mut self, sequence: SequenceId, why: Failure) {
        if let Some(request) = &mut self.running[sequence.0 as usize] {
            tracing::error!(request = request.id.0, %why, "request lost");
            request.tell(&mut self.news, Event::Failed(why));
        }
        self.parts.scheduler.handle_failed(sequence);
        self.forget_request(sequence);
    }

    /// A token of a prompt was looked at.
    pub(super) fn take_scored(&mut self, Scored { sequence, position, logprobs }: Scored) {
        let Some(request) = &mut self.running[sequence.0 as usize] else { return };
        let Some(scores) = &mut request.scores else { return };
        match logprobs {
            Ok(logprobs) => scores.handle_scored(position, logprobs),
            Err(why) => return self.fail(sequence, Failure::Row(why.to_string())),
        }
        if scores.is_whole()
            && let Some(first) = scores.first.take()
        {
            self.take_sampled(first);
        }
    }

    pub(super) fn take_sampled(&mut self, sampled: Sampled) {
        // Its client may have gone while it was computed.
        let Some(request) = &mut self.running[sampled.sequence.0 as usize] else { return };
        // Rows come to the head in any order, and the prompt is told first.
        if let Some(scores) = request.scores.as_mut().filter(|scores| !scores.is_whole()) {
            scores.first = Some(sampled);
            return;
        }
        let Sampled { sequence, token, experts } = sampled;
        let chosen = match token {
            Ok(chosen) => chosen,
            Err(why @ ChoiceError::Form(_)) => {
                return self.fail(sequence, Failure::Refused(why.to_string()));
            }
            Err(why) => return self.fail(sequence, Failure::Row(why.to_string())),
        };
        self.report.tokens += 1;
        if let Some(phases) = &mut request.phases {
            phases.handle_token(request.cached);
        }
        if !std::mem::replace(&mut request.has_token, true) && request.cached > 0 {
            // Of an answer that is gone on with, tokens may have been found too.
            let of_prompt = request.cached.min(request.submission.generation.request().prompt.len());
            request.tell(&mut self.news, Event::Cached(of_prompt));
        }
        request.tell_missing(&mut self.news);
        if let Some(scores) = request.scores.take() {
            request.tell(&mut self.news, Event::Prompt(scores.into_logprobs()));
        }
        let id = chosen.id;
        let step = request.submission.generation.handle_choice(chosen);
        let token = step.token.map(|token| Token { experts, ..token });
        let heard = request.tell(&mut self.news, Event::Step { token, text: step.text });
        match request.submission.generation.finish_reason() {
            Some(reason) => {
                request.tell(&mut self.news, Event::End(reason));
                self.end(sequence);
            }
            None if !heard => self.end(sequence),
            None => self.parts.scheduler.handle_token(sequence, id),
        }
    }

    /// Sends what the exchange wants sent; true if there was anything.
    fn send(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(outgoing) = self.parts.exchange.poll_dispatch(now) {
            any = true;
            let id = outgoing.link;
            self.report.groups += outgoing.groups.len() as u64;
            self.report.group_rows += outgoing.indices.len() as u64;
            outgoing.groups.iter().for_each(|group| self.report.group_sizes.add(group.indices.len()));
            let frame = dispatch_frame(&self.parts.buffers, self.parts.shape, outgoing, &self.sources)
                .expect("its pool has no bound");
            let Some(link) = self.links.get(&id) else {
                self.parts.exchange.handle_link_ended(id, now);
                self.dispatches.handle_link_ended(id, now);
                continue;
            };
            if self.dispatches.is_followed() {
                let phases_of = |row: RowId| {
                    let (sequence, _) = self.parts.flow.position(row);
                    self.running[sequence.0 as usize].as_ref()?.phases.as_ref()
                };
                self.dispatches.handle_sent(outgoing, &link.peer.hello().peer.name, phases_of, now);
            }
            self.report.dispatched_frames += 1;
            self.report.dispatched_bytes += frame.payload.len() as u64;
            match link.peer.try_send(frame) {
                Ok(()) => {}
                Err(SendError::NoCredit { frame, .. }) => {
                    // What the node gave back has not been told yet; it is, and nothing else waits for this.
                    let peer = link.peer.clone();
                    spawn_local(async move { peer.send(frame).await.map_err(drop) });
                }
                Err(why) => {
                    // It ends, or drains: its inlet says so too, and what was sent on it is sent elsewhere.
                    tracing::debug!(link = %id, %why, "a dispatch was not sent");
                    self.parts.exchange.handle_link_ended(id, now);
                    self.dispatches.handle_link_ended(id, now);
                }
            }
        }
        any
    }

    /// Gives the trunk what the flow wants computed next.
    fn compute(&mut self, now: Instant) -> bool {
        let slots_per_row = self.parts.slots_per_row();
        let Some(batch) = self.parts.flow.poll_batch() else { return false };
        let mut work = std::mem::take(&mut self.spare);
        work.stage = batch.stage as usize;
        work.rows.clone_from(&batch.rows);
        work.runs.clone_from(&batch.runs);
        work.landed.clear();
        if let Some(before) = work.stage.checked_sub(1) {
            let top_k = self.parts.stages[before].out.expect("rows come back from experts").top_k;
            let slots = top_k * self.parts.shards;
            for row in &work.rows {
                let first = row.0 as usize * slots_per_row;
                work.landed.extend(self.slots[first..first + slots].iter_mut().map(std::mem::take));
            }
        }
        self.computing.clone_from(&work.rows);
        self.computing_since = Some(now);
        self.orders.push(Order::Compute(work));
        true
    }
}

/// What landed for a row is not needed.
fn clear(slots: &mut [Slot], row: RowId, slots_per_row: usize) {
    let first = row.0 as usize * slots_per_row;
    slots[first..first + slots_per_row].fill(Slot::Empty);
}
