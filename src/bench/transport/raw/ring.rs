//! A bare ring in shared memory, one each way: one producer, one consumer, and a futex for whoever sleeps.
//!
//! Messages are copied in and out; their lengths are known from the order. As large as the carrier's
//! rings are by default, so that both have the same share of the caches. The only file of this benchmark
//! with `unsafe`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::thread::{Pid, futex};

use super::{Made, ORDER_BYTES, Order, WORD, check, message};
use crate::Failure;
use crate::bench::transport::contest::Contestant;
use crate::bench::transport::process::{Parent, Process};
use crate::bench::transport::{Program, SPIN};

/// Of one ring, a power of two.
const RING_BYTES: usize = 4 << 20;
/// Before the bytes of each: its indices.
const PREFIX_BYTES: usize = 4096;
const MAPPED_BYTES: usize = 2 * (PREFIX_BYTES + RING_BYTES);
/// How much is copied before the other end is told, so that both copies of a long message overlap.
const PIECE_BYTES: usize = 64 << 10;
/// Bytes ever written, by the producer; bytes ever read, by the consumer; who of them sleeps. Each has a
/// pair of cache lines of its own.
const TAIL: usize = 0;
const HEAD: usize = 128;
const CONSUMER_SLEEPS: usize = 256;
const PRODUCER_SLEEPS: usize = 384;
/// An echo that is missing for so long will not come. The echoing end ends with its parent, however long
/// it waits.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The memory of both rings.
struct Memory(NonNull<u8>);

// SAFETY: it is plain memory of the process, and every word that both ends touch at once is atomic.
unsafe impl Send for Memory {}

impl Memory {
    fn create() -> io::Result<(OwnedFd, Self)> {
        let file = memfd_create("phalanx-bench", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, MAPPED_BYTES as u64)?;
        // Neither end can take the memory from under the other.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let memory = Self::map(&file)?;
        Ok((file, memory))
    }

    fn map(file: &OwnedFd) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the place, so nothing that is mapped already is touched.
        let at =
            unsafe { mmap(std::ptr::null_mut(), MAPPED_BYTES, access, MapFlags::SHARED, file.as_fd(), 0)? };
        Ok(Self(NonNull::new(at.cast()).expect("the kernel maps nothing at address 0")))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and the ends that point into it are dropped before it.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), MAPPED_BYTES) };
    }
}

/// One ring as one of its ends sees it.
struct Ring {
    at: NonNull<u8>,
    spin: Duration,
    silence_max: Duration,
    /// This end's index, and what is known of the other's.
    own: u64,
    other: u64,
}

impl Ring {
    fn new(memory: &Memory, index: usize, spin: Duration, silence_max: Duration) -> Self {
        // SAFETY: there are two, and both lie within what is mapped.
        let at = unsafe { memory.0.add(index * (PREFIX_BYTES + RING_BYTES)) };
        Self { at, spin, silence_max, own: 0, other: 0 }
    }

    fn index(&self, at: usize) -> &AtomicU64 {
        // SAFETY: it lies within the prefix, on a multiple of 128 bytes, and is only ever used as an
        // atomic.
        unsafe { self.at.add(at).cast().as_ref() }
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { self.at.add(at).cast().as_ref() }
    }

    /// Puts a message in.
    fn write(&mut self, message: &[u8]) -> io::Result<()> {
        for piece in message.chunks(PIECE_BYTES) {
            self.wait(HEAD, PRODUCER_SLEEPS, |own, head| RING_BYTES - (own - head) as usize >= piece.len())?;
            let (first, second) = piece.split_at(piece.len().min(self.to_the_edge()));
            for (part, at) in [(first, self.own as usize & (RING_BYTES - 1)), (second, 0)] {
                // SAFETY: it ends before the ring does, and the consumer has read what was there before.
                unsafe {
                    self.at
                        .add(PREFIX_BYTES + at)
                        .copy_from_nonoverlapping(NonNull::from(part).cast(), part.len())
                };
            }
            self.own += piece.len() as u64;
            self.publish(TAIL, CONSUMER_SLEEPS);
        }
        Ok(())
    }

