//! A bare actix actor that hands messages back: on the thread of whoever asks, or on an arbiter of its own.
//!
//! Messages are moved, never copied, as the memory carrier hands frames over. One way, they are put into
//! the mailbox as long as it takes any, and then whoever sends waits for its turn.

use std::time::{Duration, Instant};

use actix::SystemRunner;
use actix::dev::SendError;
use actix::prelude::{Actor, Addr, Arbiter, Context, Handler, Message, MessageResult, System};

use rustix::thread::{Pid, gettid};

use super::{Made, check, message};
use crate::Failure;
use crate::bench::transport::contest::Contestant;

/// What a mailbox takes: about as many rows as a link's window holds.
const MAILBOX: usize = 1024;

struct Echo {
    came: usize,
}

impl Actor for Echo {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX);
    }
}

/// To be handed back.
struct There(Box<[u8]>);

impl Message for There {
    type Result = Box<[u8]>;
}

impl Handler<There> for Echo {
    type Result = MessageResult<There>;

    fn handle(&mut self, message: There, _: &mut Self::Context) -> Self::Result {
        MessageResult(message.0)
    }
}

/// To be kept.
struct Take(std::sync::Arc<[u8]>);

impl Message for Take {
    type Result = ();
}

impl Handler<Take> for Echo {
    type Result = ();

    fn handle(&mut self, message: Take, _: &mut Self::Context) {
        self.came += usize::from(!message.0.is_empty());
    }
}

/// How many came since this was asked last.
struct HowMany;

impl Message for HowMany {
    type Result = usize;
}

impl Handler<HowMany> for Echo {
    type Result = usize;

    fn handle(&mut self, _: HowMany, _: &mut Self::Context) -> usize {
        std::mem::take(&mut self.came)
    }
}

/// Where it runs.
struct WhichThread;

impl Message for WhichThread {
    type Result = Pid;
}

impl Handler<WhichThread> for Echo {
    type Result = MessageResult<WhichThread>;

    fn handle(&mut self, _: WhichThread, _: &mut Self::Context) -> Self::Result {
        MessageResult(gettid())
    }
}

struct Actors {
    name: &'static str,
    echo: Addr<Echo>,
    system: SystemRunner,
    /// Where the actor lives, if not on the thread that asks.
    arbiter: Option<(Arbiter, Pid)>,
}

/// The end that is measured, and the other.
pub(in crate::bench::transport) fn start(is_same_thread: bool) -> Made {
    let system = System::new();
    let (name, arbiter, echo) = if is_same_thread {
        let echo = system.block_on(async { Echo { came: 0 }.start() });
        ("actix, same thread", None, echo)
    } else {
        let (arbiter, echo) = system.block_on(async {
            let arbiter = Arbiter::try_new()?;
            let echo = Echo::start_in_arbiter(&arbiter.handle(), |_| Echo { came: 0 });
            let thread = echo.send(WhichThread).await?;
            Ok::<_, Failure>(((arbiter, thread), echo))
        })?;
        ("actix, two arbiters", Some(arbiter), echo)
    };
    Ok(Box::new(Actors { name, echo, system, arbiter }))
}

impl Contestant for Actors {
    fn name(&self) -> &'static str {
        self.name
    }

    fn peer_thread(&self) -> Option<Pid> {
        self.arbiter.as_ref().map(|(_, thread)| *thread)
    }

    fn round_trips(&mut self, bytes: usize, count: usize) -> Result<Vec<Duration>, Failure> {
        let sent = message(bytes);
        let echo = &self.echo;
        self.system.block_on(async {
            let mut moving = sent.clone().into_boxed_slice();
            let mut trips = Vec::with_capacity(count);
            for _ in 0..count {
                let began = Instant::now();
                moving = echo.send(There(moving)).await?;
                trips.push(began.elapsed());
            }
            check(&sent, &moving)?;
            Ok(trips)
        })
    }

    fn one_way(&mut self, bytes: usize, count: usize) -> Result<Duration, Failure> {
        let sent: std::sync::Arc<[u8]> = message(bytes).into();
        let echo = &self.echo;
        self.system.block_on(async {
            let began = Instant::now();
            for _ in 0..count {
                match echo.try_send(Take(sent.clone())) {
                    Ok(()) => {}
                    Err(SendError::Full(message)) => echo.send(message).await?,
                    Err(SendError::Closed(_)) => return Err("the actor is gone".into()),
                }
            }
            let came = echo.send(HowMany).await?;
            let took = began.elapsed();
            if came != count {
                return Err(format!("{count} messages were sent, {came} came").into());
            }
            Ok(took)
        })
    }
}

impl Drop for Actors {
    fn drop(&mut self) {
        if let Some((arbiter, _)) = self.arbiter.take() {
            arbiter.stop();
            // A panic of that thread has been told by itself.
            let _ = arbiter.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actors_echo_on_both_kinds_of_thread() {
        for is_same_thread in [true, false] {
            let mut actors = start(is_same_thread).expect("a runtime");
            assert_eq!(actors.round_trips(1_000, 10).expect("echoed").len(), 10);
            // More than the mailbox takes.
            actors.one_way(64, 3 * MAILBOX).expect("all came");
        }
    }
}
