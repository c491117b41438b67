//! A pool against a plain model of it, across threads, and at its bounds.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::class::SLAB_BYTES_MAX;
use super::{ALIGNMENT, Buffer, Payload, Pool, PoolStats};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// What `wire::charge` counts for the room, written down once more.
fn room(bytes: usize) -> u64 {
    if bytes == 0 { 0 } else { bytes.max(64).next_power_of_two() as u64 }
}

#[test]
fn a_buffer_is_as_long_as_asked_and_aligned() {
    let pool = Pool::new(64 << 20);
    let mut held = Vec::new();
    // Miri takes a microsecond for a byte.
    let longest = if cfg!(miri) { 20_000 } else { usize::MAX };
    for bytes in [1, 63, 64, 65, 4095, 14_336, 65_537, MIB, 3 * MIB].into_iter().filter(|it| *it < longest) {
        let mut buffer = pool.take(bytes).unwrap();
        assert_eq!((buffer.len(), buffer.capacity() as u64), (bytes, room(bytes)));
        assert!(buffer.as_ptr().addr().is_multiple_of(ALIGNMENT));
        assert!(buffer.iter().all(|byte| *byte == 0), "the memory of a new slab is zeroed");
        buffer.fill(held.len() as u8 + 1);
        held.push(buffer);
    }
    for (index, buffer) in held.iter().enumerate() {
        assert!(buffer.iter().all(|byte| *byte == index as u8 + 1), "no two overlap");
    }
}

/// A NIC registers whole pages once; a buffer that lay outside of what it registered could not be sent.
#[test]
fn every_buffer_lies_in_a_slab_that_the_pool_lists() {
    let pool = Pool::new(64 << 20);
    let buffers: Vec<Buffer> =
        [64, 14_336, MIB, 5 * MIB].map(|bytes| pool.take(bytes).unwrap()).into_iter().collect();
    let slabs = pool.slabs();
    assert_eq!(slabs.len(), 4);
    for buffer in &buffers {
        let slab = buffer.slab().expect("nothing is fragmented here");
        assert!(slabs.contains(&slab));
        assert!(slab.base.is_multiple_of(4096) && slab.bytes.is_multiple_of(4096));
        let at = buffer.as_ptr().addr();
        assert!(slab.base <= at && at + buffer.capacity() <= slab.base + slab.bytes);
    }
    assert_eq!(slabs.iter().map(|slab| slab.bytes as u64).sum::<u64>(), pool.stats().resident_bytes);
}

#[test]
fn what_is_out_never_exceeds_the_bound_and_below_it_nothing_is_refused() {
    let pool = Pool::new(256);
    let first = pool.take(65).unwrap();
    let second = pool.take(64).unwrap();
    assert!(pool.take(65).is_none(), "192 of 256 are out, 128 more would be too many");
    let third = pool.take(1).unwrap();
    assert!(pool.take(1).is_none());
    assert!(pool.take(usize::MAX).is_none());
    assert!(pool.take(0).is_some(), "nothing costs nothing");
    drop((first, third));
    let payload = Payload::from(second);
    let clone = payload.clone();
    assert_eq!(pool.stats().out_bytes, 64, "clones are the same memory");
    drop(payload);
    assert_eq!(pool.stats().out_bytes, 64);
    drop(clone);
    assert_eq!(pool.stats().out_bytes, 0);
    assert_eq!(pool.stats().out_bytes_peak, 256);
}

/// A resend clones; whoever is last may write the answer over the question.
#[test]
fn a_payload_is_writable_again_for_its_last_holder() {
    let pool = Pool::new(1 << 20);
    let payload = Payload::from(pool.copy_of(&[7; 100]).unwrap());
    let clone = payload.clone();
    let payload = payload.try_into_buffer().expect_err("there is a clone");
    let at = payload.as_ptr();
    drop(payload);
    let mut buffer = clone.try_into_buffer().expect("it is the last");
    assert_eq!((buffer.as_ptr(), &buffer[..]), (at, &[7; 100][..]));
    buffer.resize(128);
    buffer.truncate(3);
    buffer.truncate(50);
    assert_eq!(&buffer[..], [7; 3]);
    let payload = Payload::from(buffer);
    drop(pool);
    assert_eq!(&payload[..], [7; 3], "payloads outlive the handles of their pool");
}

#[test]
fn empty_ones_hold_nothing() {
    let pool = Pool::new(0);
    let mut empty = pool.take(0).unwrap();
    assert_eq!(&mut empty[..], []);
    assert_eq!(&Payload::from(empty).clone()[..], []);
    assert_eq!(Payload::default().try_into_buffer().unwrap().len(), 0);
    let pool = Pool::new(64);
    let mut cut = pool.take(64).unwrap();
    cut.truncate(0);
    assert_eq!(pool.stats().out_bytes, 0);
    assert_eq!((cut.capacity(), cut.slab()), (0, None));
}

