//! The carrier of shared memory, from outside: order, ends, deaths, hostile peers, and what it costs to wait.
//!
//! The hostile peers here are written against the tables in the documentation, with plain reads and writes of
//! the memory files, so they share no code with what they attack.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "what the tests share may panic as they do")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::future::poll_fn;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use phalanx_transport::Frame;
use phalanx_transport::buffer::Pool;
use phalanx_transport::carrier::shm::{Doorbell, SPIN, ShmAcceptor, ShmCarrier, ShmSettings};
use phalanx_transport::carrier::{
    Acceptor, Carrier, ConnectError, Connection, LaneEnds, LaneError, LaneReceiver, LaneSender, OtherLanes,
    Outbox, Vouched,
};
use phalanx_transport::wire::{Header, Kind};
use rustix::fs::{MemfdFlags, SealFlags};
use tokio::runtime::Runtime;

/// A death must be known after this.
const DEATH: Duration = Duration::from_millis(100);
/// Nothing here takes so long unless it hangs.
const HANG: Duration = Duration::from_secs(30);

/// Counts what each thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn address() -> (String, PathBuf) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("phalanx-shm-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    (format!("shm:{}", path.display()), path)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Both ends of a connection, with limits raised.
struct End {
    control: LaneEnds,
    data: LaneEnds,
    weights: LaneEnds,
    doorbell: Doorbell,
}

impl End {
    fn new(connection: Connection, doorbell: &Doorbell) -> Self {
        assert_eq!(connection.peer, Vouched::User(rustix::process::geteuid().as_raw()));
        let OtherLanes::Ready { mut data, mut weights } = connection.lanes else {
            panic!("shm has all lanes")
        };
        let mut control = connection.control;
        for lane in [&mut control, &mut data, &mut weights] {
            lane.receiver.raise(16 << 20);
        }
        Self { control, data, weights, doorbell: doorbell.clone() }
    }
}

fn pair(runtime: &Runtime, settings: &ShmSettings, spin: Duration) -> [End; 2] {
    let (address, _) = address();
    let doorbells = [Doorbell::new(spin).unwrap(), Doorbell::new(spin).unwrap()];
    let pool = || Pool::new(64 << 20);
    let carrier = ShmCarrier::new(settings.clone(), pool(), &doorbells[0]).unwrap();
    runtime.block_on(async {
        let mut acceptor = ShmAcceptor::bind(&address, settings.clone(), pool(), &doorbells[1]).unwrap();
        assert_eq!(acceptor.address(), address);
        let (dialled, accepted) = tokio::join!(carrier.dial(&address), acceptor.accept());
        [End::new(dialled.unwrap(), &doorbells[0]), End::new(accepted.unwrap().connection, &doorbells[1])]
    })
}

fn small() -> ShmSettings {
    ShmSettings { data_ring_bytes: 4096, weights_ring_bytes: 64 << 10, ..ShmSettings::default() }
}

/// The byte at `at` of frame `about`.
fn content(about: u64, at: usize) -> u8 {
    (about.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (at % 57)) as u8 ^ at as u8
}

fn frame(pool: &Pool, about: u64, bytes: usize) -> Frame {
    let mut buffer = pool.take(bytes).expect("the pool is large enough");
    buffer.iter_mut().enumerate().for_each(|(at, byte)| *byte = content(about, at));
    Frame::new(Header::of_bytes(Kind::Weights, about, bytes as u32), buffer)
}

fn check(frame: &Frame, about: u64, bytes: usize) {
    assert_eq!((frame.header.dispatch, frame.payload.len()), (about, bytes));
    let wrong = frame.payload.iter().enumerate().find(|(at, byte)| **byte != content(about, *at));
    assert_eq!(wrong, None, "frame {about}");
}

const SIZES: [usize; 15] =
    [0, 1, 63, 64, 65, 4031, 4032, 4033, 4096, 14_336, 65_535, 65_536, 70_000, 300_001, 0];

fn size(about: u64) -> usize {
    SIZES[(about % SIZES.len() as u64) as usize]
}

