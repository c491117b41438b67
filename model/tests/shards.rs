//! Experts cut into shards: the written order of their sums, bit for bit, and that it does not matter who holds which.
//!
//! `SHARDS_SEED=<seed> cargo test --release -p phalanx-model --test shards` replays a run.

mod support;

use std::sync::Arc;

use phalanx_model::checkpoint::Reader;
use phalanx_model::experts::{compute_blocks, join_partials};
use phalanx_model::kernel::{
    Kernels, Matrix, NumericClass, Path, Placement, Region, RowType, RowsRef, Sink, Task, multiply,
    round_bf16,
};
use phalanx_model::load::{Opened, load_shard};
use phalanx_model::plain::Unobserved;
use phalanx_model::pool::Pool;
use phalanx_model::rows::{RowBuffer, write_row};
use phalanx_model::weights::{Block, Digest, ExpertId, ExpertPlan, SHARD_UNIT, Shard};
use support::blocks::{assert_same_block, bits};
use support::{Expected, Loop, OneByOne, Random, assert_bits, fixture, kernels_of, relative_l2};

/// Every way to store an expert: three tensors (BF16, F16, F32, FP8), stacked, turned with biases, MXFP4. Widths that are
/// whole units, and widths that are not.
const FIXTURES: [&str; 11] = [
    "mixtral",
    "qwen3moe",
    "qwen2moe",
    "deepseekv2",
    "deepseekv3-seed",
    "gptoss",
    "gptoss-mxfp4",
    "deepseekv3-fp8",
    "mixtral-v5-fused",
    "mixtral-f16",
    "qwen2moe-f32",
];

fn open(name: &str) -> Opened {
    Opened::open(&fixture(name)).unwrap_or_else(|e| panic!("{e}"))
}

fn cut(name: &str, shards: usize) -> Opened {
    open(name).with_shards(shards).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn most(opened: &Opened) -> usize {
    opened.spec.experts_out(true).map(|l| Shard::count_max(l.width)).min().expect("a model has layers")
}

fn load(plan: &ExpertPlan<'_>, exact: bool, hash: bool) -> (Block, Option<Digest>) {
    let region = Arc::new(Region::new(plan.bytes(exact)));
    plan.load(&region, &mut Reader::new(exact, hash)).unwrap_or_else(|e| panic!("{e}"))
}

fn plan<'c>(opened: &'c Opened, id: ExpertId) -> ExpertPlan<'c> {
    ExpertPlan::new(&opened.checkpoint, &opened.spec, id).unwrap_or_else(|e| panic!("{e}"))
}

fn shard_plan<'c>(opened: &'c Opened, id: ExpertId, index: usize) -> ExpertPlan<'c> {
    ExpertPlan::shard(&opened.checkpoint, &opened.spec, id, index).unwrap_or_else(|e| panic!("{e}"))
}

fn random_rows(row: RowType, rows: usize, columns: usize, random: &mut Random) -> RowBuffer {
    let kernels = kernels_of(if row == RowType::F32 { NumericClass::F32 } else { NumericClass::Portable })[0];
    let mut buffer = RowBuffer::new(row);
    buffer.reset(rows, columns);
    for at in 0..rows {
        let values: Vec<f32> = (0..columns).map(|_| random.signed()).collect();
        write_row(kernels, &mut buffer.out(), at, &values);
    }
    buffer
}

fn buffer(row: RowType, rows: usize, columns: usize) -> RowBuffer {
    let mut buffer = RowBuffer::new(row);
    buffer.reset(rows, columns);
    buffer
}

