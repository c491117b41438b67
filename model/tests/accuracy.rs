//! How far the BF16 classes stray from f32, measured against how far the reference's own BF16 run strays.
//!
//! Both runs round somewhere else, so neither equals the other. Rounding no worse than the reference does is the promise.

mod support;

use std::path::Path;

use phalanx_model::gate::Choices;
use phalanx_model::kernel::{Kernels, NumericClass};
use phalanx_model::plain::Observe;
use support::{Expected, Loop, Prompt, families, kernels_of, name_of, relative_l2};

/// Ours over the reference's relative L2 from f32, the median over all prompts. The distances are of single random
/// models, where one expert chosen otherwise weighs more than all rounding, so a single ratio says little.
const RATIO_MEDIAN_MAX: f64 = 1.2;

/// Rows that go to other experts than in f32, ours over the reference's, over all prompts together.
const ROWS_DIFFERING_RATIO_MAX: f64 = 1.1;

/// Remembers the choices of every sparse layer.
#[derive(Default)]
struct Chosen(Vec<Choices>);

impl Observe for Chosen {
    fn chosen(&mut self, _layer: usize, choices: &Choices) {
        self.0.push(choices.clone());
    }
}

/// What one prompt shows. `theirs` is the reference's own BF16 run.
struct Found {
    ours: f64,
    theirs: f64,
    rows: usize,
    rows_ours: usize,
    rows_theirs: usize,
}

/// In class `portable` we stray no further than the reference does.
#[test]
fn class_portable_strays_no_further_than_the_reference() {
    check(NumericClass::Portable);
}

/// In class `avx512bf16` we stray no further than the reference does.
#[test]
fn class_avx512bf16_strays_no_further_than_the_reference() {
    check(NumericClass::Avx512Bf16);
}

fn check(class: NumericClass) {
    let Some(&kernels) = kernels_of(class).first() else { return };
    println!("class {class} on {}", kernels.path());
    println!("fixture          prompt       ours  reference  ratio   rows  ours  reference");
    let mut all = Vec::new();
    for dir in families() {
        let expected = Expected::open(&dir);
        let mut model = Loop::with(&dir, kernels, 2);
        for prompt in expected.prompts() {
            let found = compare(&mut model, &expected, &prompt);
            println!(
                "{:16} {:6} {:10.2e} {:10.2e} {:6.2} {:6} {:5} {:10}",
                name_of(&dir),
                prompt.name,
                found.ours,
                found.theirs,
                found.ours / found.theirs,
                found.rows,
                found.rows_ours,
                found.rows_theirs
            );
            all.push(found);
        }
    }
    assert_eq!(all.len(), 28, "prompts");

    let mut ratios: Vec<f64> = all.iter().map(|found| found.ours / found.theirs).collect();
    ratios.sort_by(f64::total_cmp);
    let median = (ratios[13] + ratios[14]) / 2.0;
    let sum = |rows: fn(&Found) -> usize| all.iter().map(rows).sum::<usize>();
    let (rows, ours, theirs) = (sum(|f| f.rows), sum(|f| f.rows_ours), sum(|f| f.rows_theirs));
    let rows_ratio = ours as f64 / theirs as f64;
    println!(
        "median ratio {median:.3}; {ours} of {rows} rows differ, the reference's {theirs}: {rows_ratio:.3}"
    );
    assert!(median <= RATIO_MEDIAN_MAX, "median ratio {median:.3}, at most {RATIO_MEDIAN_MAX}");
    assert!(rows_ratio <= ROWS_DIFFERING_RATIO_MAX, "{ours} rows differ, the reference's {theirs}");
}

fn compare(model: &mut Loop, expected: &Expected, prompt: &Prompt) -> Found {
    let rows = prompt.ids.len();
    let of = |class: &str, what: &str| format!("{}.{class}.{what}", prompt.name);
    let mut chosen = Chosen::default();
    let logits = model.forward(&prompt.ids, &mut chosen);
    let exact = expected.f32(&of("f32", "last_logits"));
    let last = &logits[(rows - 1) * model.vocab()..];

    // The files hold choices of the prompt and of what each run generated; only the prompt is common to both.
    let layers = chosen.0.len();
    let recorded = |class: &str| {
        let ids = expected.i32(&of(class, "router_ids"));
        let k = chosen.0[0].top_k;
        let positions = ids.len() / layers / k;
        assert_eq!((ids.len(), positions), (layers * (rows + 31) * k, rows + 31), "{}", prompt.name);
        let ids: Vec<u32> = ids.into_iter().map(|id| u32::try_from(id).expect("an expert")).collect();
        sets(ids.chunks(positions * k).map(|layer| &layer[..rows * k]), k)
    };
    let exact_sets = recorded("f32");
    let ours = sets(chosen.0.iter().map(|choices| choices.experts.as_slice()), chosen.0[0].top_k);
    let differing = |sets: &[Vec<u32>]| sets.iter().zip(&exact_sets).filter(|(a, b)| a != b).count();
    assert_eq!(ours.len(), exact_sets.len());
    Found {
        ours: relative_l2(last, &exact),
        theirs: relative_l2(&expected.f32(&of("bf16", "last_logits")), &exact),
        rows: ours.len(),
        rows_ours: differing(&ours),
        rows_theirs: differing(&recorded("bf16")),
    }
}

/// The experts of every row as a set, layer after layer.
fn sets<'a>(layers: impl Iterator<Item = &'a [u32]>, k: usize) -> Vec<Vec<u32>> {
    layers
        .flat_map(|layer| layer.chunks(k))
        .map(|row| {
            let mut row = row.to_vec();
            row.sort_unstable();
            row
        })
        .collect()
}

/// The measure itself: class `f32` chooses as the reference's f32 does, and its distance is next to nothing.
#[test]
fn the_measure_finds_nothing_in_class_f32() {
    for dir in families() {
        let expected = Expected::open(&dir);
        let mut model = open(&dir, NumericClass::F32);
        for prompt in expected.prompts() {
            let found = compare(&mut model, &expected, &prompt);
            assert!(found.ours < found.theirs / 100.0, "{} {}: {:e}", name_of(&dir), prompt.name, found.ours);
            assert_eq!(found.rows_ours, 0, "{} {}", name_of(&dir), prompt.name);
        }
    }
}

fn open(dir: &Path, class: NumericClass) -> Loop {
    Loop::with(dir, Kernels::for_class(class).expect("f32 runs on every CPU"), 2)
}
