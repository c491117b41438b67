//! What comes to the data actor from outside its mailbox, and what its cores ask for.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use transport::Frame;
use transport::link::Ended;
use transport::wire::Kind;
use transport::wire::cluster::ActorId;
use transport::wire::control::CloseReason;
use transport::wire::groups::ReturnGroups;

use super::actor::{DataActor, Observation};
use super::exchange::{NOWHERE, Returned};
use super::frames::Source;
use super::ids::{LinkId, RowId};
use super::landing::{Landed, Slot};
use super::report;
use super::trunk::{Answer, ChosenExperts};

impl DataActor {
    /// Takes all that has come, then carries out what the cores ask for, until nothing is left to do.
    pub(super) fn pump(&mut self, task: &mut Context<'_>) {
        loop {
            while self.poll_inputs(task) {}
            let now = Instant::now();
            self.parts.exchange.handle_timeout(now);
            self.end_late(now);
            self.steer(now);
            let done = self.carry_out(now);
            self.tell_closed();
            if !done && !self.poll_timer(task) {
                return;
            }
        }
    }

    /// Tells the control plane once no dispatch is out under an older placement.
    fn tell_closed(&mut self) {
        let closed = self.parts.exchange.epoch_oldest().unwrap_or(self.published);
        if closed > self.closed_told {
            self.closed_told = closed;
            // The control plane may have gone already, when the program ends.
            let _ = self.observe.send(Observation::ClosedThrough(closed));
        }
    }

    /// True if anything came.
    fn poll_inputs(&mut self, task: &mut Context<'_>) -> bool {
        let mut came = false;
        while let Poll::Ready(Some(answer)) = self.answers.poll_recv(task) {
            self.take_answer(answer);
            came = true;
        }
        let mut ended = Vec::new();
        let mut turn = std::mem::take(&mut self.turn);
        self.ready.take(&mut turn, task.waker());
        for id in turn.drain(..) {
            // One that has gone may still have asked.
            let Some(bell) = self.links.get(&id).map(|link| Arc::clone(&link.bell)) else { continue };
            bell.reset();
            let waker = Waker::from(bell);
            loop {
                let link = self.links.get_mut(&id).expect("only this task takes links away");
                let Some(inlet) = &mut link.inlet else { break };
                match inlet.poll_receive(&mut Context::from_waker(&waker)) {
                    Poll::Ready(Ok(Some(frame))) => {
                        self.take_frame(id, frame);
                        came = true;
                    }
                    Poll::Ready(Ok(None)) => {
                        ended.push((id, None));
                        link.inlet = None;
                    }
                    Poll::Ready(Err(why)) => {
                        ended.push((id, Some(why)));
                        link.inlet = None;
                    }
                    Poll::Pending => break,
                }
            }
        }
        self.turn = turn;
        for (id, why) in ended {
            self.end_link(id, why.as_ref());
            came = true;
        }
        came
    }

    /// Sets the timer to what the cores wait for; true if that is over.
    fn poll_timer(&mut self, task: &mut Context<'_>) -> bool {
        let exchange = self.parts.exchange.poll_timeout();
        let deadline = self.deadlines.keys().next().map(|(at, _)| *at);
        let steering = self.steering.poll_timeout();
        let patience = self.patience.poll_timeout();
        let Some(at) = exchange.into_iter().chain(deadline).chain(steering).chain(patience).min() else {
            return false;
        };
        let at = tokio::time::Instant::from_std(at);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        std::future::Future::poll(timer.as_mut(), task).is_ready()
    }

    fn take_answer(&mut self, answer: Answer) {
        match answer {
            Answer::Chosen(chosen) => self.take_chosen(chosen),
            Answer::Done { chosen, work, sampled, scored } => {
                if let Some(chosen) = chosen {
                    self.take_chosen(chosen);
                }
                self.spare = work;
                self.computing_since = None;
                self.parts.flow.handle_attended();
                self.report.batches += 1;
                self.report.rows += self.computing.len() as u64;
                self.report.batch_sizes.add(self.computing.len());
                for scored in scored {
                    self.take_scored(scored);
                }
                for sampled in sampled {
                    self.take_sampled(sampled);
                }
            }
        }
    }