/// The written order, from the uncut expert's weights: the inner row is what it always is; then one sum per shard over
/// its own run, the bias with the first, added in order, rounded once.
fn naive(kernels: Kernels, whole: &Block, shards: usize, row: &RowBuffer, bias: Option<&[f32]>) -> Vec<f32> {
    let pool = Pool::new(1, None);
    let (hidden, width) = (whole.down.n(), whole.width());
    let row_type = kernels.class().row_type();
    let mut inner = buffer(row_type, 1, width);
    let task = Task {
        weights: &whole.gate_up,
        bias: whole.gate_up_bias.as_deref(),
        input: row.view(),
        pick: None,
        rows: 1,
        sink: Sink::Gate { activation: whole.activation, out: inner.out() },
    };
    multiply(kernels, &pool, &mut [task]);
    let inner = inner.row_f32(0);
    let sums: Vec<f32> = (0..hidden)
        .map(|column| {
            let weights = whole.down.column(Placement::Plain, column);
            let partials = Shard::all(shards).map(|shard| {
                let run = shard.run(width);
                let sum = chain(kernels, &inner[run.clone()], &weights[run]);
                match bias {
                    Some(bias) if shard.index == 0 => sum + bias[column],
                    _ => sum,
                }
            });
            partials.reduce(|sum, partial| sum + partial).expect("an expert has a shard")
        })
        .collect();
    let mut out = buffer(row_type, 1, hidden);
    write_row(kernels, &mut out.out(), 0, &sums);
    out.row_f32(0)
}

/// One sum in the order of the class.
fn chain(kernels: Kernels, x: &[f32], weights: &[f32]) -> f32 {
    if kernels.class() != NumericClass::Avx512Bf16 {
        return x.iter().zip(weights).fold(0.0, |sum: f32, (x, w)| x.mul_add(*w, sum));
    }
    // Pairs of k are the plain path's own, which the kernels' tests hold against the manual.
    let plain = Kernels::new(NumericClass::Avx512Bf16, Path::Plain).expect("it runs everywhere");
    let halves = |values: &[f32]| values.iter().map(|x| round_bf16(*x)).collect::<Vec<u16>>();
    let (x, weights) = (halves(x), halves(weights));
    let matrix = Matrix::from_rows(&weights, 1, weights.len());
    let mut sum = [0.0];
    let out = phalanx_model::kernel::RowsMut::new(&mut sum, 1, 1, 1);
    let input = RowsRef::Bf16 { data: &x, stride: x.len() };
    let task = Task { weights: &matrix, bias: None, input, pick: None, rows: 1, sink: Sink::Store(out) };
    multiply(plain, &Pool::new(1, None), &mut [task]);
    sum[0]
}

/// Down's bias column by column, of the uncut block.
fn down_bias(block: &Block) -> Option<Vec<f32>> {
    // A plain matrix has its bias in the order of its columns.
    block.down_bias.as_ref().map(|bias| bias[..block.down.n()].to_vec())
}

/// Every class and path, every way to store an expert, from two shards to as many as there can be: the outputs are those
/// of the written order; the same when each shard is loaded alone and computed elsewhere.
#[test]
fn shards_sum_in_the_written_order() {
    let mut random = Random::seeded("SHARDS_SEED");
    let pool = Pool::new(2, None);
    for name in FIXTURES {
        let uncut = open(name);
        let most = most(&uncut);
        let all: Vec<ExpertId> = open(name).with_dense_out(true).experts();
        assert!(most >= 2, "{name}: experts can be cut");
        let mut differ = 0;
        for class in NumericClass::ALL {
            for kernels in kernels_of(class) {
                let row_type = class.row_type();
                let exact = row_type == RowType::F32;
                for shards in [2, most] {
                    let opened = cut(name, shards);
                    let id = all[random.below(all.len())];
                    let what = format!("{name}, {class} on {}, expert {id} in {shards}", kernels.path());
                    let (whole, _) = load(&plan(&uncut, id), exact, false);
                    let (block, _) = load(&plan(&opened, id), exact, false);
                    assert_eq!(block.shards().count(), shards, "{what}");
                    let hidden = uncut.spec.hidden;
                    let rows = random_rows(row_type, 5, hidden, &mut random);
                    let (mut inner, mut out) = (buffer(row_type, 0, 0), buffer(row_type, 5, hidden));
                    compute_blocks(kernels, &pool, &[(&block, None, 5)], &rows, &mut inner, &mut out);

                    let partials: Vec<RowBuffer> = (0..shards)
                        .map(|index| {
                            let (shard, _) = load(&shard_plan(&opened, id, index), exact, false);
                            let mut partial = buffer(RowType::F32, 5, hidden);
                            let parts = [(&shard, None, 5)];
                            compute_blocks(kernels, &pool, &parts, &rows, &mut inner, &mut partial);
                            partial
                        })
                        .collect();
                    let mut joined = buffer(row_type, 5, hidden);
                    let bias = down_bias(&whole);
                    let mut sums = Vec::new();
                    for row in 0..5 {
                        let of_row: Vec<Vec<f32>> = partials.iter().map(|p| p.row_f32(row)).collect();
                        let of_row = of_row.iter().map(Vec::as_slice);
                        join_partials(kernels, of_row, &mut sums, &mut joined.out(), row);
                        let mut input = buffer(row_type, 1, hidden);
                        write_row(kernels, &mut input.out(), 0, &rows.row_f32(row));
                        let wanted = naive(kernels, &whole, shards, &input, bias.as_deref());
                        assert_bits(&out.row_f32(row), &wanted, hidden, row, &what);
                        assert_bits(&joined.row_f32(row), &wanted, hidden, row, &what);
                        let uncut = naive(kernels, &whole, 1, &input, bias.as_deref());
                        differ += usize::from(bits(&uncut) != bits(&wanted));
                    }
                }
            }
        }
        assert!(differ > 0, "{name}: the order of shards shows somewhere");
    }
}