async fn send_all(mut sender: Box<dyn LaneSender>, count: u64) -> Box<dyn LaneSender> {
    let (pool, mut outbox) = (Pool::new(64 << 20), Outbox::new());
    for about in 0..count {
        outbox.push_back(frame(&pool, about, size(about)));
        if about % 3 == 0 {
            poll_fn(|context| sender.poll_send(context, &mut outbox)).await.unwrap();
            assert!(outbox.is_empty());
        }
    }
    poll_fn(|context| sender.poll_send(context, &mut outbox)).await.unwrap();
    poll_fn(|context| sender.poll_finish(context)).await.unwrap();
    sender
}

async fn receive_all(mut receiver: Box<dyn LaneReceiver>, count: u64) -> Box<dyn LaneReceiver> {
    for about in 0..count {
        let received = receive(&mut receiver).await.unwrap();
        check(&received.expect("it is not finished yet"), about, size(about));
    }
    for _ in 0..2 {
        assert!(receive(&mut receiver).await.unwrap().is_none(), "finished, and it stays so");
    }
    receiver
}

async fn receive(receiver: &mut Box<dyn LaneReceiver>) -> Result<Option<Frame>, LaneError> {
    poll_fn(|context| receiver.poll_receive(context)).await
}

/// Each lane both ways at once, frames from nothing to many times the ring, by tasks of a runtime.
#[test]
fn tasks_receive_everything_in_order_and_then_the_end() {
    let runtime = runtime();
    let [one, other] = pair(&runtime, &small(), SPIN);
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        let mut ends = tokio::task::JoinSet::new();
        for end in [one, other] {
            for lane in [end.control, end.data, end.weights] {
                tasks.spawn(send_all(lane.sender, 300));
                ends.spawn(receive_all(lane.receiver, 300));
            }
        }
        // Nothing is dropped before all is done: the end of a control lane is the end of its connection.
        let kept = tokio::time::timeout(HANG, async { (tasks.join_all().await, ends.join_all().await) });
        kept.await.expect("no lane waits for ever");
    });
}

/// The same by threads that sleep at once, spin briefly, or hardly ever sleep.
#[test]
fn threads_receive_everything_in_order_and_then_the_end() {
    for spin in [Duration::ZERO, SPIN, Duration::from_millis(1)] {
        let runtime = runtime();
        let [one, other] = pair(&runtime, &small(), spin);
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for End { control, data, weights, doorbell } in [one, other] {
                let (sending, receiving) = (doorbell.clone(), doorbell);
                let senders = [control.sender, data.sender, weights.sender];
                let receivers = [control.receiver, data.receiver, weights.receiver];
                for (sender, receiver) in senders.into_iter().zip(receivers) {
                    let (sending, receiving) = (sending.clone(), receiving.clone());
                    threads.push((
                        scope.spawn(move || sending.block_on(send_all(sender, 60))),
                        scope.spawn(move || receiving.block_on(receive_all(receiver, 60))),
                    ));
                }
            }
            let kept: Vec<_> =
                threads.into_iter().map(|(a, b)| (a.join().unwrap(), b.join().unwrap())).collect();
            assert_eq!(kept.len(), 6);
        });
    }
}

/// A reader that does not read bounds what its peer can send; the other lanes go on, and later it goes on too.
#[test]
fn a_slow_reader_holds_its_sender_back_and_nobody_else() {
    let runtime = runtime();
    let [mut one, mut other] = pair(&runtime, &small(), Duration::ZERO);
    let pool = Pool::new(64 << 20);
    let mut outbox: Outbox = (0..100).map(|about| frame(&pool, about, 1000)).collect();
    let mut context = Context::from_waker(Waker::noop());
    assert!(one.data.sender.poll_send(&mut context, &mut outbox).is_pending());
    // 4096 bytes hold three frames of 64 and 1024 bytes, and the fourth is begun.
    assert_eq!(outbox.len(), 100 - 4);

    let mut weights = Outbox::from([frame(&pool, 7, 1000)]);
    assert!(one.weights.sender.poll_send(&mut context, &mut weights).is_ready());
    let received = other.doorbell.block_on(receive(&mut other.weights.receiver)).unwrap().unwrap();
    check(&received, 7, 1000);

    std::thread::scope(|scope| {
        let (doorbell, mut sender) = (one.doorbell.clone(), one.data.sender);
        let sending = scope.spawn(move || {
            doorbell.block_on(poll_fn(|context| sender.poll_send(context, &mut outbox))).map(|()| sender)
        });
        for about in 0..100 {
            let received = other.doorbell.block_on(receive(&mut other.data.receiver)).unwrap().unwrap();
            check(&received, about, 1000);
        }
        assert!(sending.join().unwrap().is_ok());
    });
}

