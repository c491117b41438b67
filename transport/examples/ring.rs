//! Measures the lanes of shared memory beside a bare ring, between the same two processes, in one run.
//!
//! The bare ring is the simplest that does the work: a length and bytes, copied in and copied out, no header,
//! no checks, no frames longer than itself. `cargo run --release --example ring -- [windows]`. Windows of
//! the two alternate, and the best of each is compared: other work on the same cores only makes them slower.

use std::future::poll_fn;
use std::io::{BufRead, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use phalanx_transport::Frame;
use phalanx_transport::buffer::{Payload, Pool};
use phalanx_transport::carrier::shm::{Doorbell, ShmAcceptor, ShmCarrier, ShmSettings};
use phalanx_transport::carrier::{Acceptor, Carrier, Connection, LaneEnds, OtherLanes, Outbox};
use phalanx_transport::wire::{Header, Kind};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::thread::futex;

const RING_BYTES: u64 = 4 << 20;
const MAPPED_BYTES: u64 = RING_BYTES + 4096;

type Failure = Box<dyn std::error::Error>;

/// One direction: tail at 0, head at 128, futex word at 256 and its flag at 260, bytes from 4096.
struct Bare {
    at: *mut u8,
    index: u64,
    other: u64,
}

impl Bare {
    fn new(file: &impl std::os::fd::AsFd) -> Result<Self, Failure> {
        // SAFETY: a fresh mapping of a file that has this length, kept until the process ends.
        let at = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                MAPPED_BYTES as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )?
        };
        Ok(Self { at: at.cast(), index: 0, other: 0 })
    }

    fn u64_at(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: within the mapping, aligned, and only used atomically.
        unsafe { AtomicU64::from_ptr(self.at.add(offset).cast()) }
    }

    fn u32_at(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.at.add(offset).cast()) }
    }

    fn span(&self, index: u64, bytes: usize) -> (*mut u8, usize) {
        let at = (index & (RING_BYTES - 1)) as usize;
        // SAFETY: within the mapping.
        (unsafe { self.at.add(4096 + at) }, bytes.min(RING_BYTES as usize - at))
    }

    fn send(&mut self, bytes: &[u8], sleeps: bool) {
        let needed = (bytes.len() as u64 + 64).next_multiple_of(64);
        while self.index + needed - self.other > RING_BYTES {
            self.other = self.u64_at(128).load(Ordering::Acquire);
            std::hint::spin_loop();
        }
        let (length_at, _) = self.span(self.index, 8);
        let (at, first) = self.span(self.index + 64, bytes.len());
        // SAFETY: there is room up to the reader's index, and units of 64 bytes never wrap.
        unsafe {
            length_at.cast::<u64>().write(bytes.len() as u64);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, first);
            std::ptr::copy_nonoverlapping(bytes[first..].as_ptr(), self.at.add(4096), bytes.len() - first);
        }
        self.index += needed;
        self.u64_at(0).store(self.index, Ordering::Release);
        if sleeps {
            self.u32_at(256).fetch_add(1, Ordering::SeqCst);
            if self.u32_at(260).load(Ordering::SeqCst) != 0 {
                let _ = futex::wake(self.u32_at(256), futex::Flags::empty(), 1);
            }
        }
    }

    fn receive(&mut self, into: &mut [u8], sleeps: bool) -> usize {
        loop {
            if self.other > self.index {
                break;
            }
            let seen = self.u32_at(256).load(Ordering::SeqCst);
            self.other = self.u64_at(0).load(Ordering::Acquire);
            if self.other > self.index {
                break;
            }
            if sleeps {
                self.u32_at(260).store(1, Ordering::SeqCst);
                let _ = futex::wait(self.u32_at(256), futex::Flags::empty(), seen, None);
                self.u32_at(260).store(0, Ordering::SeqCst);
            }
            std::hint::spin_loop();
        }
        let (length_at, _) = self.span(self.index, 8);
        // SAFETY: written before the tail that was read.
        let bytes = unsafe { length_at.cast::<u64>().read() } as usize;
        let (at, first) = self.span(self.index + 64, bytes);
        let into = &mut into[..bytes];
        // SAFETY: as above.
        unsafe {
            std::ptr::copy_nonoverlapping(at, into.as_mut_ptr(), first);
            std::ptr::copy_nonoverlapping(self.at.add(4096), into[first..].as_mut_ptr(), bytes - first);
        }
        self.index += (bytes as u64 + 64).next_multiple_of(64);
        self.u64_at(128).store(self.index, Ordering::Release);
        bytes
    }
}