/// A shard loaded alone is that shard of the whole, and its loader verifies the whole expert: the digest is the same for
/// all shards, and for the uncut expert.
#[test]
fn a_shard_loaded_alone_is_that_shard() {
    for name in FIXTURES {
        let (uncut, shards) = (open(name), most(&open(name)));
        let opened = cut(name, shards).with_dense_out(true);
        for id in opened.experts().into_iter().step_by(3) {
            for exact in [false, true] {
                let (_, digest) = load(&plan(&uncut, id), exact, true);
                let (block, of_all) = load(&plan(&opened, id), exact, true);
                assert!(digest.is_some() && of_all == digest, "{name}, expert {id}");
                for (index, wanted) in block.shards().enumerate() {
                    let what = format!("{name}, expert {id}, shard {index} of {shards}");
                    let plan = shard_plan(&opened, id, index);
                    let (alone, of_one) = load(&plan, exact, true);
                    assert_same_block(&alone, wanted, &what);
                    assert_eq!(of_one, digest, "{what}");
                    assert_eq!(alone.bytes(), plan.bytes(exact), "{what}");
                    assert!(alone.others.is_empty() && alone.down_bias.is_none() | (index == 0), "{what}");
                    let kernels =
                        kernels_of(if exact { NumericClass::F32 } else { NumericClass::Portable })[0];
                    let loaded = load_shard(&opened.checkpoint, &opened.spec, kernels, id, index, true);
                    let loaded = loaded.unwrap_or_else(|e| panic!("{e}"));
                    assert_same_block(&loaded.block, wanted, &what);
                    assert_eq!(loaded.digest, digest, "{what}");
                    let (unhashed, none) = load(&plan, exact, false);
                    assert_same_block(&unhashed, wanted, &what);
                    assert_eq!(none, None, "{what}");
                    let run = Shard { index, count: shards }.run(uncut_width(&uncut, id));
                    assert_eq!((alone.width(), run.start % SHARD_UNIT), (run.len(), 0), "{what}");
                }
            }
        }
    }
}

fn uncut_width(opened: &Opened, id: ExpertId) -> usize {
    opened.spec.layer_experts(id.layer as usize).expect("it has the layer").width
}