/// A lane that is dropped without being finished is no lane that is finished; the others go on.
#[test]
fn a_lane_that_is_dropped_is_cut() {
    let runtime = runtime();
    let [mut one, mut other] = pair(&runtime, &small(), SPIN);
    let pool = Pool::new(64 << 20);
    let mut context = Context::from_waker(Waker::noop());
    assert!(one.data.sender.poll_send(&mut context, &mut Outbox::from([frame(&pool, 3, 70)])).is_ready());
    drop(one.data);
    check(&other.doorbell.block_on(receive(&mut other.data.receiver)).unwrap().unwrap(), 3, 70);
    let cut = other.doorbell.block_on(receive(&mut other.data.receiver));
    assert!(matches!(cut, Err(LaneError::Cut(_))), "{cut:?}");
    let cut = other.data.sender.poll_send(&mut context, &mut Outbox::from([frame(&pool, 3, 70)]));
    assert!(matches!(cut, Poll::Ready(Err(LaneError::Cut(_)))), "{cut:?}");
    assert!(one.weights.sender.poll_send(&mut context, &mut Outbox::from([frame(&pool, 4, 70)])).is_ready());
    check(&other.doorbell.block_on(receive(&mut other.weights.receiver)).unwrap().unwrap(), 4, 70);
    // The control lane is the lifeline: without it everything ends.
    drop(one.control);
    let cut = other.doorbell.block_on(receive(&mut other.weights.receiver));
    assert!(matches!(cut, Err(LaneError::Cut(_))), "{cut:?}");
}

/// Before the limit is raised, a peer cannot have more allocated than a handshake needs.
#[test]
fn a_lane_begins_with_small_frames() {
    let runtime = runtime();
    let [mut one, mut other] = pair(&runtime, &ShmSettings::default(), SPIN);
    let pool = Pool::new(64 << 20);
    let mut context = Context::from_waker(Waker::noop());
    for (lane, back) in [(&mut one.data, &mut other.data), (&mut one.control, &mut other.control)] {
        back.receiver.raise(phalanx_transport::carrier::HANDSHAKE_BYTES_MAX);
        let mut outbox = Outbox::from([frame(&pool, 1, 16_384), frame(&pool, 2, 16_385)]);
        assert!(lane.sender.poll_send(&mut context, &mut outbox).is_ready());
        check(&runtime.block_on(receive(&mut back.receiver)).unwrap().unwrap(), 1, 16_384);
        let refused = runtime.block_on(receive(&mut back.receiver));
        assert!(matches!(refused, Err(LaneError::Header(_))), "{refused:?}");
    }
}

/// One warm-up, and then not a single allocation: sending, receiving, waiting by a thread and by a waker.
#[test]
fn nothing_is_allocated_in_the_steady_state() {
    let runtime = runtime();
    let [mut one, mut other] = pair(&runtime, &small(), Duration::ZERO);
    let pool = Pool::new(64 << 20);
    let mut outbox = Outbox::with_capacity(4);
    let payload = frame(&pool, 5, 14_336).payload;
    std::thread::scope(|scope| {
        let (doorbell, lane) = (other.doorbell.clone(), &mut other.data);
        let echo = scope.spawn(move || {
            let mut outbox = Outbox::with_capacity(4);
            let mut before = 0;
            for round in 0..300 {
                if round == 100 {
                    before = ALLOCATIONS.get();
                }
                outbox.extend(doorbell.block_on(receive(&mut lane.receiver)).unwrap());
                doorbell.block_on(poll_fn(|context| lane.sender.poll_send(context, &mut outbox))).unwrap();
            }
            ALLOCATIONS.get() - before
        });
        let mut before = 0;
        for round in 0..300 {
            if round == 100 {
                before = ALLOCATIONS.get();
            }
            let header = Header::of_bytes(Kind::Dispatch, round, payload.len() as u32);
            outbox.push_back(Frame::new(header, payload.clone()));
            let sender = &mut one.data.sender;
            one.doorbell.block_on(poll_fn(|context| sender.poll_send(context, &mut outbox))).unwrap();
            // As a task would: pending with somebody else's waker, which the watcher then has to wake.
            let mut context = Context::from_waker(Waker::noop());
            let received = match one.data.receiver.poll_receive(&mut context) {
                Poll::Ready(received) => received,
                Poll::Pending => one.doorbell.block_on(receive(&mut one.data.receiver)),
            };
            assert_eq!(received.unwrap().unwrap().header.dispatch, round);
        }
        let here = ALLOCATIONS.get() - before;
        assert_eq!((here, echo.join().unwrap()), (0, 0), "allocations here and there");
    });
}

