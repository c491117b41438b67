//! Carries out what scheduler, flow and exchange ask for.

use std::time::Instant;

use tokio::task::spawn_local;
use transport::peer::SendError;

use super::actor::DataActor;
use super::frames::dispatch_frame;
use super::ids::{RowId, SequenceId};
use super::landing::Landed;
use super::request::{Event, Failure, Request, RequestId, Submission};
use super::scheduler::{Action, Refused};
use super::trunk::{Begin, Order, Sampled};
use crate::choice::ChoiceError;
use crate::generation::FinishReason;

impl DataActor {
    /// Everything that can be done now; true if there was anything.
    pub(super) fn carry_out(&mut self, now: Instant) -> bool {
        let mut any = false;
        loop {
            let mut done = false;
            self.parts.scheduler.handle_rows_free(self.parts.flow.rows_free());
            while let Some(action) = self.parts.scheduler.poll_action() {
                self.schedule(action, now);
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
            done |= self.compute();
            if !done {
                return any;
            }
            any = true;
        }
    }

    /// A request comes.
    pub(super) fn take(&mut self, id: RequestId, submission: Submission) {
        let request = submission.generation.request();
        let (prompt, tokens_max) = (request.prompt.len() as u32, request.tokens_max as u32);
        self.deadlines.insert((submission.deadline, id), ());
        let request = Request { id, submission };
        match self.parts.scheduler.handle_request(id, prompt, tokens_max) {
            Ok(()) => drop(self.waiting.insert(id, request)),
            Err(why) => {
                self.deadlines.remove(&(request.submission.deadline, id));
                request.tell(Event::Failed(match why {
                    Refused::QueueFull { waiting } => Failure::Busy { waiting },
                    why => Failure::Refused(why.to_string()),
                }));
            }
        }
    }

    /// A client wants no more of its answer.
    pub(super) fn give_up(&mut self, id: RequestId) {
        self.parts.scheduler.handle_cancel(id);
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
        while let Some(entry) = self.deadlines.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, id), ()) = entry.remove_entry();
            let of = |request: &Option<Request>| request.as_ref().is_some_and(|request| request.id == id);
            let running = self.running.iter().position(of);
            let request = self.waiting.get(&id).or_else(|| self.running[running?].as_ref());
            if let Some(request) = request {
                let within_ms = request.submission.within_ms;
                request.tell(Event::Failed(Failure::TooLate { within_ms, missing: None }));
            }
            self.give_up(id);
        }
    }

    fn schedule(&mut self, action: Action, now: Instant) {
        match action {
            Action::Begin { request, sequence } => {
                let Some(request) = self.waiting.remove(&request) else { return };
                let generation = &request.submission.generation;
                let asked = generation.request();
                let begin = Begin {
                    sequence,
                    prompt: asked.prompt.clone(),
                    tokens: generation.tokens().to_vec(),
                    sampling: asked.sampling.clone(),
                    logprobs: asked.logprobs,
                    grammar: asked.grammar.clone(),
                };
                self.trunk().tell(Order::Begin(Box::new(begin)));
                self.running[sequence.0 as usize] = Some(request);
            }
            Action::Chunk(chunk) => {
                let count = chunk.count as usize;
                self.trunk().tell(Order::Extend { sequence: chunk.sequence, count });
                self.steering.prompt_rows += u64::from(chunk.count - u32::from(chunk.samples));
                self.parts.flow.handle_chunk(chunk);
            }
            Action::Preempt { sequence } => {
                if let Some(request) = self.running[sequence.0 as usize].take() {
                    self.waiting.insert(request.id, request);
                }
            }
            Action::Full { sequence } => {
                if let Some(request) = &mut self.running[sequence.0 as usize] {
                    let text = request.submission.generation.handle_full();
                    request.tell(Event::Step { token: None, text });
                    request.tell(Event::End(FinishReason::Length));
                }
                self.forget_request(sequence);
            }
            Action::Leave { sequence } => self.leave(sequence, now),
            Action::Release { sequence } => self.trunk().tell(Order::Release(sequence)),
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
        if self.parts.flow.is_leaving(row) {
            clear(&mut self.slots, row, self.parts.slots_per_row());
        }
        self.parts.flow.handle_whole(row);
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
        if let Some(request) = self.request_of(sequence) {
            tracing::error!(request = request.id.0, %why, "request lost");
            request.tell(Event::Failed(why));
        }
        self.end(sequence);
    }

    pub(super) fn take_sampled(&mut self, Sampled { sequence, token }: Sampled) {
        // Its client may have gone while it was computed.
        let Some(request) = &mut self.running[sequence.0 as usize] else { return };
        let chosen = match token {
            Ok(chosen) => chosen,
            Err(why @ ChoiceError::Form(_)) => {
                return self.fail(sequence, Failure::Refused(why.to_string()));
            }
            Err(why) => return self.fail(sequence, Failure::Row(why.to_string())),
        };
        self.report.tokens += 1;
        let step = request.submission.generation.handle_choice(chosen);
        let heard = request.tell(Event::Step { token: step.token, text: step.text });
        match request.submission.generation.finish_reason() {
            Some(reason) => {
                request.tell(Event::End(reason));
                self.end(sequence);
            }
            None if !heard => self.end(sequence),
            None => self.parts.scheduler.handle_token(sequence),
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
            let frame = dispatch_frame(&self.parts.buffers, self.parts.shape, outgoing, &self.sources)
                .expect("its pool has no bound");
            let Some(link) = self.links.get(&id) else {
                self.parts.exchange.handle_link_ended(id, now);
                continue;
            };
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
                }
            }
        }
        any
    }

    /// Gives the trunk what the flow wants computed next.
    fn compute(&mut self) -> bool {
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
                work.landed.extend(self.slots[first..first + slots].iter_mut().map(Option::take));
            }
        }
        self.computing.clone_from(&work.rows);
        self.trunk().tell(Order::Compute(work));
        true
    }
}

/// What landed for a row is not needed.
fn clear(slots: &mut [Option<Landed>], row: RowId, slots_per_row: usize) {
    let first = row.0 as usize * slots_per_row;
    slots[first..first + slots_per_row].fill(None);
}
