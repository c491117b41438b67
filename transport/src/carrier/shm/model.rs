//! All interleavings of how one end of a ring waits and how the other wakes it.
//!
//! Pure. Two threads run the steps of `ring` and `doorbell` one at a time on a machine with store buffers (what
//! a thread stores becomes visible to the other at some later step; atomic read-modify-writes and fences wait
//! for that). Every order of steps is tried. A run is bad when the producer has written everything and the
//! consumer sleeps nevertheless. The protocol has none; with any one of its precautions left out there is one.

use std::collections::HashSet;

/// Things to be received.
const ITEMS: u8 = 3;

/// The precautions.
#[derive(Debug, Clone, Copy)]
struct Protocol {
    producer_fences: bool,
    consumer_fences: bool,
    looks_again: bool,
    clears_before_ringing: bool,
    counts_before_polling: bool,
    raises_asleep_before_comparing: bool,
}

const PROTOCOL: Protocol = Protocol {
    producer_fences: true,
    consumer_fences: true,
    looks_again: true,
    clears_before_ringing: true,
    counts_before_polling: true,
    raises_asleep_before_comparing: true,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Variable {
    Tail,
    Waits,
    Count,
    Asleep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ProducerAt {
    Publish,
    Fence,
    LookWaits,
    Clear,
    Count,
    LookAsleep,
    Wake,
    ClearLate,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ConsumerAt {
    Seen,
    Look,
    Arm,
    Fence,
    LookAgain,
    SeenLate,
    RaiseAsleep,
    Compare,
    Sleeping,
    RaiseAsleepLate,
    LowerAsleep,
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    memory: [u8; 4],
    /// Stored and not yet visible: the producer's, the consumer's.
    buffers: [Vec<(Variable, u8)>; 2],
    producer: ProducerAt,
    written: u8,
    consumer: ConsumerAt,
    read: u8,
    seen: u8,
}

impl State {
    fn load(&self, thread: usize, variable: Variable) -> u8 {
        let own = self.buffers[thread].iter().rev().find(|(stored, _)| *stored == variable);
        own.map_or(self.memory[variable as usize], |(_, value)| *value)
    }

    fn store(&mut self, thread: usize, variable: Variable, value: u8) {
        self.buffers[thread].push((variable, value));
    }

    /// An atomic change, `None` while stores of the thread are still on their way.
    fn change(&mut self, thread: usize, variable: Variable, change: impl Fn(u8) -> u8) -> Option<u8> {
        if !self.buffers[thread].is_empty() {
            return None;
        }
        let old = self.memory[variable as usize];
        self.memory[variable as usize] = change(old);
        Some(old)
    }

    /// The producer's next step, `None` if it cannot take one.
    fn produce(&self, protocol: Protocol) -> Option<Self> {
        use ProducerAt as At;
        let mut next = self.clone();
        let after = if self.written == ITEMS { At::Done } else { At::Publish };
        next.producer = match self.producer {
            At::Publish => {
                next.written += 1;
                next.store(0, Variable::Tail, next.written);
                if protocol.producer_fences { At::Fence } else { At::LookWaits }
            }
            At::Fence if self.buffers[0].is_empty() => At::LookWaits,
            At::Fence => return None,
            At::LookWaits if self.load(0, Variable::Waits) == 0 => after,
            At::LookWaits if protocol.clears_before_ringing => At::Clear,
            At::LookWaits => At::Count,
            At::Clear if next.change(0, Variable::Waits, |_| 0)? == 0 => after,
            At::Clear => At::Count,
            At::Count => {
                next.change(0, Variable::Count, |count| count + 1)?;
                At::LookAsleep
            }
            At::LookAsleep if self.load(0, Variable::Asleep) != 0 => At::Wake,
            At::Wake | At::LookAsleep => {
                if self.producer == At::Wake && self.consumer == ConsumerAt::Sleeping {
                    next.consumer = ConsumerAt::LowerAsleep;
                }
                if protocol.clears_before_ringing { after } else { At::ClearLate }
            }
            At::ClearLate => {
                next.change(0, Variable::Waits, |_| 0)?;
                after
            }
            At::Done => return None,
        };
        Some(next)
    }

    /// The consumer's next step, `None` if it cannot take one.
    fn consume(&self, protocol: Protocol) -> Option<Self> {
        use ConsumerAt as At;
        let mut next = self.clone();
        let begin = if protocol.counts_before_polling { At::Seen } else { At::Look };
        let sleep = match protocol {
            Protocol { counts_before_polling: false, .. } => At::SeenLate,
            Protocol { raises_asleep_before_comparing: false, .. } => At::Compare,
            _ => At::RaiseAsleep,
        };
        next.consumer = match self.consumer {
            At::Seen => {
                next.seen = self.load(1, Variable::Count);
                At::Look
            }
            At::Look | At::LookAgain => {
                let tail = self.load(1, Variable::Tail);
                let is_news = tail != self.read;
                next.read = tail;
                match self.consumer {
                    _ if tail == ITEMS => At::Done,
                    _ if is_news => begin,
                    At::Look => At::Arm,
                    _ => sleep,
                }
            }
            At::Arm => {
                next.store(1, Variable::Waits, 1);
                match protocol {
                    Protocol { looks_again: false, .. } => sleep,
                    Protocol { consumer_fences: true, .. } => At::Fence,
                    _ => At::LookAgain,
                }
            }
            At::Fence if self.buffers[1].is_empty() => At::LookAgain,
            At::Fence => return None,
            At::SeenLate => {
                next.seen = self.load(1, Variable::Count);
                At::RaiseAsleep
            }
            At::RaiseAsleep => {
                next.change(1, Variable::Asleep, |asleep| asleep + 1)?;
                At::Compare
            }
            // The kernel compares and goes to sleep in one step, under a lock that waking takes too.
            At::Compare if !self.buffers[1].is_empty() => return None,
            At::Compare if self.memory[Variable::Count as usize] != self.seen => {
                if protocol.raises_asleep_before_comparing { At::LowerAsleep } else { begin }
            }
            At::Compare if protocol.raises_asleep_before_comparing => At::Sleeping,
            At::Compare => At::RaiseAsleepLate,
            At::RaiseAsleepLate => {
                next.change(1, Variable::Asleep, |asleep| asleep + 1)?;
                At::Sleeping
            }
            At::LowerAsleep => {
                next.change(1, Variable::Asleep, |asleep| asleep - 1)?;
                begin
            }
            At::Sleeping | At::Done => return None,
        };
        Some(next)
    }

    /// What may follow.
    fn successors(&self, protocol: Protocol) -> Vec<Self> {
        let visible = (0..2).filter_map(|thread| {
            let mut next = self.clone();
            let (variable, value) = *self.buffers[thread].first()?;
            next.buffers[thread].remove(0);
            next.memory[variable as usize] = value;
            Some(next)
        });
        visible.chain(self.produce(protocol)).chain(self.consume(protocol)).collect()
    }
}

/// The states there are, and the first in which the consumer sleeps for ever.
fn explore(protocol: Protocol) -> (usize, Option<State>) {
    let begin = State {
        memory: [0; 4],
        buffers: [Vec::new(), Vec::new()],
        producer: ProducerAt::Publish,
        written: 0,
        consumer: if protocol.counts_before_polling { ConsumerAt::Seen } else { ConsumerAt::Look },
        read: 0,
        seen: 0,
    };
    let (mut known, mut open) = (HashSet::from([begin.clone()]), vec![begin]);
    while let Some(state) = open.pop() {
        let successors = state.successors(protocol);
        if successors.is_empty() && state.consumer != ConsumerAt::Done {
            return (known.len(), Some(state));
        }
        open.extend(successors.into_iter().filter(|next| known.insert(next.clone())));
    }
    (known.len(), None)
}

#[test]
fn nobody_sleeps_while_there_is_news() {
    let (states, stuck) = explore(PROTOCOL);
    assert_eq!(stuck, None);
    assert!(states > 1_000, "{states} states are not all of them");
}

/// Each precaution is needed; and so this model would notice if it were not there.
#[test]
fn without_any_one_precaution_somebody_may_sleep_for_ever() {
    for (what, protocol) in [
        ("the producer's fence", Protocol { producer_fences: false, ..PROTOCOL }),
        ("the consumer's fence", Protocol { consumer_fences: false, ..PROTOCOL }),
        ("the second look", Protocol { looks_again: false, ..PROTOCOL }),
        ("clearing before ringing", Protocol { clears_before_ringing: false, ..PROTOCOL }),
        ("counting before polling", Protocol { counts_before_polling: false, ..PROTOCOL }),
        ("asleep before comparing", Protocol { raises_asleep_before_comparing: false, ..PROTOCOL }),
    ] {
        let (_, stuck) = explore(protocol);
        assert!(stuck.is_some(), "{what} is not needed, or the model does not see that it is");
    }
}
