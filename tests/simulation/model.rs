//! A model whose values are hashes, and the loop that computes an answer alone.
//!
//! Pure. A row's value is 64 bits. Every phase hashes what it depends on, in the order in which it does: attention all
//! earlier positions, an expert its own name and the row, combining what returned by rank and shard. So an answer is
//! right only if each of its rows was computed of exactly what it should have been.

use std::collections::{BTreeMap, BTreeSet};

use coordinator::data::stage::{Out, Stage};

use crate::random::{Random, mix};

/// Tags of phases, so that no value of one is one of another.
const EMBED: u64 = 1;
const ATTEND: u64 = 2;
const CHOICE: u64 = 3;
const EXPERT: u64 = 4;
const COMBINE: u64 = 5;
const DENSE: u64 = 6;
const HEAD: u64 = 7;
const LEFT_OUT: u64 = 8;

/// The token that ends an answer.
pub(crate) const LAST: u32 = 0;

/// What a layer does after attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    /// A block that every row passes in the trunk.
    Dense,
    /// Experts, of which a row takes some.
    Routed {
        /// How many.
        experts: usize,
        /// How many of them a row takes.
        top_k: usize,
    },
}

/// A model.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) layers: Vec<Layer>,
    pub(crate) shards: usize,
    vocab: u64,
    /// As the trunk goes through it.
    pub(crate) stages: Vec<Stage>,
}

fn hash(parts: &[u64]) -> u64 {
    parts.iter().fold(0x5851_f42d_4c95_7f2d, |sum, part| mix(sum.rotate_left(17) ^ mix(*part)))
}

impl Model {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let count = random.within(2, 4) as usize;
        let mut layers: Vec<Layer> = (0..count)
            .map(|_| {
                let experts = random.within(3, 8) as usize;
                let top_k = random.within(1, 3) as usize;
                if random.chance(200) { Layer::Dense } else { Layer::Routed { experts, top_k } }
            })
            .collect();
        if !layers.iter().any(|layer| matches!(layer, Layer::Routed { .. })) {
            layers[0] = Layer::Routed { experts: 4, top_k: 2 };
        }
        let shards = if random.chance(250) { 2 } else { 1 };
        let mut stages = Vec::new();
        let mut start = 0;
        for (layer, of) in layers.iter().enumerate() {
            if let Layer::Routed { experts, top_k } = *of {
                let out = Out { layer, top_k, experts, is_choice: true };
                stages.push(Stage { layers: start..layer + 1, out: Some(out) });
                start = layer + 1;
            }
        }
        stages.push(Stage { layers: start..layers.len(), out: None });
        Self { layers, shards, vocab: 40, stages }
    }

    /// The token of an id at the beginning of the layers.
    pub(crate) fn embed(&self, token: u32, position: u32) -> u64 {
        hash(&[EMBED, token.into(), position.into()])
    }

    /// What a row becomes that has seen all positions up to its own, which is the last of them.
    pub(crate) fn attend(&self, layer: usize, positions: impl Iterator<Item = u64>) -> u64 {
        positions.fold(hash(&[ATTEND, layer as u64]), |sum, value| mix(sum.rotate_left(23) ^ value))
    }

    /// The experts that a row takes, by rank.
    pub(crate) fn choose(&self, out: Out, value: u64) -> Vec<u32> {
        let mut random = Random::new(hash(&[CHOICE, value]), out.layer as u64);
        let mut experts: Vec<u32> = (0..out.experts as u32).collect();
        for at in 0..out.top_k {
            // The earlier ones are hotter, so that loads are uneven.
            let left = (experts.len() - at) as u64;
            let other = at + random.below(left).min(random.below(left)) as usize;
            experts.swap(at, other);
        }
        experts.truncate(out.top_k);
        experts
    }

    /// What a shard of an expert makes of a row.
    pub(crate) fn expert(&self, layer: u32, expert: u32, shard: u8, value: u64) -> u64 {
        hash(&[EXPERT, layer.into(), expert.into(), shard.into(), value])
    }

    /// A row and what returned for it: by rank, and of each rank by shard; nothing, where an expert is left out.
    pub(crate) fn combine(&self, value: u64, returned: impl Iterator<Item = Option<u64>>) -> u64 {
        let part = |part: Option<u64>| part.unwrap_or(LEFT_OUT);
        returned.fold(hash(&[COMBINE, value]), |sum, of| mix(sum.rotate_left(11) ^ part(of)))
    }

    /// A row behind a block in the trunk.
    pub(crate) fn dense(&self, layer: usize, value: u64) -> u64 {
        hash(&[DENSE, layer as u64, value])
    }

    /// The token that follows.
    pub(crate) fn sample(&self, value: u64, position: u32) -> u32 {
        (hash(&[HEAD, value, position.into()]) % self.vocab) as u32
    }

    /// Whether the head has layers of its own.
    pub(crate) fn head_has_layers(&self) -> bool {
        self.stages.last().is_some_and(|head| !head.layers.is_empty())
    }

    /// The most experts that a row takes anywhere.
    pub(crate) fn top_k_max(&self) -> usize {
        self.stages.iter().filter_map(|stage| Some(stage.out?.top_k)).max().expect("some layer has experts")
    }
}

