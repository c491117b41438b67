//! The model in one process, without a cluster: what the cluster is measured beside.

use std::time::Instant;

use model::kv::Sequence;
use model::plain::{Run, Unobserved};

use super::{Contender, Timing};
use crate::Failure;
use crate::bench::model::likeliest;
use crate::session::Session;

impl Contender for Session {
    fn answer(&mut self, prompts: &[Vec<u32>], count: usize) -> Result<Timing, Failure> {
        let vocab = self.trunk.spec().vocab;
        let mut sequences: Vec<Sequence> = prompts.iter().map(|_| Sequence::default()).collect();
        let mut logits = Vec::new();
        let began = Instant::now();
        let mut runs: Vec<Run<'_>> =
            sequences.iter_mut().zip(prompts).map(|(sequence, tokens)| Run { sequence, tokens }).collect();
        self.step(&mut runs, &mut Unobserved)?;
        let ends = prompts.iter().scan(0, |end, prompt| {
            *end += prompt.len();
            Some(*end - 1)
        });
        self.logits(&ends.collect::<Vec<_>>(), &mut logits);
        let mut tokens: Vec<Vec<u32>> = logits.chunks(vocab).map(|logits| vec![likeliest(logits)]).collect();
        let first = began.elapsed();

        let rows: Vec<usize> = (0..prompts.len()).collect();
        let began = Instant::now();
        for _ in 1..count {
            let mut runs: Vec<Run<'_>> = sequences
                .iter_mut()
                .zip(&tokens)
                .map(|(sequence, tokens)| Run { sequence, tokens: &tokens[tokens.len() - 1..] })
                .collect();
            self.step(&mut runs, &mut Unobserved)?;
            self.logits(&rows, &mut logits);
            for (tokens, logits) in tokens.iter_mut().zip(logits.chunks(vocab)) {
                tokens.push(likeliest(logits));
            }
        }
        let decode = began.elapsed();
        sequences.into_iter().for_each(|sequence| self.cache.release(sequence));
        Ok(Timing { first, decoded: ((count - 1) * prompts.len()) as f64, decode, tokens })
    }
}