/// Waiting costs a few looks a second, not a core.
#[test]
fn an_idle_thread_sleeps() {
    let runtime = runtime();
    let [mut one, _other] = pair(&runtime, &small(), SPIN);
    let doorbell = one.doorbell.clone();
    let (began, mut polls) = (Instant::now(), 0_u64);
    doorbell.block_on(poll_fn(|context| {
        polls += 1;
        assert!(one.data.receiver.poll_receive(context).is_pending());
        if doorbell.naps_and_scans().0 < 4 { Poll::Pending } else { Poll::Ready(()) }
    }));
    // Four naps of 100 ms; signals and clocks may cost one.
    assert!(began.elapsed() >= Duration::from_millis(250), "{polls} polls in {:?}", began.elapsed());
}

/// A process that a test starts: this program, told by a variable to be the other end.
struct Peer(Child);

impl Peer {
    fn start(address: &str, role: &str) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["the_other_end", "--exact", "--nocapture"])
            .env("PHALANX_TEST_PEER", format!("{role} {address}"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test: what a child process does.
#[test]
fn the_other_end() {
    let Ok(told) = std::env::var("PHALANX_TEST_PEER") else { return };
    let (role, address) = told.split_once(' ').unwrap();
    let runtime = runtime();
    let doorbell = Doorbell::new(SPIN).unwrap();
    let carrier = ShmCarrier::new(small(), Pool::new(64 << 20), &doorbell).unwrap();
    let end = End::new(runtime.block_on(carrier.dial(address)).unwrap(), &doorbell);
    match role {
        "finish" => {
            let lanes = [end.control, end.data, end.weights];
            let sent = lanes.map(|lane| (runtime.block_on(send_all(lane.sender, 30)), lane.receiver));
            // What was sent was received once the other end has finished too, and until then nothing is dropped.
            let _kept = sent.map(|(sender, receiver)| (sender, runtime.block_on(receive_all(receiver, 0))));
        }
        "flood" => drop(runtime.block_on(send_all(end.data.sender, u64::MAX))),
        "idle" => doorbell.block_on(std::future::pending()),
        other => panic!("no such role: {other}"),
    }
}

fn with_peer(role: &str, runtime: &Runtime) -> (Peer, End) {
    let (address, _) = address();
    let doorbell = Doorbell::new(SPIN).unwrap();
    runtime.block_on(async {
        let mut acceptor =
            ShmAcceptor::bind(&address, ShmSettings::default(), Pool::new(64 << 20), &doorbell).unwrap();
        let peer = Peer::start(&address, role);
        let arrival = tokio::time::timeout(HANG, acceptor.accept()).await.expect("the child dials").unwrap();
        (peer, End::new(arrival.connection, &doorbell))
    })
}

#[test]
fn a_process_that_finishes_loses_nothing() {
    let runtime = runtime();
    let (mut peer, end) = with_peer("finish", &runtime);
    let kept: Vec<_> = [end.control, end.data, end.weights]
        .map(|lane| {
            let receiver = runtime.block_on(receive_all(lane.receiver, 30));
            (receiver, runtime.block_on(send_all(lane.sender, 0)))
        })
        .into();
    assert!(peer.0.wait().unwrap().success());
    drop(kept);
}

/// SIGKILL in the middle of a flood, and while nothing happens: everything that waits ends within 100 ms, with
/// an error that names the peer, and everything whole is received before.
#[test]
fn a_killed_process_is_noticed_at_once() {
    for role in ["flood", "idle", "idle", "flood"] {
        let runtime = runtime();
        let (mut peer, end) = with_peer(role, &runtime);
        let End { mut control, mut data, mut weights, doorbell } = end;
        let mut about = 0;
        while role == "flood" && about < 100 {
            check(&doorbell.block_on(receive(&mut data.receiver)).unwrap().unwrap(), about, size(about));
            about += 1;
        }
        let control = runtime
            .spawn(async move { (receive(&mut control.receiver).await, Instant::now(), control.sender) });
        // A sender whose ring is full waits too; the weights lane is not read by the child.
        let pool = Pool::new(64 << 20);
        let mut outbox: Outbox = (0..3).map(|about| frame(&pool, about, 65_536)).collect();
        let mut context = Context::from_waker(Waker::noop());
        assert!(weights.sender.poll_send(&mut context, &mut outbox).is_pending());
        let sending = runtime.spawn(async move {
            (poll_fn(|context| weights.sender.poll_send(context, &mut outbox)).await, Instant::now())
        });
        let naps = doorbell.naps_and_scans().0;
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let ended = loop {
                    match doorbell.block_on(receive(&mut data.receiver)) {
                        Ok(Some(frame)) => {
                            check(&frame, about, size(about));
                            about += 1;
                        }
                        other => break other,
                    }
                };
                (ended.map(drop), Instant::now())
            });
            let began = Instant::now();
            while role == "idle" && doorbell.naps_and_scans().0 == naps {
                assert!(began.elapsed() < HANG, "it waits some day");
                std::thread::yield_now();
            }
            let killed = Instant::now();
            peer.0.kill().unwrap();
            let id = format!("process {}", peer.0.id());
            let (data, at) = waiting.join().unwrap();
            let (sent, sent_at) = runtime.block_on(sending).unwrap();
            let (control, control_at, _sender) = runtime.block_on(control).unwrap();
            for (what, ended, at) in
                [("data", data, at), ("weights", sent, sent_at), ("control", control.map(drop), control_at)]
            {
                let why = ended.expect_err(what);
                assert!(matches!(why, LaneError::Cut(_)) && why.to_string().contains(&id), "{what}: {why}");
                assert!(at.duration_since(killed) < DEATH, "{what}: {:?}", at.duration_since(killed));
            }
        });
    }
}

