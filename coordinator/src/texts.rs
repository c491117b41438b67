//! The texts of a model: tokenizer, chat template, and its own defaults for answers.
//!
//! Between people and ids, on the side of whoever talks to clients: a node has none of it. Pure but for
//! [`Texts::open`], which reads files; an embedded model takes the same way with [`Texts::from_bytes`].

use std::path::Path;

use model::text::{ChatTemplate, GenerationConfig, TextError, Tokenizer};

/// The model cannot read or write text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model's folder has no tokenizer.json, so it cannot read text; give token ids")]
pub struct NoTokenizer;

/// The texts of a model.
#[derive(Debug)]
pub struct Texts {
    /// Absent where the folder has none: ids still work.
    pub tokenizer: Option<Tokenizer>,
    /// Absent for a base model.
    pub chat: Option<ChatTemplate>,
    /// What the model's makers recommend.
    pub defaults: GenerationConfig,
}

/// The files of a model that is compiled in.
#[derive(Debug, Clone, Copy)]
pub struct TextFiles<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`, which holds the chat template too.
    pub tokenizer_config: &'a [u8],
    /// `generation_config.json`.
    pub generation_config: &'a [u8],
}

impl Texts {
    /// Opens the texts of a Hugging Face folder.
    pub fn open(dir: &Path) -> Result<Self, TextError> {
        let tokenizer = match dir.join("tokenizer.json").exists() {
            true => Some(Tokenizer::open(dir)?),
            false => None,
        };
        Ok(Self { tokenizer, chat: ChatTemplate::open(dir)?, defaults: defaults(dir)? })
    }

    /// The texts of a model that is compiled in; `place` is the folder that messages name.
    pub fn from_bytes(place: &str, files: TextFiles<'_>) -> Result<Self, TextError> {
        let config = Some(files.tokenizer_config);
        let generation = format!("{place}/generation_config.json");
        Ok(Self {
            tokenizer: Some(Tokenizer::from_bytes(place, files.tokenizer, config, None)?),
            chat: ChatTemplate::from_bytes(place, config, None, &[])?,
            defaults: GenerationConfig::from_bytes(&generation, files.generation_config)?,
        })
    }

    /// The tokenizer, which text needs.
    pub fn tokenizer(&self) -> Result<&Tokenizer, NoTokenizer> {
        self.tokenizer.as_ref().ok_or(NoTokenizer)
    }

    /// The ids that end an answer: the model's own, or else what its tokenizer calls the end of a text.
    pub fn end_ids(&self) -> Vec<u32> {
        match self.defaults.eos_ids.as_slice() {
            [] => self.tokenizer.as_ref().and_then(Tokenizer::eos_id).into_iter().collect(),
            ids => ids.to_vec(),
        }
    }
}

/// `generation_config.json`; where it names no end of an answer, `config.json` may, as for the reference.
fn defaults(dir: &Path) -> Result<GenerationConfig, TextError> {
    let mut defaults = GenerationConfig::open(dir)?;
    if defaults.eos_ids.is_empty()
        && let Ok(config) = std::fs::read(dir.join("config.json"))
        && let Ok(config) = GenerationConfig::from_bytes("config.json", &config)
    {
        defaults.eos_ids = config.eos_ids;
    }
    Ok(defaults)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(folder: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder)
    }

    /// Many folders name the end of an answer in `config.json` alone; an answer that never ends is what a user
    /// would see of it.
    #[test]
    fn the_end_of_an_answer_is_found_wherever_it_is_named() {
        let demo = Texts::open(&path("demo-model")).unwrap();
        assert_eq!(demo.end_ids(), [257]);
        let mut nameless = Texts { defaults: GenerationConfig::default(), ..demo };
        assert_eq!(nameless.end_ids(), [nameless.tokenizer().unwrap().eos_id().unwrap()]);
        nameless.tokenizer = None;
        assert!(nameless.end_ids().is_empty());
        assert_eq!(nameless.tokenizer().unwrap_err(), NoTokenizer);
    }

    /// A model that is compiled in and its folder are the same model.
    #[test]
    fn embedded_texts_are_those_of_the_folder() {
        let dir = path("demo-model");
        let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
        let (tokenizer, config, generation) =
            (read("tokenizer.json"), read("tokenizer_config.json"), read("generation_config.json"));
        let files =
            TextFiles { tokenizer: &tokenizer, tokenizer_config: &config, generation_config: &generation };
        let (embedded, opened) = (Texts::from_bytes("demo", files).unwrap(), Texts::open(&dir).unwrap());
        assert_eq!(embedded.defaults, opened.defaults);
        assert_eq!(embedded.chat.is_some(), opened.chat.is_some());
        let encode = |texts: &Texts| texts.tokenizer().unwrap().encode("sort 73=", true).unwrap();
        assert_eq!(encode(&embedded), encode(&opened));
    }
}