/// One shard is no cut: the same bits as a model that knows nothing of shards.
#[test]
fn one_shard_is_the_uncut_model() {
    let mut random = Random::seeded("SHARDS_SEED");
    for name in ["mixtral", "deepseekv2", "gptoss"] {
        for class in NumericClass::ALL {
            let Some(&kernels) = kernels_of(class).first() else { continue };
            let (mut model, mut other) =
                (Loop::of(&open(name), kernels, 2), Loop::of(&cut(name, 1), kernels, 2));
            let tokens = random.tokens(30, model.vocab());
            let (found, wanted) =
                (other.forward(&tokens, &mut Unobserved), model.forward(&tokens, &mut Unobserved));
            assert_bits(&found, &wanted, model.vocab(), 0, &format!("{name}, {class}"));
        }
    }
}

/// In class f32 a cut model is as near to the reference as an uncut one; and its digests are the same.
#[test]
fn a_cut_model_agrees_with_the_reference() {
    let kernels = kernels_of(NumericClass::F32)[0];
    for name in FIXTURES {
        let expected = Expected::open(&fixture(name));
        for shards in [2, most(&open(name))] {
            let mut model = Loop::of(&cut(name, shards), kernels, 2);
            assert_eq!(model.manifest, Loop::of(&open(name), kernels, 2).manifest, "{name} in {shards}");
            for prompt in expected.prompts() {
                let all = model.forward(&prompt.ids, &mut Unobserved);
                let last = expected.f32(&format!("{}.f32.last_logits", prompt.name));
                let off = relative_l2(&all[all.len() - last.len()..], &last);
                assert!(off <= 1e-3, "{name} in {shards}, {}: last logits differ by {off:e}", prompt.name);
            }
        }
    }
}

/// A cut model's bits depend neither on company, nor on chunks, nor on where its dense layers are.
#[test]
fn a_cut_models_bits_do_not_depend_on_the_batch() {
    let mut random = Random::seeded("SHARDS_SEED");
    for name in ["deepseekv2", "qwen2moe", "gptoss-mxfp4"] {
        for class in NumericClass::ALL {
            let Some(&kernels) = kernels_of(class).first() else { continue };
            let what = format!("{name}, {class}");
            let mut model = Loop::of(&cut(name, 2), kernels, 2);
            let mut outside = Loop::of(&cut(name, 2).with_dense_out(true), kernels, 1);
            let tokens = random.tokens(40, model.vocab());
            let wanted = model.forward(&tokens, &mut Unobserved);
            let found = outside.forward(&tokens, &mut Unobserved);
            assert_bits(&found, &wanted, model.vocab(), 0, &format!("{what}, dense layers elsewhere"));

            let mut sequence = phalanx_model::kv::Sequence::default();
            let mut one_by_one = Vec::new();
            let blocks = model.experts.blocks().clone();
            let pool = Arc::clone(&model.pool);
            let mut lonely = OneByOne { kernels, pool: &pool, blocks: &blocks, calls: 0 };
            for token in &tokens {
                let run = phalanx_model::plain::Run { sequence: &mut sequence, tokens: &[*token] };
                phalanx_model::plain::step(
                    &model.trunk,
                    &model.pool,
                    &mut model.work,
                    &mut model.cache,
                    &mut [run],
                    &mut lonely,
                    &mut Unobserved,
                )
                .unwrap_or_else(|e| panic!("{e}"));
                let mut logits = Vec::new();
                model.trunk.logits(&model.pool, &mut model.work, &[0], &mut logits);
                one_by_one.extend(logits);
            }
            assert!(lonely.calls > 0);
            assert_bits(&one_by_one, &wanted, model.vocab(), 0, &format!("{what}, row by row"));
        }
    }
}

/// More shards than units of sixteen, or none, are refused, and the words say how many there can be.
#[test]
fn impossible_cuts_are_refused() {
    let error = open("deepseekv2").with_shards(3).expect_err("24 is two units");
    assert_eq!(
        error.to_string(),
        "3 shards: an expert of layer 1 is 24 wide inside and is cut into parts of at least 16, so it can have 1 to 2 \
         shards"
    );
    assert!(open("deepseekv2").with_shards(0).is_err());
    assert!(open("deepseekv3-yarn-mtp").with_shards(2).is_err(), "16 is one unit");
    assert!(open("mixtral").with_shards(6).is_ok() && open("mixtral").with_shards(7).is_err());
}