const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

fn memory(bytes: u64, seals: SealFlags) -> File {
    let file = rustix::fs::memfd_create("hostile", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&file, bytes).unwrap();
    rustix::fs::fcntl_add_seals(&file, seals).unwrap();
    file.into()
}

/// A greeting and its files, to be spoilt.
struct Greeting {
    bytes: Vec<u8>,
    files: Vec<File>,
}

impl Greeting {
    fn good() -> Self {
        let mut bytes = vec![0; 64];
        bytes[..8].copy_from_slice(b"PHLX-SHM");
        bytes[8] = 1;
        bytes[16..24].copy_from_slice(&8192_u64.to_le_bytes());
        bytes[24..32].copy_from_slice(&4096_u64.to_le_bytes());
        let sizes = [4096, 4096 + 8192, 4096 + 8192, 4096 + 4096, 4096 + 4096];
        Self { bytes, files: sizes.map(|bytes| memory(bytes, SEALS)).into() }
    }

    fn send(&self, stream: &UnixStream) {
        let files: Vec<_> = self.files.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        assert!(files.is_empty() || control.push(rustix::net::SendAncillaryMessage::ScmRights(&files)));
        let part = [IoSlice::new(&self.bytes)];
        let sent = rustix::net::sendmsg(stream, &part, &mut control, rustix::net::SendFlags::NOSIGNAL);
        assert_eq!(sent.unwrap(), self.bytes.len());
    }
}

struct Victim {
    runtime: Runtime,
    acceptor: ShmAcceptor,
    doorbell: Doorbell,
    path: PathBuf,
}

impl Victim {
    fn new(settings: ShmSettings) -> Self {
        let runtime = runtime();
        let (address, path) = address();
        let doorbell = Doorbell::new(SPIN).unwrap();
        let pool = Pool::new(1 << 20);
        let acceptor =
            runtime.block_on(async { ShmAcceptor::bind(&address, settings, pool, &doorbell).unwrap() });
        Self { runtime, acceptor, doorbell, path }
    }

