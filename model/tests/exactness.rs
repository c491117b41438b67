//! A row gives the same bits in whatever company it is computed: in any chunk, step, batch, page, on any
//! number of threads, on any path of its class, by any `Experts`. Nothing here has a tolerance.
//!
//! The oracle of a class is its plain path on one thread, with the whole sequence in one step.
//! `EXACTNESS_SEED=<seed> cargo test --release -p phalanx-model --test exactness` replays a run.

mod support;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use phalanx_model::experts::{Experts, Groups, compute_blocks};
use phalanx_model::gate::Choices;
use phalanx_model::kernel::{
    Activation, Element, Kernels, Matrix, Placement, Region, RowType, Shape, round_bf16,
};
use phalanx_model::kv::{PAGE, Sequence};
use phalanx_model::load::{self, Opened, Progress, Request};
use phalanx_model::plain::{Run, Unobserved, step};
use phalanx_model::pool::Pool;
use phalanx_model::rows::{RowBuffer, write_row};
use phalanx_model::trunk::Trunk;
use phalanx_model::weights::{Block, Embedding, ExpertId, Manifest, TrunkWeights};
use support::{Class, FIXTURES, Loop, OneByOne, Random, SMALL, argmax, assert_bits, fixture};

/// Sizes around those at which kernels, panels, items and pages begin anew.
const CHUNKS: [usize; 20] = [1, 1, 2, 3, 5, 7, 8, 9, 12, 15, 16, 17, 31, 33, 48, 49, 63, 64, 65, 97];

const TOKENS: usize = 200;

/// A sequence computed in one step.
struct Truth {
    tokens: Vec<u32>,
    /// Of every position.
    logits: Vec<f32>,
    /// What the cache keeps, by position.
    kept: Vec<f32>,
}

impl Truth {
    fn of(model: &mut Loop, tokens: Vec<u32>) -> Truth {
        let mut sequence = Sequence::default();
        let logits = model.step_all(&mut [Run { sequence: &mut sequence, tokens: &tokens }]);
        let kept = model.kept(&sequence, 0);
        model.cache.release(sequence);
        assert!(logits.iter().chain(&kept).all(|x| x.is_finite()), "a fixture gives numbers");
        Truth { tokens, logits, kept }
    }

    /// The logits of positions from `start` on.
    fn check_logits(&self, found: &[f32], start: usize, what: &str) {
        let vocab = self.logits.len() / self.tokens.len();
        let wanted = &self.logits[start * vocab..][..found.len()];
        assert_bits(found, wanted, vocab, start, &format!("{what}: logits"));
    }

    /// What the cache keeps of positions from `start` on.
    fn check_kept(&self, found: &[f32], start: usize, what: &str) {
        let width = self.kept.len() / self.tokens.len();
        let wanted = &self.kept[start * width..][..found.len()];
        assert_bits(found, wanted, width, start, &format!("{what}: the cache"));
    }
}

/// Computes the tokens in steps of the given sizes, and checks every one.
fn check_in_steps(model: &mut Loop, truth: &Truth, mut size: impl FnMut() -> usize, what: &str) {
    let mut sequence = Sequence::default();
    let mut rest = truth.tokens.as_slice();
    while !rest.is_empty() {
        let start = sequence.len();
        let (tokens, later) = rest.split_at(size().min(rest.len()));
        rest = later;
        let what = format!("{what}, {} rows at {start}", tokens.len());
        let logits = model.step_all(&mut [Run { sequence: &mut sequence, tokens }]);
        truth.check_logits(&logits, start, &what);
    }
    truth.check_kept(&model.kept(&sequence, 0), 0, what);
    model.cache.release(sequence);
}