    /// Takes a message out.
    fn read(&mut self, message: &mut [u8]) -> io::Result<()> {
        for piece in message.chunks_mut(PIECE_BYTES) {
            let needed = piece.len();
            self.wait(TAIL, CONSUMER_SLEEPS, |own, tail| (tail - own) as usize >= needed)?;
            let (first, second) = piece.split_at_mut(needed.min(self.to_the_edge()));
            for (part, at) in [(first, self.own as usize & (RING_BYTES - 1)), (second, 0)] {
                // SAFETY: it ends before the ring does, and the producer has written it before it said so.
                unsafe {
                    self.at
                        .add(PREFIX_BYTES + at)
                        .copy_to_nonoverlapping(NonNull::from(&mut *part).cast(), part.len())
                };
            }
            self.own += needed as u64;
            self.publish(HEAD, PRODUCER_SLEEPS);
        }
        Ok(())
    }

    fn to_the_edge(&self) -> usize {
        RING_BYTES - (self.own as usize & (RING_BYTES - 1))
    }

    /// Says how far this end is, and wakes the other if it sleeps.
    fn publish(&self, index: usize, sleeps: usize) {
        self.index(index).store(self.own, Ordering::Release);
        // Either this end sees the word, or the other sees the index after it has set the word.
        fence(Ordering::SeqCst);
        let word = self.word(sleeps);
        if word.load(Ordering::Relaxed) != 0 && word.swap(0, Ordering::Relaxed) != 0 {
            // It fails only for an address that is none.
            let _ = futex::wake(word, futex::Flags::empty(), 1);
        }
    }

    /// Waits until what the other end says is enough.
    fn wait(&mut self, index: usize, sleeps: usize, enough: impl Fn(u64, u64) -> bool) -> io::Result<()> {
        if enough(self.own, self.other) {
            return Ok(());
        }
        let began = Instant::now();
        loop {
            for looks in 0_u32.. {
                self.other = self.index(index).load(Ordering::Acquire);
                if enough(self.own, self.other) {
                    return Ok(());
                }
                if self.spin.is_zero() || looks % 64 == 63 && began.elapsed() >= self.spin {
                    break;
                }
                std::hint::spin_loop();
            }
            self.word(sleeps).store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            self.other = self.index(index).load(Ordering::Acquire);
            let word = self.word(sleeps);
            if enough(self.own, self.other) {
                word.store(0, Ordering::Relaxed);
                return Ok(());
            }
            let nap = futex::Timespec { tv_sec: 1, tv_nsec: 0 };
            // Woken, interrupted or slept out: looked at again in any case.
            let _ = futex::wait(word, futex::Flags::empty(), 1, Some(&nap));
            word.store(0, Ordering::Relaxed);
            if began.elapsed() >= self.silence_max {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the other end of the ring says nothing",
                ));
            }
        }
    }
}

/// Both rings, as one of the processes has them.
struct Rings {
    out: Ring,
    home: Ring,
    /// Unmapped after them.
    _memory: Memory,
}

// SAFETY: as for the memory; an end is used by one thread at a time.
unsafe impl Send for Rings {}

impl Rings {
    fn new(memory: Memory, out: usize, spin: Duration, silence_max: Duration) -> Self {
        let [out, home] = [out, 1 - out].map(|index| Ring::new(&memory, index, spin, silence_max));
        Self { out, home, _memory: memory }
    }
}

/// The end that is measured.
struct BareRing {
    name: &'static str,
    rings: Rings,
    spins: bool,
    process: Process,
}