/// Our lane and the doorbell at which to wait for it.
struct Ours {
    lane: LaneEnds,
    doorbell: Doorbell,
    outbox: Outbox,
    _control: LaneEnds,
}

impl Ours {
    fn new(connection: Connection, doorbell: Doorbell) -> Self {
        let OtherLanes::Ready { data: mut lane, .. } = connection.lanes else { unreachable!("shm has both") };
        lane.receiver.raise(16 << 20);
        Self { lane, doorbell, outbox: Outbox::new(), _control: connection.control }
    }

    fn send(&mut self, payload: &Payload) {
        let header = Header::of_bytes(Kind::Dispatch, 0, payload.len() as u32);
        self.outbox.push_back(Frame::new(header, payload.clone()));
        let sent = poll_fn(|context| self.lane.sender.poll_send(context, &mut self.outbox));
        self.doorbell.block_on(sent).expect("the other process lives");
    }

    fn receive(&mut self) -> Frame {
        let received = poll_fn(|context| self.lane.receiver.poll_receive(context));
        self.doorbell.block_on(received).expect("the other process lives").expect("it does not finish")
    }
}

struct Side {
    out: Bare,
    back: Bare,
    spinning: Ours,
    sleeping: Ours,
    payloads: [(usize, Payload); 2],
    buffer: Vec<u8>,
}

impl Side {
    /// One window: `count` round trips, or as many frames one way and an answer.
    fn run(&mut self, is_bare: bool, sleeps: bool, is_flow: bool, bytes: usize, count: usize, leads: bool) {
        let payload =
            &self.payloads.iter().find(|(size, _)| *size == bytes).expect("a size that is measured").1;
        let ours = if sleeps { &mut self.sleeping } else { &mut self.spinning };
        for round in 0..count {
            for is_sending in [leads, !leads] {
                if is_flow && is_sending != leads && round + 1 < count {
                    // Only the last is answered.
                    continue;
                }
                match (is_bare, is_sending) {
                    (true, true) => self.out.send(payload, sleeps),
                    (true, false) => {
                        self.back.receive(&mut self.buffer, sleeps);
                    }
                    (false, true) => ours.send(payload),
                    (false, false) => drop(ours.receive()),
                }
            }
        }
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    if arguments.get(1).is_some_and(|first| first == "answer") {
        answer(&runtime, &arguments[2..])
    } else {
        lead(&runtime, arguments.get(1).map_or(Ok(200), |windows| windows.parse())?)
    }
}

fn payloads() -> [(usize, Payload); 2] {
    let pool = Pool::new(64 << 20);
    [14 << 10, 1 << 20].map(|bytes| {
        let payload = pool.copy_of(&vec![7; bytes]).expect("the pool is large enough");
        (bytes, payload.into())
    })
}

fn answer(runtime: &tokio::runtime::Runtime, arguments: &[String]) -> Result<(), Failure> {
    let open = |path: &String| std::fs::OpenOptions::new().read(true).write(true).open(path);
    let (back, out) = (Bare::new(&open(&arguments[1])?)?, Bare::new(&open(&arguments[2])?)?);
    let ours = |spin, number: usize| -> Result<Ours, Failure> {
        let doorbell = Doorbell::new(spin)?;
        let carrier = ShmCarrier::new(ShmSettings::default(), Pool::new(64 << 20), &doorbell)?;
        Ok(Ours::new(runtime.block_on(carrier.dial(&format!("{}-{number}", arguments[0])))?, doorbell))
    };
    let (spinning, sleeping) = (ours(Duration::MAX, 0)?, ours(Duration::ZERO, 1)?);
    let payloads = payloads();
    let mut side = Side { out, back, spinning, sleeping, payloads, buffer: vec![0; 2 << 20] };
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let numbers: Vec<usize> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let (is_bare, sleeps, is_flow) = (numbers[0] != 0, numbers[1] != 0, numbers[2] != 0);
        side.run(is_bare, sleeps, false, numbers[3], 1, false);
        side.run(is_bare, sleeps, is_flow, numbers[3], numbers[4] - 1, false);
    }
    Ok(())
}