/// Experts that rows go on without: by position and stage, their ranks.
pub(crate) type Lacking = BTreeMap<(u32, usize), BTreeSet<usize>>;

/// The loop that computes alone: position after position, layer after layer, with everything at hand.
#[derive(Debug)]
pub(crate) struct Plain<'a> {
    model: &'a Model,
    /// By layer, what attention sees of each position.
    pub(crate) seen: Vec<Vec<u64>>,
    /// What goes out to experts, by position and stage.
    sent: Vec<Vec<u64>>,
    /// The row of the last position, behind all layers.
    last: u64,
}

impl<'a> Plain<'a> {
    pub(crate) fn new(model: &'a Model) -> Self {
        Self { model, seen: vec![Vec::new(); model.layers.len()], sent: Vec::new(), last: 0 }
    }

    /// The row of the next token, which goes on without some experts.
    pub(crate) fn step(&mut self, token: u32, lacking: &Lacking) {
        let (model, position) = (self.model, self.sent.len() as u32);
        let mut out = Vec::new();
        let mut value = model.embed(token, position);
        for (at, layer) in model.layers.iter().enumerate() {
            self.seen[at].push(value);
            value = model.attend(at, self.seen[at].iter().copied());
            value = match *layer {
                Layer::Dense => model.dense(at, value),
                Layer::Routed { experts, top_k } => {
                    let left_out = lacking.get(&(position, out.len()));
                    out.push(value);
                    let chosen = model.choose(Out { layer: at, top_k, experts, is_choice: true }, value);
                    let returned = chosen.iter().enumerate().flat_map(|(rank, expert)| {
                        let is_there = left_out.is_none_or(|ranks| !ranks.contains(&rank));
                        let part = move |shard| model.expert(at as u32, *expert, shard as u8, value);
                        (0..model.shards).map(move |shard| is_there.then(|| part(shard)))
                    });
                    model.combine(value, returned)
                }
            };
        }
        self.sent.push(out);
        self.last = value;
    }

    /// The token that follows the last one.
    pub(crate) fn sample(&self) -> u32 {
        self.model.sample(self.last, self.sent.len() as u32 - 1)
    }
}

/// What a request's answer is, and every row on the way to it.
#[derive(Debug)]
pub(crate) struct Oracle {
    /// The answer, up to its end or its length.
    pub(crate) answer: Vec<u32>,
    sent: Vec<Vec<u64>>,
}

impl Oracle {
    pub(crate) fn new(model: &Model, prompt: &[u32], tokens_max: u32) -> Self {
        let mut plain = Plain::new(model);
        let lacking = Lacking::new();
        prompt.iter().for_each(|token| plain.step(*token, &lacking));
        let mut answer = vec![plain.sample()];
        while answer.len() < tokens_max as usize && answer.last() != Some(&LAST) {
            plain.step(answer[answer.len() - 1], &lacking);
            answer.push(plain.sample());
        }
        Self { answer, sent: plain.sent }
    }

    /// Every row that goes out.
    pub(crate) fn rows(&self) -> impl Iterator<Item = u64> + '_ {
        self.sent.iter().flatten().copied()
    }

    /// What the row of a position is as it goes out at a stage.
    pub(crate) fn sent(&self, position: u32, stage: usize) -> Option<u64> {
        self.sent.get(position as usize)?.get(stage).copied()
    }
}
