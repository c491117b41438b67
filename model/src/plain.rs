//! The plain loop: a whole model in one process, layer after layer, step after step.
//!
//! It takes whoever computes experts as an argument and is the oracle for every device, carrier and
//! cluster: whatever they do, tokens and logits must be these.

use crate::attention::Span;
use crate::bias::Bias;
use crate::experts::{Experts, ExpertsError};
use crate::gate::Choices;
use crate::kv::{KvCache, KvFull, Sequence};
use crate::pool::Pool;
use crate::spec::Spec;
use crate::trunk::{Trunk, Workspace};

/// Consecutive tokens of one sequence, to be computed in a step.
#[derive(Debug)]
pub struct Run<'a> {
    /// Whose tokens. It grows by them.
    pub sequence: &'a mut Sequence,
    /// The next tokens of the sequence.
    pub tokens: &'a [u32],
}

/// Why a step could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A token is not in the vocabulary. Nothing has changed.
    #[error("token {token} is not in the vocabulary of {vocab} tokens; was it made with another tokenizer?")]
    UnknownToken {
        /// The token.
        token: u32,
        /// The vocabulary.
        vocab: usize,
    },
    /// The sequence would be longer than the model can take. Nothing has changed.
    #[error(
        "{needed} positions are needed but the context is {context} ({why}); shorten the prompt or generate fewer tokens"
    )]
    ContextFull {
        /// Positions needed.
        needed: usize,
        /// Positions there are.
        context: usize,
        /// What sets the limit.
        why: String,
    },
    /// The cache is full. Nothing has changed.
    #[error(transparent)]
    KvFull(#[from] KvFull),
    /// An expert could not be computed. The sequences of this step must be given up.
    #[error("layer {layer}: {error}")]
    Experts {
        /// The layer.
        layer: usize,
        /// What went wrong.
        error: ExpertsError,
    },
}

/// Watches a step from inside.
pub trait Observe {
    /// The residual stream before layer `layer`; with `layer` = number of layers, after the last.
    fn residual(&mut self, layer: usize, rows: &[f32]) {
        let _ = (layer, rows);
    }

    /// The choices of a sparse layer.
    fn chosen(&mut self, layer: usize, choices: &Choices) {
        let _ = (layer, choices);
    }
}

/// Watches nothing.
#[derive(Debug, Clone, Copy)]
pub struct Unobserved;

impl Observe for Unobserved {}

/// Computes one step: all tokens of all runs, through all layers. The last residual is left in `work`,
/// runs one after the other.
pub fn step(
    trunk: &Trunk,
    pool: &Pool,
    work: &mut Workspace,
    cache: &mut KvCache,
    runs: &mut [Run<'_>],
    experts: &mut dyn Experts,
    observe: &mut dyn Observe,
) -> Result<(), StepError> {
    step_under(trunk, pool, work, cache, runs, experts, observe, None)
}

/// The same where all rows choose under a bias.
pub fn step_under(
    trunk: &Trunk,
    pool: &Pool,
    work: &mut Workspace,
    cache: &mut KvCache,
    runs: &mut [Run<'_>],
    experts: &mut dyn Experts,
    observe: &mut dyn Observe,
    bias: Option<&Bias>,
) -> Result<(), StepError> {
    admit(trunk, cache, runs)?;
    let mut row = 0;
    let spans: Vec<Span<'_>> = runs
        .iter()
        .map(|run| {
            let rows = row..row + run.tokens.len();
            row = rows.end;
            Span { start: run.sequence.len() - run.tokens.len(), sequence: run.sequence, rows }
        })
        .collect();
    let tokens: Vec<u32> = runs.iter().flat_map(|run| run.tokens).copied().collect();
    trunk.embed(work, &tokens, &spans);
    let biases = bias.map(|bias| vec![Some(bias); tokens.len()]).unwrap_or_default();
    let layers = trunk.spec().layers.len();
    for layer in 0..layers {
        observe.residual(layer, &work.hidden);
        trunk.attend(pool, work, layer, cache, &spans);
        let out = trunk.gate_under(pool, work, layer, &biases);
        if out {
            if trunk.spec().moe(layer).is_some() {
                observe.chosen(layer, &work.choices);
            }
            experts
                .compute(layer, &work.rows, &work.groups, &mut work.returned)
                .map_err(|error| StepError::Experts { layer, error })?;
        }
        trunk.forward(pool, work, layer);
        if out {
            trunk.combine(pool, work);
        }
    }
    observe.residual(layers, &work.hidden);
    Ok(())
}

/// Checks that the model knows every token.
pub fn check_tokens(spec: &Spec, tokens: &[u32]) -> Result<(), StepError> {
    match tokens.iter().find(|t| **t as usize >= spec.vocab) {
        Some(&token) => Err(StepError::UnknownToken { token, vocab: spec.vocab }),
        None => Ok(()),
    }
}

/// Checks that the model can take a sequence of `needed` positions.
pub fn check_context(spec: &Spec, needed: usize) -> Result<(), StepError> {
    if needed <= spec.context_max {
        return Ok(());
    }
    let why = match spec.rope.context_limit {
        Some(limit) if limit == spec.context_max => {
            format!("rope scaling `{}` would change cached keys beyond it", spec.rope.kind)
        }
        _ => "max_position_embeddings of config.json".to_string(),
    };
    Err(StepError::ContextFull { needed, context: spec.context_max, why })
}

/// Checks all runs, then extends their sequences; on an error nothing has changed.
fn admit(trunk: &Trunk, cache: &mut KvCache, runs: &mut [Run<'_>]) -> Result<(), StepError> {
    let mut pages = 0;
    for run in runs.iter() {
        check_tokens(trunk.spec(), run.tokens)?;
        check_context(trunk.spec(), run.sequence.len() + run.tokens.len())?;
        pages += cache.pages_needed(run.sequence, run.tokens.len());
    }
    if pages > cache.free() {
        return Err(KvFull { needed: pages, free: cache.free(), total: cache.pages() }.into());
    }
    for run in runs {
        cache.extend(run.sequence, run.tokens.len())?;
    }
    Ok(())
}