    /// The rows of the batch under way go to their experts.
    fn take_chosen(&mut self, ChosenExperts { stage, experts, rows }: ChosenExperts) {
        let out = self.parts.stages[stage].out.expect("only such stages choose");
        self.parts.flow.handle_sent();
        // Those whose sequence has left meanwhile go nowhere.
        let mut wanted: Vec<RowId> = Vec::with_capacity(self.computing.len());
        let mut chosen: Vec<u32> = Vec::with_capacity(experts.len());
        for (index, (row, experts)) in self.computing.iter().zip(experts.chunks_exact(out.top_k)).enumerate()
        {
            if self.parts.flow.is_out(*row) {
                self.sources[row.0 as usize] = Some(Source { rows: rows.clone(), index: index as u32 });
                wanted.push(*row);
                chosen.extend_from_slice(experts);
            }
        }
        let now = Instant::now();
        let deadline = now + self.parts.dispatch_max;
        if out.is_choice {
            let may = |row: &RowId| self.may_leave_out(*row);
            let rows: Vec<RowId> = wanted.iter().copied().filter(may).collect();
            self.parts.exchange.handle_may_leave_out(&rows);
        }
        let layer = out.layer as u32;
        self.parts.exchange.handle_chosen(layer, &wanted, out.top_k, &chosen, deadline, now);
    }

    fn take_frame(&mut self, link: LinkId, frame: Frame) {
        self.report.returned_frames += 1;
        self.report.returned_bytes += frame.payload.len() as u64;
        if let Err(breach) = self.take_return(link, frame)
            && let Some(link) = self.links.get(&link)
        {
            // Its lane ends, and with it all that was sent on it.
            link.peer.close(CloseReason::Broken(breach));
        }
    }

    fn take_return(&mut self, id: LinkId, frame: Frame) -> Result<(), String> {
        let header = frame.header;
        let shape = self.parts.shape;
        if header.kind != Kind::Return {
            return Err(format!("a {:?} frame to a coordinator", header.kind));
        }
        if header.rows > 0 && (header.element != shape.back || header.columns != shape.columns) {
            let (found, columns) = (header.element, header.columns);
            return Err(format!(
                "rows of {columns} {found:?}, what returns has {} {:?}",
                shape.columns, shape.back
            ));
        }
        let link = self.links.get(&id).expect("its frame has just come");
        let rows = link.keep.take(frame, &self.parts.copies);
        let groups = ReturnGroups::read(&header, rows.payload()).map_err(|why| why.to_string())?;
        let now = Instant::now();
        for (group, places, _) in groups.iter() {
            if let Some(reason) = group.refused {
                self.parts.exchange.handle_refused(id, group.dispatch, reason, now);
                self.dispatches.handle_ended(group.dispatch, Some(report::name(reason)), now);
                continue;
            }
            match self.parts.exchange.handle_return(id, group.dispatch, group.rows, now) {
                Returned::Taken(slots) => {
                    self.dispatches.handle_ended(group.dispatch, None, now);
                    let row_bytes = shape.back_row_bytes() as u32;
                    let first = header.table_bytes + places.start * row_bytes;
                    for (row, slot) in (0..).zip(slots).filter(|(_, slot)| **slot != NOWHERE) {
                        let landed = Landed { rows: rows.clone(), at: first + row * row_bytes };
                        self.slots[slot.0 as usize] = Slot::Landed(landed);
                    }
                }
                Returned::Dropped => {}
                Returned::Breach { actor, expected } => {
                    let ActorId { layer, expert, .. } = actor;
                    let found = group.rows;
                    return Err(format!(
                        "{found} rows of expert {expert} of layer {layer}, sent were {expected}"
                    ));
                }
            }
        }
        Ok(())
    }

    fn end_link(&mut self, id: LinkId, why: Option<&Ended>) {
        match why {
            Some(why) if why.is_wanted() => tracing::info!(link = %id, %why, "link ended"),
            Some(why) => tracing::warn!(link = %id, %why, "link ended"),
            None => tracing::info!(link = %id, "link drained"),
        }
        self.links.remove(&id);
        let now = Instant::now();
        self.parts.exchange.handle_link_ended(id, now);
        self.dispatches.handle_link_ended(id, now);
        // The control plane may have gone already, when the program ends.
        let _ = self.observe.send(Observation::LinkEnded(id));
    }
}
