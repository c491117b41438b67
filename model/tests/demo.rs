//! The demo model answers as it was measured to answer: 500 prompts that it has not seen in training.

mod support;

use std::collections::BTreeMap;

use phalanx_model::kernel::NumericClass;
use phalanx_model::kv::Sequence;
use phalanx_model::plain::Run;
use serde_json::Value;
use support::{Loop, argmax, kernels_of, root};

/// How far a family's accuracy in a BF16 class may be from the one stated for f32: one prompt of fifty.
const ACCURACY_DIFFERENCE_MAX: f64 = 0.02;

/// Every answer ends with it.
const END: u32 = b';' as u32;

/// Prompts per step.
const BATCH: usize = 50;

struct Question {
    family: String,
    prompt: Vec<u32>,
    answer: String,
    greedy_f32: Vec<u32>,
    correct: bool,
}

fn questions() -> Vec<Question> {
    let text = std::fs::read_to_string(root().join("demo-model/eval.jsonl"))
        .expect("the demo model has its evaluation");
    let ids = |value: &Value| -> Vec<u32> {
        value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("id") as u32).collect()
    };
    let text_of = |value: &Value| value.as_str().expect("text").to_string();
    let all: Vec<Question> = text
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).expect("JSON");
            Question {
                family: text_of(&line["family"]),
                prompt: ids(&line["prompt_ids"]),
                answer: text_of(&line["answer"]),
                greedy_f32: ids(&line["greedy_ids_f32"]),
                correct: line["correct"].as_bool().expect("correct or not"),
            }
        })
        .collect();
    assert_eq!(all.len(), 500, "questions");
    all
}

fn stop_ids() -> Vec<u32> {
    let text =
        std::fs::read(root().join("demo-model/generation_config.json")).expect("the demo model has one");
    let config: Value = serde_json::from_slice(&text).expect("JSON");
    vec![END, config["eos_token_id"].as_u64().expect("one id") as u32]
}

/// Greedy answers to all questions, up to and with the end of the answer. Questions enter as others leave, so prompts
/// and single tokens meet in one step.
fn answer(model: &mut Loop, questions: &[Question]) -> Vec<Vec<u32>> {
    struct Active {
        question: usize,
        sequence: Sequence,
        next: Vec<u32>,
    }
    // Half as much again as the longest answer there is.
    const TOKENS_MAX: usize = 36;
    let (stop, vocab) = (stop_ids(), model.vocab());
    let mut answers = vec![Vec::new(); questions.len()];
    let mut waiting = questions.iter().enumerate();
    let mut active: Vec<Active> = Vec::new();
    loop {
        while active.len() < BATCH
            && let Some((question, Question { prompt, .. })) = waiting.next()
        {
            active.push(Active { question, sequence: Sequence::default(), next: prompt.clone() });
        }
        if active.is_empty() {
            return answers;
        }
        let mut runs: Vec<Run<'_>> =
            active.iter_mut().map(|a| Run { sequence: &mut a.sequence, tokens: &a.next }).collect();
        let logits = model.step(&mut runs);
        let mut kept = Vec::new();
        for (mut one, logits) in active.into_iter().zip(logits.chunks(vocab)) {
            let token = argmax(logits);
            let answer = &mut answers[one.question];
            answer.push(token);
            if stop.contains(&token) || answer.len() == TOKENS_MAX {
                model.cache.release(one.sequence);
            } else {
                one.next = vec![token];
                kept.push(one);
            }
        }
        active = kept;
    }
}

/// In class `f32` all answers are the reference's, token by token.
#[test]
fn class_f32_gives_all_500_answers_of_the_reference() {
    let kernels = kernels_of(NumericClass::F32)[0];
    let questions = questions();
    let answers = answer(&mut Loop::with(&root().join("demo-model"), kernels, 2), &questions);
    for (question, answer) in questions.iter().zip(&answers) {
        assert_eq!(answer, &question.greedy_f32, "{}: {:?}", question.family, question.prompt);
    }
}

#[test]
fn class_portable_answers_as_well_as_stated() {
    check_accuracy(NumericClass::Portable);
}

#[test]
fn class_avx512bf16_answers_as_well_as_stated() {
    check_accuracy(NumericClass::Avx512Bf16);
}

fn check_accuracy(class: NumericClass) {
    let Some(&kernels) = kernels_of(class).first() else { return };
    let questions = questions();
    let answers = answer(&mut Loop::with(&root().join("demo-model"), kernels, 2), &questions);
    // Of each family: questions, right answers as stated, and ours.
    let mut families: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    let mut others = 0;
    for (question, answer) in questions.iter().zip(&answers) {
        // Ids below 256 are bytes, those above are special.
        let bytes: Vec<u8> = answer.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
        let counts = families.entry(&question.family).or_default();
        counts[0] += 1;
        counts[1] += usize::from(question.correct);
        counts[2] += usize::from(bytes == question.answer.as_bytes());
        others += usize::from(answer != &question.greedy_f32);
    }
    assert_eq!(families.len(), 10, "families");
    println!("class {class} on {}: {others} of 500 answers differ from f32's", kernels.path());
    for (family, counts) in &families {
        let accuracy = |right: usize| right as f64 / counts[0] as f64;
        let (stated, ours) = (accuracy(counts[1]), accuracy(counts[2]));
        println!("{family:6} {ours:.2}, stated {stated:.2}");
        assert!(
            (ours - stated).abs() <= ACCURACY_DIFFERENCE_MAX + 1e-9,
            "{family}: {ours:.2}, stated {stated:.2}"
        );
    }
}