    fn stream(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream
    }

    fn accept(&mut self) -> Result<Connection, ConnectError> {
        let accepted = async { tokio::time::timeout(HANG, self.acceptor.accept()).await };
        self.runtime.block_on(accepted).expect("it answers").map(|arrival| arrival.connection)
    }
}

#[test]
fn hostile_setups_are_refused_with_a_reason_and_others_go_on() {
    let mut victim = Victim::new(ShmSettings { ring_bytes_max: 1 << 20, ..ShmSettings::default() });
    type Spoil = fn(&mut Greeting);
    let spoilt: [(&str, Spoil); 17] = [
        ("not a peer", |greeting| greeting.bytes[0] = b'X'),
        ("version 2", |greeting| greeting.bytes[8] = 2),
        ("mean nothing", |greeting| greeting.bytes[12] = 1),
        ("mean nothing", |greeting| greeting.bytes[63] = 1),
        ("rings of 0 bytes", |greeting| greeting.bytes[16..24].fill(0)),
        ("rings of 12288 bytes", |greeting| greeting.bytes[17] = 0x30),
        ("rings of 2097152 bytes", |greeting| {
            greeting.bytes[16..24].copy_from_slice(&(2_u64 << 20).to_le_bytes())
        }),
        ("rings of 18446744073709551615 bytes", |greeting| greeting.bytes[24..32].fill(0xff)),
        ("0 descriptors came", |greeting| greeting.files.clear()),
        ("4 descriptors came", |greeting| drop(greeting.files.pop())),
        ("more than 5 descriptors", |greeting| greeting.files.push(memory(8192, SEALS))),
        ("more than 5 descriptors", |greeting| greeting.files.extend((0..8).map(|_| memory(8192, SEALS)))),
        ("the data ring has seals 0x0", |greeting| greeting.files[1] = memory(12_288, SealFlags::empty())),
        ("the weights ring back has 4096 bytes, 8192", |greeting| greeting.files[4] = memory(4096, SEALS)),
        ("the doorbell has 8192 bytes, 4096", |greeting| greeting.files[0] = memory(8192, SEALS)),
        ("the data ring back is no memory", |greeting| {
            greeting.files[2] = File::open("/proc/self/exe").unwrap()
        }),
        ("the weights ring:", |greeting| greeting.files[3] = memory(8192, SEALS | SealFlags::WRITE)),
    ];
    for (expected, spoil) in spoilt {
        let mut greeting = Greeting::good();
        spoil(&mut greeting);
        let mut stream = victim.stream();
        greeting.send(&stream);
        let refused = victim.accept().err().expect(expected).to_string();
        assert!(refused.contains(expected) && refused.contains("process "), "{expected}: {refused}");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer[12], 1);
        let told = String::from_utf8(answer.split_off(64)).unwrap();
        assert!(told.contains(expected), "the peer is told: {told}");
    }
    // Who says nothing, or stops in the middle, delays nobody.
    let _silent = victim.stream();
    let mut slow = victim.stream();
    slow.write_all(b"PHLX").unwrap();
    let stream = victim.stream();
    Greeting::good().send(&stream);
    assert!(victim.accept().is_ok());
    drop(slow);
    assert!(matches!(victim.accept(), Err(ConnectError::Unreachable { .. })));
}

#[test]
fn a_peer_that_never_speaks_is_given_up() {
    let settings =
        ShmSettings { setup_max: Duration::from_millis(30), setups_max: 1, ..ShmSettings::default() };
    let mut victim = Victim::new(settings);
    let _silent = victim.stream();
    let said = victim.accept().err().unwrap().to_string();
    assert!(said.contains("30ms"), "{said}");
}