/// Memory of one class must serve another, or a pool would need as many bounds as there are classes.
#[test]
fn idle_slabs_of_another_class_make_room() {
    let pool = Pool::new(8 << 20);
    let fill = |bytes: usize| -> Vec<Buffer> { std::iter::from_fn(|| pool.take(bytes)).collect() };
    for bytes in [16 * KIB, MIB, 64 * KIB, 8 * MIB, 16 * KIB] {
        let all = fill(bytes);
        assert_eq!(all.len(), 8 * MIB / bytes);
        let stats = pool.stats();
        assert_eq!((stats.out_bytes, stats.loose_count), (8 << 20, 0), "{bytes}");
        assert!(stats.resident_bytes_peak <= pool.bytes_max() + pool.slack_bytes());
        assert!(all.iter().all(|buffer| buffer.slab().is_some()));
    }
}

/// One buffer left in each slab pins them all; what fits under the bound is handed out all the same.
#[test]
fn fragmented_memory_is_helped_out_by_loose_buffers() {
    let pool = Pool::new(8 << 20);
    let mut small: Vec<Buffer> = std::iter::from_fn(|| pool.take(KIB)).collect();
    let mut slabs_seen = std::collections::HashSet::new();
    small.retain(|buffer| slabs_seen.insert(buffer.slab().unwrap().id));
    assert_eq!(pool.stats().resident_bytes, 8 << 20, "all slabs are still there");

    let large: Vec<Buffer> = std::iter::from_fn(|| pool.take(MIB)).collect();
    assert_eq!(large.len(), 7, "7 MiB and some fit beside {} KiB", small.len());
    let stats = pool.stats();
    assert!(stats.loose_bytes > 0 && stats.loose_count > 0);
    assert!(large.iter().any(|buffer| buffer.slab().is_none()));
    assert!(stats.resident_bytes - stats.loose_bytes <= pool.bytes_max() + pool.slack_bytes());

    drop((small, large));
    let stats = pool.stats();
    assert_eq!((stats.out_bytes, stats.loose_bytes), (0, 0));
    assert!(stats.resident_bytes <= pool.bytes_max() + pool.slack_bytes());
    let again: Vec<Buffer> = std::iter::from_fn(|| pool.take(MIB)).collect();
    assert_eq!((again.len(), pool.stats().loose_count), (8, stats.loose_count), "and it heals");
}

/// What is taken again comes from slabs in use, so that others become idle as a whole.
#[test]
fn buffers_gather_in_few_slabs() {
    let pool = Pool::new(8 << 20);
    let slot = SLAB_BYTES_MAX / 64;
    let mut all: Vec<Buffer> = std::iter::from_fn(|| pool.take(slot)).collect();
    let kept = all.remove(all.len() / 2);
    drop(all);
    let more: Vec<Buffer> = (0..3).map(|_| pool.take(slot).unwrap()).collect();
    assert!(more.iter().all(|buffer| buffer.slab() == kept.slab()));
}

#[derive(Debug, Clone)]
enum Step {
    Take(usize),
    Share(usize),
    Clone(usize),
    Drop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![1..200usize, 1..40_000usize, (1_usize << 18)..(3 << 20)];
    prop_oneof![
        3 => bytes.prop_map(Step::Take),
        1 => any::<usize>().prop_map(Step::Share),
        1 => any::<usize>().prop_map(Step::Clone),
        3 => any::<usize>().prop_map(Step::Drop),
    ]
}

enum Held {
    Writable(Buffer, u8),
    Shared(Payload, u8),
}

