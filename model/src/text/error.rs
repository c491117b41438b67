//! What can go wrong between text and ids, each with the file it is about and what to try next.
//!
//! Two types, because the callers differ: a [`TextError`] is about the files of a model and is met while
//! loading, a [`ChatError`] is about one request and leaves the template usable for the next.

/// Why the text side of a model could not be loaded or used. Nothing is left half-built.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The operating system could not read a file.
    #[error(
        "cannot read {file}: {source}; check that the model folder is complete and that this user may \
         read it"
    )]
    Unreadable {
        /// Path of the file.
        file: String,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A file is not the JSON it should be.
    #[error("{file} is not valid JSON: {reason}; the file may be cut short, fetch it again")]
    Json {
        /// Name of the file.
        file: String,
        /// What the parser said, with line and column.
        reason: String,
    },

    /// A key of a file holds the wrong kind of value.
    #[error("{file}: {key} should be {expected}, found {found}; correct the file or remove the key")]
    Value {
        /// Name of the file.
        file: String,
        /// The key, with the path to it.
        key: String,
        /// What would have been right.
        expected: &'static str,
        /// What is there.
        found: String,
    },

    /// `tokenizer.json` is JSON, but not a tokenizer that this build can run.
    #[error(
        "{file} is not a usable tokenizer: {reason}; save it again with tokenizers 0.23, or fetch \
         tokenizer.json again"
    )]
    Tokenizer {
        /// Name of the file.
        file: String,
        /// What the tokenizer library said.
        reason: String,
    },

    /// The tokenizer refused a text. The tokenizer stays usable.
    #[error("{file} cannot encode a text of {bytes} bytes: {reason}; try a shorter or plainer text")]
    Encode {
        /// Name of the tokenizer file.
        file: String,
        /// Length of the text.
        bytes: usize,
        /// What the tokenizer library said.
        reason: String,
    },

    /// The tokenizer's decoder refused some ids. The tokenizer stays usable.
    #[error("{file} cannot decode {ids} ids: {reason}; check the decoder section of the file")]
    Decode {
        /// Name of the tokenizer file.
        file: String,
        /// How many ids there were.
        ids: usize,
        /// What the tokenizer library said.
        reason: String,
    },

    /// A chat template cannot be parsed.
    #[error(
        "{file} line {line}: the chat template cannot be parsed: {reason}; compare it with the model's \
         original, or put a corrected chat_template.jinja beside it"
    )]
    Template {
        /// The file that holds the template.
        file: String,
        /// Line within the template, from 1; 0 if unknown.
        line: usize,
        /// What the template engine said.
        reason: String,
    },
}

/// Why a conversation could not be made into a prompt. The template stays usable.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The template called `raise_exception`: it does not take conversations of this shape.
    #[error("{file}: the chat template refuses this conversation: {message}")]
    Refused {
        /// The file that holds the template.
        file: String,
        /// What the template said.
        message: String,
    },

    /// There is nothing to answer.
    #[error("the conversation holds no messages; send at least one")]
    NoMessages,

    /// A message is not an object.
    #[error("message {index} should be an object with role and content, found {found}")]
    NotAMessage {
        /// Position in the conversation, from 0.
        index: usize,
        /// What is there.
        found: &'static str,
    },

    /// The model has no template of this name, or several and none of them is the default.
    #[error("{file} has no chat template named {name:?}, only {available}; ask for one of those by name")]
    NoSuchTemplate {
        /// Where the templates come from.
        file: String,
        /// The name asked for.
        name: String,
        /// The names there are, separated by commas.
        available: String,
    },

    /// The template failed while rendering.
    #[error(
        "{file} line {line}: the chat template failed: {reason}; check that the messages have the fields \
         that it reads, or put a corrected chat_template.jinja beside it"
    )]
    Render {
        /// The file that holds the template.
        file: String,
        /// Line within the template, from 1; 0 if unknown.
        line: usize,
        /// What the template engine said.
        reason: String,
    },
}
