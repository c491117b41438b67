//! The plain loop against the outputs of the reference implementation, on every fixture.

mod support;

use phalanx_model::gate::Choices;
use phalanx_model::kernel::NumericClass;
use phalanx_model::plain::Observe;
use support::{Expected, Loop, fixtures, relative_l2};

/// Two independent f32 implementations differ by some 1e-5; the issue of a wrong option is far larger.
const LOGITS_RELATIVE_L2_MAX: f64 = 1e-3;
/// Below this gap two f32 implementations may choose differently.
const ROUTER_GAP_MIN: f32 = 1e-5;

#[derive(Default)]
struct Watch {
    residuals: Vec<Vec<f32>>,
    choices: Vec<Choices>,
}

impl Observe for Watch {
    fn residual(&mut self, _layer: usize, rows: &[f32]) {
        self.residuals.push(rows.to_vec());
    }

    fn chosen(&mut self, _layer: usize, choices: &Choices) {
        self.choices.push(choices.clone());
    }
}

/// In class `f32` logits, residuals, experts, weights and greedy tokens are the reference's.
#[test]
fn class_f32_equals_the_reference() {
    for dir in fixtures() {
        let expected = Expected::open(&dir);
        let mut model = Loop::open(&dir, NumericClass::F32, 2);
        for prompt in expected.prompts() {
            let name = format!("{} {}", dir.display(), prompt.name);
            check_forward(&mut model, &expected, &prompt, &name);
            let greedy = model.greedy(&prompt.ids, prompt.greedy_f32.len());
            assert_eq!(greedy, prompt.greedy_f32, "{name}: greedy tokens");
        }
    }
}

fn check_forward(model: &mut Loop, expected: &Expected, prompt: &support::Prompt, name: &str) {
    let length = prompt.ids.len();
    let mut watch = Watch::default();
    let all = model.forward(&prompt.ids, &mut watch);
    let vocab = model.vocab();
    let last = expected.f32(&format!("{}.f32.last_logits", prompt.name));
    let off = relative_l2(&all[(length - 1) * vocab..], &last);
    assert!(off < LOGITS_RELATIVE_L2_MAX, "{name}: last logits differ by {off:e}");
    if let Some(logits) = expected.find_f32(&format!("{}.f32.all_logits", prompt.name)) {
        let off = relative_l2(&all, &logits);
        assert!(off < LOGITS_RELATIVE_L2_MAX, "{name}: logits differ by {off:e}");
    }
    if let Some(hidden) = expected.find_f32(&format!("{}.f32.hidden", prompt.name)) {
        let rows = hidden.chunks(hidden.len() / (watch.residuals.len() + 1));
        for (layer, (found, expected)) in watch.residuals.iter().zip(rows).enumerate() {
            let off = relative_l2(found, expected);
            assert!(off < LOGITS_RELATIVE_L2_MAX, "{name}: residual {layer} differs by {off:e}");
        }
    }

    // The recorded choices are of the prompt and 31 greedy tokens.
    let mut tokens = prompt.ids.clone();
    tokens.extend(&prompt.greedy_f32[..prompt.greedy_f32.len() - 1]);
    let mut watch = Watch::default();
    model.forward(&tokens, &mut watch);
    let ids = expected.i32(&format!("{}.f32.router_ids", prompt.name));
    let weights = expected.f32(&format!("{}.f32.router_weights", prompt.name));
    let gaps = expected.f32(&format!("{}.f32.router_gap", prompt.name));
    let k = watch.choices[0].top_k;
    let mut compared = 0;
    for (layer, choices) in watch.choices.iter().enumerate() {
        for row in 0..tokens.len() {
            let at = layer * tokens.len() + row;
            if gaps[at] <= ROUTER_GAP_MIN {
                continue;
            }
            compared += 1;
            let sorted = |pairs: &mut Vec<(u32, f32)>| pairs.sort_by_key(|(e, _)| *e);
            let mut found: Vec<(u32, f32)> =
                (row * k..(row + 1) * k).map(|i| (choices.experts[i], choices.weights[i])).collect();
            let mut wanted: Vec<(u32, f32)> =
                (at * k..(at + 1) * k).map(|i| (ids[i] as u32, weights[i])).collect();
            sorted(&mut found);
            sorted(&mut wanted);
            for ((e, w), (wanted_e, wanted_w)) in found.iter().zip(&wanted) {
                assert_eq!(e, wanted_e, "{name}: experts of layer {layer}, row {row}");
                assert!((w - wanted_w).abs() < 1e-4, "{name}: weight {w} of expert {e}, expected {wanted_w}");
            }
        }
    }
    assert!(compared * 10 > gaps.len() * 9, "{name}: only {compared} of {} choices compared", gaps.len());
}