const CASES: u32 = if cfg!(miri) { 4 } else { 128 };

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is done in whatever order: figures are those of a plain sum, bounds hold, and every byte is
    /// what its holder wrote.
    #[test]
    fn a_pool_agrees_with_a_plain_sum(
        steps in prop::collection::vec(step(), 1..if cfg!(miri) { 30 } else { 300 }),
        bytes_max in prop_oneof![0..100_000u64, 0..(8u64 << 20)],
    ) {
        let pool = Pool::new(bytes_max);
        let mut held: VecDeque<Held> = VecDeque::new();
        let mut mark = 0_u8;
        // Of payloads only one clone counts, so each is listed with how often it is held.
        let mut out = 0;
        let mut clones: std::collections::HashMap<usize, usize> = Default::default();
        for step in steps {
            match step {
                Step::Take(bytes) => {
                    let taken = pool.take(bytes);
                    prop_assert_eq!(taken.is_some(), out + room(bytes) <= bytes_max);
                    let Some(mut buffer) = taken else { continue };
                    mark = mark.wrapping_add(1);
                    buffer.fill(mark);
                    out += room(bytes);
                    held.push_back(Held::Writable(buffer, mark));
                }
                Step::Share(which) if !held.is_empty() => {
                    let which = which % held.len();
                    let it = held.remove(which).unwrap();
                    held.push_back(match it {
                        Held::Writable(buffer, mark) => {
                            clones.insert(buffer.as_ptr().addr(), 1);
                            Held::Shared(buffer.into(), mark)
                        }
                        Held::Shared(payload, mark) => {
                            let at = payload.as_ptr().addr();
                            let alone = clones[&at] == 1;
                            match payload.try_into_buffer() {
                                Ok(buffer) => { prop_assert!(alone); Held::Writable(buffer, mark) }
                                Err(payload) => { prop_assert!(!alone); Held::Shared(payload, mark) }
                            }
                        }
                    });
                }
                Step::Clone(which) if !held.is_empty() => {
                    if let Held::Shared(payload, mark) = &held[which % held.len()] {
                        let (clone, mark) = (payload.clone(), *mark);
                        *clones.get_mut(&clone.as_ptr().addr()).unwrap() += 1;
                        held.push_back(Held::Shared(clone, mark));
                    }
                }
                Step::Drop(which) if !held.is_empty() => {
                    match held.swap_remove_back(which % held.len()).unwrap() {
                        Held::Writable(buffer, _) => out -= buffer.capacity() as u64,
                        Held::Shared(payload, _) => {
                            let count = clones.get_mut(&payload.as_ptr().addr()).unwrap();
                            *count -= 1;
                            if *count == 0 { out -= room(payload.len()); }
                        }
                    }
                }
                _ => {}
            }
            let stats = pool.stats();
            prop_assert_eq!(stats.out_bytes, out);
            prop_assert!(stats.resident_bytes - stats.loose_bytes <= bytes_max + pool.slack_bytes());
            prop_assert!(stats.resident_bytes >= stats.out_bytes);
            let slabs: u64 = pool.slabs().iter().map(|slab| slab.bytes as u64).sum();
            prop_assert_eq!(stats.resident_bytes, slabs + stats.loose_bytes);
            for it in &held {
                let (bytes, mark): (&[u8], u8) = match it {
                    Held::Writable(buffer, mark) => (buffer, *mark),
                    Held::Shared(payload, mark) => (payload, *mark),
                };
                prop_assert!(bytes[0] == mark && bytes[bytes.len() - 1] == mark);
            }
        }
        held.clear();
        let stats = pool.stats();
        prop_assert_eq!(stats, PoolStats { out_bytes: 0, loose_bytes: 0, ..stats });
    }
}

/// Buffers are taken on one thread, shared with another, dropped on a third; each says what it wrote.
#[test]
fn many_threads_share_a_pool() {
    let rounds = if cfg!(miri) { 40 } else { 5_000 };
    let pool = Pool::new(1 << 20);
    std::thread::scope(|scope| {
        let mut senders = Vec::new();
        for _ in 0..2 {
            let (sender, receiver) = std::sync::mpsc::sync_channel::<(Payload, u8)>(8);
            senders.push(sender);
            scope.spawn(move || {
                for (payload, mark) in receiver {
                    assert!(payload.iter().all(|byte| *byte == mark));
                    if let Ok(mut buffer) = payload.try_into_buffer() {
                        buffer.fill(!mark);
                    }
                }
            });
        }
        for thread in 0..2_u8 {
            let (pool, senders) = (pool.clone(), senders.clone());
            scope.spawn(move || {
                for round in 0..rounds {
                    let bytes = [60, 700, 5000, 200_000][round % 4];
                    let Some(mut buffer) = pool.take(if cfg!(miri) { bytes.min(700) } else { bytes }) else {
                        std::thread::yield_now();
                        continue;
                    };
                    let mark = (round as u8) ^ (thread << 7);
                    buffer.fill(mark);
                    let payload = Payload::from(buffer);
                    for sender in &senders {
                        sender.send((payload.clone(), mark)).unwrap();
                    }
                    assert!(payload.iter().all(|byte| *byte == mark), "others hold it, nobody writes it");
                }
            });
        }
        drop(senders);
    });
    assert_eq!(pool.stats().out_bytes, 0);
    assert!(pool.stats().out_bytes_peak <= 1 << 20);
}