/// Whatever a peer writes into the rings: an error or nothing, never a panic, a hang or a frame that was not.
#[test]
fn random_bytes_in_the_rings_end_the_lane_at_worst() {
    let mut victim = Victim::new(ShmSettings::default());
    let (mut errors, mut seed) = (0, 0x5eed_u64);
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for case in 0..150 {
        let greeting = Greeting::good();
        let stream = victim.stream();
        greeting.send(&stream);
        let mut end = End::new(victim.accept().unwrap(), &victim.doorbell);
        let mut context = Context::from_waker(Waker::noop());
        let pool = Pool::new(1 << 20);
        let mut outbox: Outbox = (0..20).map(|about| frame(&pool, about, 1000)).collect();
        for _ in 0..10 {
            // Any of the files, the words of the prefix more often than the rest, values near what could be.
            let file = &greeting.files[(random() % 5) as usize];
            let place = [0, 8, 128, 256, 260, 384, 4096, 4096 + random() % 4000][(random() % 8) as usize];
            let value = [64 * (random() % 130), random(), random() % 3, u64::MAX << (random() % 64)]
                [(random() % 4) as usize];
            // The doorbell's page is shorter; a write behind its end is refused by its seal.
            let _ = file.write_at(&value.to_le_bytes(), place);
            if case % 3 == 0 {
                let header = Header::of_bytes(Kind::Dispatch, 0, (random() % 9000) as u32);
                greeting.files[1].write_at(&header.write(), 4096).unwrap();
            }
            let polled = end.data.receiver.poll_receive(&mut context);
            errors += u64::from(matches!(polled, Poll::Ready(Err(_))));
            let polled = end.data.sender.poll_send(&mut context, &mut outbox);
            errors += u64::from(matches!(polled, Poll::Ready(Err(_))));
            let _ = end.weights.receiver.poll_receive(&mut context);
        }
    }
    assert!(errors > 100, "only {errors} lies were noticed");
}

/// Cutting a sealed ring short is refused by the kernel, so what was mapped stays there.
#[test]
fn a_peer_cannot_cut_a_ring_short() {
    let mut victim = Victim::new(ShmSettings::default());
    let greeting = Greeting::good();
    let stream = victim.stream();
    greeting.send(&stream);
    let mut end = End::new(victim.accept().unwrap(), &victim.doorbell);
    assert!(greeting.files.iter().all(|file| file.set_len(0).is_err()));
    assert!(end.data.receiver.poll_receive(&mut Context::from_waker(Waker::noop())).is_pending());
    // It is a peer like any other: a frame and an end, written by hand.
    let header = Header::of_bytes(Kind::Dispatch, 9, 100);
    greeting.files[1].write_at(&header.write(), 4096).unwrap();
    greeting.files[1].write_at(&[7; 100], 4096 + 64).unwrap();
    greeting.files[1].write_at(&192_u64.to_le_bytes(), 0).unwrap();
    let received = victim.doorbell.block_on(receive(&mut end.data.receiver)).unwrap().unwrap();
    assert_eq!((received.header.dispatch, &received.payload[..]), (9, &[7; 100][..]));
    greeting.files[1].write_at(&1_u32.to_le_bytes(), 8).unwrap();
    assert!(victim.doorbell.block_on(receive(&mut end.data.receiver)).unwrap().is_none());
}

#[test]
fn who_cannot_be_reached_is_said() {
    let runtime = runtime();
    let doorbell = Doorbell::new(SPIN).unwrap();
    let carrier = ShmCarrier::new(ShmSettings::default(), Pool::new(1 << 20), &doorbell).unwrap();
    let (address, path) = address();
    let said = |address: &str| runtime.block_on(carrier.dial(address)).err().unwrap().to_string();
    assert!(said(&address).contains("no such socket"));
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(said(&address).contains("nobody listens there any more"));
    std::fs::remove_file(&path).unwrap();
    assert!(said(&format!("shm:/{}", "x".repeat(200))).contains("at most 107"));
}

/// The files that were passed are not passed on to programs that are started.
#[test]
fn descriptors_are_closed_on_exec() {
    let runtime = runtime();
    let before: Vec<_> =
        std::fs::read_dir("/proc/self/fd").unwrap().map(|file| file.unwrap().path()).collect();
    let _pair = pair(&runtime, &small(), SPIN);
    for file in std::fs::read_dir("/proc/self/fd").unwrap().map(|file| file.unwrap().path()) {
        let Ok(target) = std::fs::read_link(&file) else { continue };
        if !before.contains(&file) && target.to_string_lossy().contains("phalanx") {
            let number = file.file_name().unwrap().to_string_lossy().into_owned();
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("02000000");
            assert_ne!(u64::from_str_radix(flags.trim(), 8).unwrap() & 0o2_000_000, 0, "{target:?}");
        }
    }
}
