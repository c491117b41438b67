//! The selection bias: what is added to experts' scores when rows choose, and never to their weights.
//!
//! Pure but for reading a file. It makes an overloaded expert be chosen a little less often, so it changes answers: a token under a
//! bias is a function of this bias too, and whoever has it computes the same bits.
//!
//! A bias is counted in units that mean the same in every family ([`unit`]): what the score of an average expert grows by when its
//! logit grows by one. So one bound suits them all, and a bias of 0.5 is what half a logit more would do.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::spec::{Moe, Score, Spec};
use crate::weights::Digest;

/// One bias for all experts of a model. Layers that it does not name have none.
#[derive(Debug, Clone, PartialEq)]
pub struct Bias {
    layers: BTreeMap<usize, Vec<f32>>,
    digest: Digest,
}

/// Why a bias cannot be used. Nothing is computed with it.
#[derive(Debug, thiserror::Error)]
pub enum BiasError {
    /// The file cannot be read.
    #[error("{0}; give a file as a coordinator's /bias shows it")]
    File(std::io::Error),
    /// It is no bias.
    #[error("no selection bias: {0}; give a file as a coordinator's /bias shows it")]
    Text(serde_json::Error),
    /// It is not what it says.
    #[error("the bias has the digest {found} and says {said}; it was changed, or cut: fetch it again")]
    Changed {
        /// What it says.
        said: String,
        /// What it has.
        found: Digest,
    },
    /// A value that nothing can be added to.
    #[error("expert {expert} of layer {layer} has the bias {value}, which is no finite number")]
    Value {
        /// The layer.
        layer: usize,
        /// The expert.
        expert: usize,
        /// Its bias.
        value: f32,
    },
    /// A layer that stands there twice.
    #[error("the bias of layer {0} is given twice")]
    Twice(usize),
    /// A layer without a choice.
    #[error("the bias is of another model: it names layer {0}, whose rows choose no experts")]
    NoChoice(usize),
    /// Another number of experts.
    #[error("the bias is of another model: layer {layer} has {experts} experts and the bias {count}")]
    Experts {
        /// The layer.
        layer: usize,
        /// Its experts.
        experts: usize,
        /// Those of the bias.
        count: usize,
    },
}

/// The file: JSON, for people and programs alike.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    digest: Option<String>,
    layers: Vec<FileLayer>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLayer {
    layer: usize,
    /// Every f32 is one f64, so that nothing is rounded on the way.
    bias: Vec<f64>,
}

impl Bias {
    /// A bias of these layers, in units, one value for each expert.
    pub fn new(layers: BTreeMap<usize, Vec<f32>>) -> Result<Self, BiasError> {
        let mut hasher = blake3::Hasher::new();
        for (layer, values) in &layers {
            hasher.update(&(*layer as u32).to_le_bytes());
            hasher.update(&(values.len() as u32).to_le_bytes());
            for (expert, value) in values.iter().enumerate() {
                if !value.is_finite() {
                    return Err(BiasError::Value { layer: *layer, expert, value: *value });
                }
                hasher.update(&value.to_le_bytes());
            }
        }
        Ok(Self { layers, digest: Digest(hasher.finalize()) })
    }

    /// Reads a file.
    pub fn open(file: &Path) -> Result<Self, BiasError> {
        Self::read(&std::fs::read(file).map_err(BiasError::File)?)
    }

    /// Reads the text of a file.
    pub fn read(text: &[u8]) -> Result<Self, BiasError> {
        let file: File = serde_json::from_slice(text).map_err(BiasError::Text)?;
        let mut layers = BTreeMap::new();
        for FileLayer { layer, bias } in file.layers {
            let values = bias.iter().map(|value| *value as f32).collect();
            if layers.insert(layer, values).is_some() {
                return Err(BiasError::Twice(layer));
            }
        }
        let bias = Self::new(layers)?;
        match file.digest.filter(|said| *said != bias.digest.to_string()) {
            Some(said) => Err(BiasError::Changed { said, found: bias.digest }),
            None => Ok(bias),
        }
    }

    /// The text of its file.
    pub fn text(&self) -> String {
        let layer = |(layer, values): (&usize, &Vec<f32>)| FileLayer {
            layer: *layer,
            bias: values.iter().map(|value| f64::from(*value)).collect(),
        };
        let file =
            File { digest: Some(self.digest.to_string()), layers: self.layers.iter().map(layer).collect() };
        let mut text = serde_json::to_string(&file).expect("numbers are finite, and keys are text");
        text.push('\n');
        text
    }

