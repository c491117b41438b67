//! A prompt made ids.
//!
//! A shell around tokenizer and chat template: a long text takes its milliseconds beside the threads that serve clients, and only
//! a few do so at once.

use std::sync::Arc;

use model::text::WallTime;
use tokio::sync::Semaphore;

use super::chat::Conversation;
use super::fields::Fields;
use super::refusal::Refusal;
use crate::texts::Texts;

/// From so many bytes on a prompt is made ids beside the threads that serve clients: some 2 ms of work.
const ASIDE_BYTES: usize = 8 << 10;
/// The most choices of several prompts together.
pub(super) const CHOICES_TOTAL_MAX: usize = 256;
/// So many of them at once.
const ASIDE_MAX: usize = 2;

/// A prompt.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Prompt {
    /// Still to be made ids. `special` adds what the model wants around a text.
    Text {
        /// The text.
        text: String,
        /// Whether the beginning of a text is marked as the model wants it.
        special: bool,
    },
    /// Ids.
    Ids(Vec<u32>),
    /// Still to be made a text, by the model's template.
    Chat(Conversation),
}

impl Prompt {
    /// A text as it is usually meant.
    pub(super) fn text(text: String) -> Self {
        Self::Text { text, special: true }
    }

    /// Reads `prompt`: a text, ids, or a list of these.
    pub(super) fn listed(fields: &Fields<'_>) -> Result<Vec<Self>, Refusal> {
        const EXPECTED: &str = "a string, a list of token ids, or a list of strings or of such lists";
        let Some(raw) = fields.raw("prompt") else {
            return Err(Refusal::value("prompt", format!("`prompt` is missing: give {EXPECTED}")));
        };
        // The first element says of what it is a list.
        let inner = raw.strip_prefix('[').map(|list| list.trim_start().chars().next());
        return match inner {
            None => Ok(vec![Prompt::text(fields.take("prompt", EXPECTED)?.unwrap_or_default())]),
            Some(Some('"')) => {
                take::<Few<String>>(fields).map(|Few(texts)| texts.into_iter().map(Prompt::text).collect())
            }
            Some(Some('[')) => {
                take::<Few<Vec<u32>>>(fields).map(|Few(lists)| lists.into_iter().map(Prompt::Ids).collect())
            }
            Some(_) => take(fields).map(|ids| vec![Prompt::Ids(ids)]),
        };

        fn take<'a, T: serde::Deserialize<'a>>(fields: &Fields<'a>) -> Result<T, Refusal> {
            fields.take("prompt", EXPECTED)?.ok_or_else(|| fields.wrong("prompt", EXPECTED))
        }
    }

    /// The parameter that it came by.
    pub(super) fn param(&self) -> &'static str {
        match self {
            Self::Text { .. } | Self::Ids(_) => "prompt",
            Self::Chat(_) => "messages",
        }
    }

    /// Its text, for answers that begin with it.
    pub(super) fn echo(&self, texts: &Texts) -> Result<String, Refusal> {
        match self {
            Self::Text { text, .. } => Ok(text.clone()),
            Self::Ids(ids) => {
                let refuse = |error: &dyn std::error::Error| Refusal::value("echo", error.to_string());
                let tokenizer = texts.tokenizer().map_err(|error| refuse(&error))?;
                tokenizer.decode(ids, false).map_err(|error| refuse(&error))
            }
            Self::Chat(_) => Ok(String::new()),
        }
    }

    /// About how much work it is.
    fn bytes(&self) -> usize {
        match self {
            Self::Text { text, .. } => text.len(),
            Self::Ids(_) => 0,
            Self::Chat(conversation) => conversation.bytes(),
        }
    }

    fn ids(self, texts: &Texts, time: u64) -> Result<Vec<u32>, Refusal> {
        let param = self.param();
        let refuse = |error: &dyn std::error::Error| Refusal::value(param, error.to_string());
        let (text, special) = match self {
            Self::Ids(ids) => return Ok(ids),
            Self::Text { text, special } => (text, special),
            // The template has written the special tokens.
            Self::Chat(conversation) => {
                let time = WallTime::from_unix(i64::try_from(time).unwrap_or(i64::MAX), 0);
                (conversation.render(texts, time)?, false)
            }
        };
        let tokenizer = texts.tokenizer().map_err(|error| refuse(&error))?;
        tokenizer.encode(&text, special).map_err(|error| refuse(&error))
    }
}

/// A list of which no more than may be answered is kept.
struct Few<T>(Vec<T>);

impl<'de, T: serde::Deserialize<'de>> serde::Deserialize<'de> for Few<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T>(std::marker::PhantomData<T>);
        impl<'de, T: serde::Deserialize<'de>> serde::de::Visitor<'de> for List<T> {
            type Value = Few<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Few<T>, A::Error> {
                let mut few = Vec::new();
                // One more than may be says that there are too many.
                while few.len() <= CHOICES_TOTAL_MAX
                    && let Some(element) = list.next_element()?
                {
                    few.push(element);
                }
                while list.next_element::<serde::de::IgnoredAny>()?.is_some() {}
                Ok(Few(few))
            }
        }
        deserializer.deserialize_seq(List(std::marker::PhantomData))
    }
}

/// Makes prompts ids.
#[derive(Debug)]
pub(super) struct Encoder {
    texts: Arc<Texts>,
    aside: Semaphore,
}

impl Encoder {
    pub(super) fn new(texts: Arc<Texts>) -> Self {
        Self { texts, aside: Semaphore::new(ASIDE_MAX) }
    }

    /// The ids of a prompt. `time`, in seconds since 1970, is what a template may show.
    pub(super) async fn ids(&self, prompt: Prompt, time: u64) -> Result<Vec<u32>, Refusal> {
        if prompt.bytes() < ASIDE_BYTES {
            return prompt.ids(&self.texts, time);
        }
        let (param, texts) = (prompt.param(), Arc::clone(&self.texts));
        let _permit = self.aside.acquire().await.expect("it is never closed");
        let encoding = tokio::task::spawn_blocking(move || prompt.ids(&texts, time));
        encoding.await.map_err(|_| Refusal::value(param, format!("`{param}` cannot be made token ids")))?
    }
}