/// Chunked prefill, whole prefill and decode are one computation, on every path and any number of threads.
#[test]
fn a_sequence_gives_the_same_bits_however_it_is_cut() {
    let mut random = Random::seeded("EXACTNESS_SEED");
    let classes = Class::all();
    for name in FIXTURES {
        for class in &classes {
            let paths = class.paths_for(name);
            let Some(vocab) = paths.first().map(|_| Loop::with(&fixture(name), class.plain(), 1).vocab())
            else {
                continue;
            };
            let tokens = random.tokens(TOKENS, vocab);
            let truth = Truth::of(&mut Loop::with(&fixture(name), class.oracle_for(name), 1), tokens);
            for kernels in paths {
                for threads in [1, 2, 4] {
                    let model = &mut Loop::with(&fixture(name), kernels, threads);
                    let what = format!("{name}, {} on {}, {threads} threads", class.class, kernels.path());
                    match threads {
                        1 => check_in_steps(model, &truth, || 1, &format!("{what}, one by one")),
                        _ => check_in_steps(model, &truth, || TOKENS, &format!("{what}, at once")),
                    }
                    check_in_steps(
                        model,
                        &truth,
                        || CHUNKS[random.below(CHUNKS.len())],
                        &format!("{what}, in chunks"),
                    );
                }
            }
        }
    }
}

/// Past some 2,700 positions the attention of an item takes fewer rows at a time.
#[test]
fn a_long_context_gives_the_same_bits_however_it_is_cut() {
    let mut random = Random::seeded("EXACTNESS_SEED");
    let name = "gptoss-defaults";
    for class in Class::all() {
        let Some(&kernels) = class.paths.first() else { continue };
        let mut model = Loop::with(&fixture(name), kernels, 2);
        let tokens = random.tokens(3000, model.vocab());
        let truth = Truth::of(&mut model, tokens);
        let what = format!("{name}, {}", class.class);
        check_in_steps(&mut model, &truth, || 1 + random.below(700), &format!("{what}, in chunks"));
        let mut sizes = [2900, 1, 1, 1, 2, 3, 16, 17].into_iter();
        check_in_steps(&mut model, &truth, || sizes.next().unwrap_or(1), &format!("{what}, decode"));
    }
}

/// A step of several sequences: chunks of prompts and single tokens mixed, in any order, sequences that join and leave.
#[test]
fn a_sequence_gives_the_same_bits_in_any_batch() {
    let mut random = Random::seeded("EXACTNESS_SEED");
    let classes = Class::all();
    for name in FIXTURES {
        for class in &classes {
            let paths = class.paths_for(name);
            if paths.is_empty() {
                continue;
            }
            let oracle = &mut Loop::with(&fixture(name), class.oracle_for(name), 1);
            let truths: Vec<Truth> = (0..7)
                .map(|_| {
                    let length = 1 + random.below(120);
                    let tokens = random.tokens(length, oracle.vocab());
                    Truth::of(oracle, tokens)
                })
                .collect();
            for kernels in paths {
                let threads = [1, 2, 4][random.below(3)];
                let mut model = Loop::with(&fixture(name), kernels, threads);
                let what = format!("{name}, {} on {}, {threads} threads", class.class, kernels.path());
                check_in_batches(&mut model, &truths, &mut random, &what);
            }
        }
    }
}