    /// Names it: a BLAKE3 over layers and values.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What the experts of a layer have, in units; nothing, where none has any.
    pub fn of(&self, layer: usize) -> Option<&[f32]> {
        self.layers.get(&layer).map(Vec::as_slice)
    }

    /// All values, by layer.
    pub fn layers(&self) -> impl Iterator<Item = (usize, &[f32])> {
        self.layers.iter().map(|(layer, values)| (*layer, values.as_slice()))
    }

    /// Whether it is a bias for this model.
    pub fn check(&self, spec: &Spec) -> Result<(), BiasError> {
        for (layer, values) in self.layers() {
            let experts = spec.moe(layer).ok_or(BiasError::NoChoice(layer))?.experts;
            if values.len() != experts {
                return Err(BiasError::Experts { layer, experts, count: values.len() });
            }
        }
        Ok(())
    }
}

/// What a bias of one adds to a score of this gate: about what a logit more adds to the score of an average expert. A softmax
/// over E experts has scores of 1/E on average, and there its slope is nearly that; a sigmoid's slope is at most a quarter; where
/// logits choose it is one.
pub fn unit(moe: &Moe) -> f32 {
    match moe.gate.score {
        Score::Softmax => 1.0 / moe.experts as f32,
        Score::Sigmoid => 0.25,
        Score::SoftmaxOfChosen => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bias(values: &[f32]) -> Bias {
        Bias::new([(1, values.to_vec()), (3, vec![-0.5, 0.5])].into()).unwrap()
    }

    /// A file has every bit: thirds, denormals and the largest values come back as they were.
    #[test]
    fn a_file_comes_back_bit_for_bit() {
        let mut state = 7_u32;
        let mut values = vec![0.0, 1.0 / 3.0, -0.1, f32::MIN_POSITIVE / 8.0, f32::MAX, f32::EPSILON];
        for _ in 0..2_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            values.extend(Some(f32::from_bits(state)).filter(|value| value.is_finite()));
        }
        let bias = bias(&values);
        let read = Bias::read(bias.text().as_bytes()).unwrap();
        let bits = |bias: &Bias| bias.of(1).unwrap().iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&read), bits(&bias));
        assert_eq!((read.digest(), read.of(2), read.layers().count()), (bias.digest(), None, 2));
    }

    #[test]
    fn the_digest_is_of_layers_and_values() {
        let of = |layers: &[(usize, &[f32])]| {
            let layers = layers.iter().map(|(layer, values)| (*layer, values.to_vec())).collect();
            Bias::new(layers).unwrap().digest()
        };
        let all = [
            of(&[]),
            of(&[(0, &[0.0, 1.0])]),
            of(&[(0, &[1.0, 0.0])]),
            of(&[(1, &[0.0, 1.0])]),
            of(&[(0, &[0.0]), (1, &[1.0])]),
            of(&[(0, &[0.0, 1.0, 0.0])]),
        ];
        for (at, digest) in all.iter().enumerate() {
            assert!(!all[..at].contains(digest), "{at}");
        }
    }

    #[test]
    fn what_is_no_bias_is_refused_by_name() {
        let changed = bias(&[0.25, -0.25]).text().replacen("-0.25", "-0.5", 1);
        for (text, expected) in [
            ("", "no selection bias: "),
            ("{\"layers\": {}}", "no selection bias: "),
            ("{\"layers\": [], \"colour\": 1}", "unknown field `colour`"),
            ("{\"layers\": [{\"layer\": 1, \"bias\": [0, 1e60]}]}", "expert 1 of layer 1 has the bias inf"),
            (
                "{\"layers\": [{\"layer\": 1, \"bias\": []}, {\"layer\": 1, \"bias\": []}]}",
                "layer 1 is given twice",
            ),
            (&changed, "it was changed, or cut"),
        ] {
            let why = Bias::read(text.as_bytes()).unwrap_err().to_string();
            assert!(why.contains(expected), "{text}: {why}");
        }
        let by_hand = Bias::read(b"{\"layers\": [{\"layer\": 3, \"bias\": [0.5, -0.5]}]}").unwrap();
        assert_eq!(by_hand.of(3), Some(&[0.5, -0.5][..]));
        let why = Bias::open(Path::new("/nowhere/bias.json")).unwrap_err().to_string();
        assert!(why.contains("give a file as"), "{why}");
    }
}
