//! Between text and token ids: tokenizer, chat template, stop strings and generation defaults.
//!
//! Everything is built from bytes with a display name, so that an embedded model and a folder take the
//! same way, and everything behaves as the Hugging Face library does with the same files: a prompt that
//! differs by one token is another prompt. Pure but for the `open` functions, which read files; time is
//! an argument ([`WallTime`]).
//!
//! In the order a request meets them: [`ChatTemplate`] makes messages one text, [`Tokenizer`] makes it
//! ids; on the way back [`TextStream`] makes ids text again and [`StopStream`] ends it in the right place.

mod chat;
mod error;
mod files;
mod generation;
mod jinja;
mod python;
mod special_tokens;
mod stop;
mod stream;
mod tokenizer;
mod wall_time;

pub use chat::{ChatInput, ChatTemplate};
pub use error::{ChatError, TextError};
pub use generation::GenerationConfig;
pub use special_tokens::SpecialTokens;
pub use stop::{STOP_BYTES_MAX, STOP_COUNT_MAX, StopError, StopStream, StopText};
pub use stream::TextStream;
pub use tokenizer::{Spelling, Tokenizer};
pub use wall_time::WallTime;