fn check_in_batches(model: &mut Loop, truths: &[Truth], random: &mut Random, what: &str) {
    let vocab = model.vocab();
    let mut waiting: Vec<&Truth> = truths.iter().collect();
    let mut active: Vec<(&Truth, Sequence)> = Vec::new();
    while !waiting.is_empty() || !active.is_empty() {
        while active.len() < 5 && !waiting.is_empty() && (active.len() < 2 || random.below(2) == 0) {
            active.push((waiting.swap_remove(random.below(waiting.len())), Sequence::default()));
        }
        // Some decode, some take a chunk, some sit out.
        let mut runs: Vec<(&Truth, Run<'_>)> = Vec::new();
        for (truth, sequence) in &mut active {
            let start = sequence.len();
            let size = match random.below(6) {
                0 => continue,
                1..=3 => 1,
                _ => CHUNKS[random.below(CHUNKS.len())],
            };
            let tokens = &truth.tokens[start..truth.tokens.len().min(start + size)];
            runs.push((truth, Run { sequence, tokens }));
        }
        if runs.is_empty() {
            continue;
        }
        random.shuffle(&mut runs);
        let (of, mut runs): (Vec<&Truth>, Vec<Run<'_>>) = runs.into_iter().unzip();
        let sizes: Vec<usize> = runs.iter().map(|run| run.tokens.len()).collect();
        let what = format!("{what}, a step of {sizes:?} rows");
        let logits = model.step_all(&mut runs);
        let mut rest = logits.as_slice();
        for (truth, run) in of.iter().zip(&runs) {
            let (found, later) = rest.split_at(run.tokens.len() * vocab);
            rest = later;
            truth.check_logits(found, run.sequence.len() - run.tokens.len(), &what);
        }
        for at in (0..active.len()).rev() {
            let (truth, sequence) = &active[at];
            if sequence.len() == truth.tokens.len() {
                truth.check_kept(&model.kept(sequence, 0), 0, &what);
                let (_, sequence) = active.swap_remove(at);
                model.cache.release(sequence);
            }
        }
    }
}

/// Whoever computes experts and however, tokens and logits are the same.
#[test]
fn experts_one_row_at_a_time_give_the_same_tokens_and_logits() {
    let mut random = Random::seeded("EXACTNESS_SEED");
    let classes = Class::all();
    for name in FIXTURES {
        for class in &classes {
            for kernels in class.paths_for(name) {
                let what = format!("{name}, {} on {}", class.class, kernels.path());
                let mut model = Loop::with(&fixture(name), kernels, 2);
                let prompts: Vec<Vec<u32>> = [23, 1, 8].map(|n| random.tokens(n, model.vocab())).into();
                let (tokens, logits) = greedy(&mut model, &prompts, false);
                let (one_tokens, one_logits) = greedy(&mut model, &prompts, true);
                assert_eq!(one_tokens, tokens, "{what}");
                assert_bits(&one_logits, &logits, model.vocab(), 0, &format!("{what}: logits"));
            }
        }
    }
}

/// Eight tokens for every prompt, all prompts in a step, and the logits of all steps.
fn greedy(model: &mut Loop, prompts: &[Vec<u32>], one_by_one: bool) -> (Vec<Vec<u32>>, Vec<f32>) {
    let Loop { trunk, experts, pool, work, cache, .. } = model;
    let blocks = experts.blocks().clone();
    let mut lonely = OneByOne { kernels: trunk.kernels(), pool, blocks: &blocks, calls: 0 };
    let mut sequences: Vec<Sequence> = prompts.iter().map(|_| Sequence::default()).collect();
    let mut next = prompts.to_vec();
    let (mut tokens, mut all) = (vec![Vec::new(); prompts.len()], Vec::new());
    for _ in 0..8 {
        let mut runs: Vec<Run<'_>> =
            sequences.iter_mut().zip(&next).map(|(sequence, tokens)| Run { sequence, tokens }).collect();
        let experts: &mut dyn Experts = if one_by_one { &mut lonely } else { experts };
        step(trunk, pool, work, cache, &mut runs, experts, &mut Unobserved).expect("the fixture computes");
        let mut end = 0;
        let last: Vec<usize> = next
            .iter()
            .map(|tokens| {
                end += tokens.len();
                end - 1
            })
            .collect();
        let mut logits = Vec::new();
        trunk.logits(pool, work, &last, &mut logits);
        for (index, logits) in logits.chunks(trunk.spec().vocab).enumerate() {
            next[index] = vec![argmax(logits)];
            tokens[index].push(argmax(logits));
        }
        all.extend(logits);
    }
    assert_eq!(lonely.calls > 0, one_by_one);
    sequences.into_iter().for_each(|sequence| cache.release(sequence));
    (tokens, all)
}

fn random_rows(kernels: Kernels, random: &mut Random, rows: usize, columns: usize) -> RowBuffer {
    let mut buffer = RowBuffer::new(kernels.class().row_type());
    buffer.reset(rows, columns);
    for row in 0..rows {
        let values: Vec<f32> = (0..columns).map(|_| 2.0 * random.signed()).collect();
        write_row(kernels, &mut buffer.out(), row, &values);
    }
    buffer
}

/// Row i of a batch of m is the row alone, for every m from 1 to 300 and rows picked in any order.
#[test]
fn an_expert_gives_a_row_the_same_bits_in_any_batch() {
    let mut random = Random::seeded("EXACTNESS_SEED");
    let classes = Class::all();
    for name in ["mixtral", "gptoss", "qwen2moe", SMALL, "qwen2moe-f32"] {
        for class in &classes {
            for kernels in class.paths_for(name) {
                let model = Loop::with(&fixture(name), kernels, 2);
                let hidden = model.trunk.spec().hidden;
                let what = format!("{name}, {} on {}", class.class, kernels.path());
                let mut ids: Vec<&ExpertId> = model.experts.blocks().keys().collect();
                ids.sort();
                let block = &model.experts.blocks()[ids[random.below(ids.len())]];
                let sizes: Vec<usize> = (1..=300).collect();
                check_block(kernels, &model.pool, block, hidden, &sizes, &mut random, &what);
            }
        }
    }
}

/// The same for a block with sums so long that the paths cut them, each in its own way.
#[test]
fn a_large_expert_gives_a_row_the_same_bits_in_any_batch() {
    let mut random = Random::seeded("EXACTNESS_SEED");
    let (hidden, width) = (1100, 531);
    let region = Arc::new(Region::new(4 << 20));
    let mut weights = |rows: usize, columns: usize| -> Vec<u16> {
        (0..rows * columns).map(|_| round_bf16(random.signed() / 16.0)).collect()
    };
    let builder = Matrix::builder(&region, Shape::gated(width, hidden, Element::Bf16));
    builder.pack_rows(Placement::Gate, 0, &weights(width, hidden), hidden);
    builder.pack_rows(Placement::Up, 0, &weights(width, hidden), hidden);
    let block = Block {
        gate_up: builder.finish(),
        down: Matrix::from_rows(&weights(hidden, width), hidden, width),
        gate_up_bias: None,
        down_bias: None,
        activation: Activation::Silu,
        others: Vec::new(),
    };
    let mut results = HashMap::new();
    for class in Class::all() {
        for kernels in class.paths {
            let what = format!("a large block, {} on {}", class.class, kernels.path());
            let sizes = [1, 2, 3, 4, 6, 7, 12, 13, 24, 25, 37, 145];
            let pool = Pool::new(2, None);
            // Rows from the same seed on every path, so that paths can be compared.
            let alone = check_block(kernels, &pool, &block, hidden, &sizes, &mut Random::new(3), &what);
            let first = results.entry(class.class).or_insert_with(|| alone.clone());
            assert_bits(&alone, first, hidden, 0, &format!("{what}, against the first path"));
        }
    }
}

/// Compares batches of the given sizes with rows computed alone, and returns the latter.
fn check_block(
    kernels: Kernels,
    pool: &Pool,
    block: &Block,
    hidden: usize,
    sizes: &[usize],
    random: &mut Random,
    what: &str,
) -> Vec<f32> {
    let count = sizes[sizes.len() - 1];
    let rows = random_rows(kernels, random, count, hidden);
    let blocks = HashMap::new();
    let mut lonely = OneByOne { kernels, pool, blocks: &blocks, calls: 0 };
    let alone: Vec<Vec<f32>> = (0..count).map(|row| lonely.row(block, &rows.row_f32(row))).collect();
    let row_type = kernels.class().row_type();
    let (mut inner, mut out) = (RowBuffer::new(row_type), RowBuffer::new(row_type));
    let mut order: Vec<u32> = (0..count as u32).collect();
    for &m in sizes {
        let pick = if m % 2 == 0 {
            random.shuffle(&mut order);
            Some(&order[..m])
        } else {
            None
        };
        out.reset(m, hidden);
        compute_blocks(kernels, pool, &[(block, pick, m)], &rows, &mut inner, &mut out);
        for row in 0..m {
            let of = pick.map_or(row, |pick| pick[row] as usize);
            assert_bits(&out.row_f32(row), &alone[of], hidden, row, &format!("{what}, {m} rows"));
        }
    }
    alone.concat()
}

/// Many experts at once through [`LocalExperts`]: every slot gets what its row and expert give alone.
#[test]
fn groups_of_any_sizes_give_every_slot_its_own_bits() {
    let mut random = Random::seeded("EXACTNESS_SEED");
    let classes = Class::all();
    for name in FIXTURES {
        for class in &classes {
            for kernels in class.paths_for(name) {
                let what = format!("{name}, {} on {}", class.class, kernels.path());
                let threads = [1, 2, 4][random.below(3)];
                let mut model = Loop::with(&fixture(name), kernels, threads);
                let spec = Arc::clone(model.trunk.spec());
                for round in 0..6 {
                    let moe_layers: Vec<_> = spec.moe_layers().collect();
                    let (layer, moe) = moe_layers[random.below(moe_layers.len())];
                    let count = if round == 0 { 300 } else { 1 + random.below(120) };
                    let rows = random_rows(kernels, &mut random, count, spec.hidden);
                    // Lopsided: the first experts get most rows, some get none.
                    let mut choices = Choices { top_k: moe.top_k, ..Choices::default() };
                    for _ in 0..count {
                        let mut experts: Vec<u32> = (0..moe.experts as u32).collect();
                        let popular = (moe.top_k + 1 + round).min(moe.experts);
                        random.shuffle(&mut experts[..popular]);
                        choices.experts.extend(&experts[..moe.top_k]);
                    }
                    let mut groups = Groups::default();
                    groups.fill(&choices, moe.experts);
                    let out = |experts: &mut dyn Experts| {
                        let mut out = RowBuffer::new(kernels.class().row_type());
                        out.reset(groups.rows.len(), spec.hidden);
                        experts.compute(layer, &rows, &groups, &mut out).expect("all experts are here");
                        (0..out.rows()).flat_map(|row| out.row_f32(row)).collect::<Vec<f32>>()
                    };
                    let found = out(&mut model.experts);
                    let blocks = model.experts.blocks().clone();
                    let wanted = out(&mut OneByOne { kernels, pool: &model.pool, blocks: &blocks, calls: 0 });
                    assert_bits(&found, &wanted, spec.hidden, 0, &format!("{what}, {count} rows"));
                }
            }
        }
    }
}

/// The fixture's trunk with other weights.
fn changed_trunk(dir: &Path, kernels: Kernels, change: impl FnOnce(&mut TrunkWeights)) -> Trunk {
    let opened = Opened::open(dir).expect("a fixture opens");
    let request = Request {
        kernels,
        threads: 1,
        trunk: true,
        experts: &[],
        digests: false,
        known: &Manifest::default(),
    };
    let loaded = load::load(&opened, &request, &Progress::default()).expect("a fixture loads");
    let mut weights = loaded.trunk.expect("asked for");
    change(&mut weights);
    Trunk::new(Arc::clone(&opened.spec), kernels, weights)
}

/// What another sequence left in a page is never multiplied: here it left NaN everywhere, in the step's buffers
/// too.
#[test]
fn pages_and_buffers_full_of_nan_change_nothing() {
    let mut random = Random::seeded("EXACTNESS_SEED");
    let classes = Class::all();
    for name in FIXTURES {
        for class in &classes {
            for kernels in class.paths_for(name) {
                let what = format!("{name}, {} on {}, after NaN", class.class, kernels.path());
                let mut model = Loop::with(&fixture(name), kernels, 2);
                let vocab = model.vocab();
                let tokens = random.tokens(2 * PAGE + 7, vocab);
                let truth = Truth::of(&mut model, tokens);
                let mut poison = changed_trunk(&fixture(name), kernels, |weights| {
                    weights.layers.iter_mut().for_each(|layer| layer.input_norm.fill(f32::NAN));
                });
                std::mem::swap(&mut model.trunk, &mut poison);
                let mut sequence = Sequence::default();
                let logits = model.step_all(&mut [Run {
                    sequence: &mut sequence,
                    tokens: &random.tokens(3 * PAGE, vocab),
                }]);
                assert!(
                    logits.iter().chain(&model.kept(&sequence, 0)).all(|x| x.is_nan()),
                    "{what}: poisoned"
                );
                let free = model.cache.free();
                model.cache.release(sequence);
                std::mem::swap(&mut model.trunk, &mut poison);

                check_in_steps(&mut model, &truth, || TOKENS, &what);
                check_in_steps(&mut model, &truth, || CHUNKS[random.below(CHUNKS.len())], &what);
                assert_eq!(model.cache.free(), free + 3, "{what}: pages were used again");
            }
        }
    }
}

/// A token whose embedding is NaN makes NaN of all that see it, and of nothing else: not of earlier positions of its own
/// step, not of other sequences of the batch, and not of positions beyond the windows.
#[test]
fn a_row_of_nan_harms_only_rows_that_see_it() {
    let mut random = Random::seeded("EXACTNESS_SEED");
    let classes = Class::all();
    let (mut poisoned, mut windowed) = (0, 0);
    for name in FIXTURES {
        for class in &classes {
            for kernels in class.paths_for(name) {
                let what = format!("{name}, {} on {}, NaN inside", class.class, kernels.path());
                let mut model = Loop::with(&fixture(name), kernels, 2);
                let (hidden, vocab) = (model.trunk.spec().hidden, model.vocab());
                let mut tied = false;
                // The NaN is the last token's, which is drawn nowhere else.
                let mut poison =
                    changed_trunk(&fixture(name), kernels, |weights| match &mut weights.embedding {
                        Embedding::Bf16(rows) => rows[(vocab - 1) * hidden..].fill(0x7fc0),
                        Embedding::F32(rows) => rows[(vocab - 1) * hidden..].fill(f32::NAN),
                        Embedding::Tied => tied = true,
                    });
                if tied {
                    continue;
                }
                poisoned += 1;
                let reach = reach(&model);
                windowed += usize::from(reach.is_some());
                // BF16 values lie in pairs of positions, so a window's edge is looked at in both halves.
                let even = 20 + 2 * random.below(20);
                let places =
                    if reach.is_some() { vec![even, even + 1] } else { vec![even + random.below(2)] };
                for at in places {
                    let mut tokens = random.tokens(120, vocab - 1);
                    tokens[at] = vocab as u32 - 1;
                    let truth = Truth::of(&mut model, tokens);
                    let other = random.tokens(33, vocab - 1);
                    let other = Truth::of(&mut model, other);
                    std::mem::swap(&mut model.trunk, &mut poison);
                    check_nan(&mut model, &truth, at, reach, &other, &format!("{what} at {at}"));
                    std::mem::swap(&mut model.trunk, &mut poison);
                }
            }
        }
    }
    assert!(poisoned >= 12 && windowed >= 2, "{poisoned} models were poisoned, {windowed} had windows alone");
}

/// Computes a sequence whose position `at` is NaN, with another sequence beside it.
fn check_nan(model: &mut Loop, truth: &Truth, at: usize, reach: Option<usize>, other: &Truth, what: &str) {
    let vocab = model.vocab();
    let beside = 20;
    let (mut first, mut second) = (Sequence::default(), Sequence::default());
    let mut runs = [
        Run { sequence: &mut second, tokens: &other.tokens[..beside] },
        Run { sequence: &mut first, tokens: &truth.tokens },
    ];
    let logits = model.step_all(&mut runs);
    let (neighbour, logits) = logits.split_at(beside * vocab);
    other.check_logits(neighbour, 0, &format!("{what}, its neighbour"));
    truth.check_logits(&logits[..at * vocab], 0, &format!("{what}, before"));
    assert!(logits[at * vocab..][..vocab].iter().all(|x| x.is_nan()), "{what}: NaN arrives");
    if let Some(reach) = reach {
        let free = at + reach;
        assert!(logits[(free - 1) * vocab..][..vocab].iter().any(|x| x.is_nan()), "{what}: NaN is seen");
        truth.check_logits(&logits[free * vocab..], free, &format!("{what}, beyond the windows"));
    }
    // A broken sequence goes on; so does its neighbour.
    let mut runs = [
        Run { sequence: &mut first, tokens: &[5] },
        Run { sequence: &mut second, tokens: &other.tokens[beside..] },
    ];
    let logits = model.step_all(&mut runs);
    other.check_logits(&logits[vocab..], beside, &format!("{what}, its neighbour"));
    other.check_kept(&model.kept(&second, 0), 0, what);
    model.cache.release(first);
    model.cache.release(second);
}

/// After so many positions no layer sees a token any more, nor what came of it; none if a layer sees everything.
fn reach(model: &Loop) -> Option<usize> {
    let layers = &model.trunk.spec().layers;
    layers.iter().map(|layer| layer.window.map(|window| window - 1)).sum::<Option<usize>>().map(|sum| sum + 1)
}

/// The tests above compare `f32` values; where rows are BF16 they must be nothing but widened BF16.
#[test]
fn the_cache_keeps_rounded_values_in_the_bf16_classes() {
    for class in Class::all() {
        let model = &mut Loop::with(&fixture("qwen3moe"), class.plain(), 1);
        let truth = Truth::of(model, (0..40).collect());
        let rounded = truth.kept.iter().all(|x| x.to_bits() & 0xffff == 0);
        assert_eq!(rounded, class.class.row_type() == RowType::Bf16, "{}", class.class);
    }
}