fn lead(runtime: &tokio::runtime::Runtime, windows: usize) -> Result<(), Failure> {
    let path = std::env::temp_dir().join(format!("phalanx-ring-{}", std::process::id()));
    let path = path.to_str().ok_or("the temporary folder has no plain name")?;
    let file = || -> Result<_, Failure> {
        let file = rustix::fs::memfd_create("bare", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, MAPPED_BYTES)?;
        Ok(file)
    };
    let (there, back) = (file()?, file()?);
    let doorbells = [Doorbell::new(Duration::MAX)?, Doorbell::new(Duration::ZERO)?];
    let _inside = runtime.enter();
    let bind = |doorbell, number: usize| {
        let address = format!("shm:{path}-{number}");
        ShmAcceptor::bind(&address, ShmSettings::default(), Pool::new(64 << 20), doorbell)
    };
    let mut acceptors = [bind(&doorbells[0], 0)?, bind(&doorbells[1], 1)?];
    let name = |file: &std::os::fd::OwnedFd| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let mut child = std::process::Command::new(std::env::current_exe()?)
        .args(["answer", &format!("shm:{path}"), &name(&there), &name(&back)])
        .stdin(std::process::Stdio::piped())
        .spawn()?;
    let mut orders = child.stdin.take().ok_or("the child has an input")?;
    let [first, second] = &mut acceptors;
    let spinning = Ours::new(runtime.block_on(first.accept())?.connection, doorbells[0].clone());
    let sleeping = Ours::new(runtime.block_on(second.accept())?.connection, doorbells[1].clone());
    let mut side = Side {
        out: Bare::new(&there)?,
        back: Bare::new(&back)?,
        spinning,
        sleeping,
        payloads: payloads(),
        buffer: vec![0; 2 << 20],
    };
    for (name, sleeps, is_flow, bytes, count) in [
        ("14 KiB round trip, spinning", false, false, 14 << 10, 200),
        ("14 KiB round trip, sleeping", true, false, 14 << 10, 100),
        ("14 KiB one way, spinning", false, true, 14 << 10, 600),
        ("14 KiB one way, sleeping", true, true, 14 << 10, 600),
        ("1 MiB one way, spinning", false, true, 1 << 20, 16),
        ("1 MiB one way, sleeping", true, true, 1 << 20, 16),
    ] {
        let mut times = [Vec::new(), Vec::new()];
        for window in 0..2 * windows {
            let is_bare = window % 2 == 0;
            writeln!(
                orders,
                "{} {} {} {bytes} {count}",
                u8::from(is_bare),
                u8::from(sleeps),
                u8::from(is_flow)
            )?;
            // The first answers when the other end is there.
            side.run(is_bare, sleeps, false, bytes, 1, true);
            let began = Instant::now();
            side.run(is_bare, sleeps, is_flow, bytes, count - 1, true);
            times[window % 2].push(began.elapsed().as_secs_f64() / (count - 1) as f64);
        }
        for times in &mut times {
            times.sort_by(f64::total_cmp);
        }
        let describe = |seconds: f64| match is_flow {
            true => format!("{:.1} GB/s", bytes as f64 / seconds / 1e9),
            false => format!("{:.2} us", seconds * 1e6),
        };
        let [bare, ours] = times;
        println!(
            "{name}: best {} beside {} (time x {:.2}), median {} beside {} (time x {:.2})",
            describe(ours[0]),
            describe(bare[0]),
            ours[0] / bare[0],
            describe(ours[ours.len() / 2]),
            describe(bare[bare.len() / 2]),
            ours[ours.len() / 2] / bare[bare.len() / 2],
        );
    }
    drop(orders);
    child.wait()?;
    Ok(())
}