/// The end that is measured: both spin, or both sleep at once.
pub(in crate::bench::transport) fn dial(is_spinning: bool) -> Made {
    let (program, spin, name) = if is_spinning {
        (Program::RawRingSpinning, SPIN, "bare ring, spinning")
    } else {
        (Program::RawRingSleeping, Duration::ZERO, "bare ring, sleeping")
    };
    let (file, memory) = Memory::create()?;
    let (process, _) = Process::start(program, "", Some(file.as_fd()))?;
    let rings = Rings::new(memory, 0, spin, SILENCE_MAX);
    Ok(Box::new(BareRing { name, rings, spins: is_spinning, process }))
}

/// The end that echoes.
pub(in crate::bench::transport) fn echo(mut parent: Parent, program: Program) -> Result<(), Failure> {
    let file = parent.descriptor.take().ok_or("no memory came with the order to echo a ring")?;
    let spin = if program == Program::RawRingSpinning { SPIN } else { Duration::ZERO };
    let rings = Rings::new(Memory::map(&file)?, 1, spin, Duration::MAX);
    parent.ready("")?;
    obey(rings)
}

fn obey(mut rings: Rings) -> Result<(), Failure> {
    let mut buffer = Vec::new();
    let mut order = [0; ORDER_BYTES];
    loop {
        rings.home.read(&mut order)?;
        let order = Order::read(order);
        buffer.resize(order.bytes, 0);
        for _ in 0..order.count {
            rings.home.read(&mut buffer)?;
            if order.is_echo {
                rings.out.write(&buffer)?;
            }
        }
        if !order.is_echo {
            rings.out.write(&WORD)?;
        }
    }
}

impl Contestant for BareRing {
    fn name(&self) -> &'static str {
        self.name
    }

    fn peer_thread(&self) -> Option<Pid> {
        Some(self.process.thread())
    }

    fn spins(&self) -> bool {
        self.spins
    }

    fn round_trips(&mut self, bytes: usize, count: usize) -> Result<Vec<Duration>, Failure> {
        let sent = message(bytes);
        let mut returned = vec![0; bytes];
        let mut trips = Vec::with_capacity(count);
        self.rings.out.write(&Order { is_echo: true, bytes, count }.write())?;
        for _ in 0..count {
            let began = Instant::now();
            self.rings.out.write(&sent)?;
            self.rings.home.read(&mut returned)?;
            trips.push(began.elapsed());
        }
        check(&sent, &returned)?;
        Ok(trips)
    }

    fn one_way(&mut self, bytes: usize, count: usize) -> Result<Duration, Failure> {
        let sent = message(bytes);
        let mut word = [0; WORD.len()];
        let began = Instant::now();
        self.rings.out.write(&Order { is_echo: false, bytes, count }.write())?;
        for _ in 0..count {
            self.rings.out.write(&sent)?;
        }
        self.rings.home.read(&mut word)?;
        check(&WORD, &word)?;
        Ok(began.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Odd lengths that wrap at every place, there and back between two threads; what came is what was
    /// sent.
    #[test]
    fn messages_go_there_and_back() {
        for spin in [SPIN, Duration::ZERO] {
            let (file, memory) = Memory::create().expect("a memfd");
            let mut ours = Rings::new(memory, 0, spin, SILENCE_MAX);
            let theirs = Rings::new(Memory::map(&file).expect("mapped"), 1, spin, Duration::from_millis(50));
            let echoing =
                std::thread::spawn(move || obey(theirs).expect_err("nothing more comes").to_string());
            let sent = message(300_007);
            let mut returned = vec![0; sent.len()];
            ours.out.write(&Order { is_echo: true, bytes: sent.len(), count: 60 }.write()).expect("written");
            for _ in 0..60 {
                returned.fill(0);
                ours.out.write(&sent).expect("written");
                ours.home.read(&mut returned).expect("echoed");
                check(&sent, &returned).expect("the same");
            }
            assert!(echoing.join().expect("no panic").contains("says nothing"));
        }
    }
}
