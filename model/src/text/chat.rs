//! A conversation made into a prompt by the model's own chat template.
//!
//! A model understands turns only in the exact layout that it was trained with, and that layout is a
//! Jinja template in its folder. What is rendered here is what `apply_chat_template` of transformers
//! renders: which template is chosen, what it sees and how it prints (see `jinja`).
//!
//! Pure but for [`ChatTemplate::open`]: the time that `strftime_now` shows is an argument.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value};

use super::files::{self, display, parse_object, read_optional, unreadable, wrong};
use super::jinja::{Raised, environment, prepare};
use super::{ChatError, SpecialTokens, TextError, WallTime};

/// The template that is used when none is asked for by name.
const DEFAULT: &str = "default";
/// The template that is preferred where tools are given.
const TOOL_USE: &str = "tool_use";
/// The names under which clients send what a model thought, the one that templates read first.
const REASONING_KEYS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The chat templates of one model, parsed.
#[derive(Debug)]
pub struct ChatTemplate {
    place: String,
    env: Environment<'static>,
    /// The key of each template in `env`, which is the file that messages name.
    files: BTreeMap<String, String>,
    special_tokens: Map<String, Value>,
}

/// One conversation to render, and what the template may want to know.
#[derive(Debug, Clone, Copy)]
pub struct ChatInput<'a> {
    /// The messages: objects with `role`, `content`, perhaps `tool_calls`.
    pub messages: &'a [Value],
    /// The tools offered to the model, as JSON schemas.
    pub tools: Option<&'a [Value]>,
    /// Documents to answer from.
    pub documents: Option<&'a [Value]>,
    /// Whether the prompt ends with the opening of the model's turn.
    pub add_generation_prompt: bool,
    /// Further values, such as `enable_thinking`; they win over the special tokens.
    pub extra: Option<&'a Map<String, Value>>,
    /// A template by name; by default `tool_use` where tools are given, else `default`.
    pub template: Option<&'a str>,
    /// What `strftime_now` shows.
    pub now: WallTime,
}

impl<'a> ChatInput<'a> {
    /// A conversation that is the model's turn, with everything else left at its default.
    pub fn new(messages: &'a [Value], now: WallTime) -> ChatInput<'a> {
        ChatInput {
            messages,
            tools: None,
            documents: None,
            add_generation_prompt: true,
            extra: None,
            template: None,
            now,
        }
    }
}

impl ChatTemplate {
    /// Reads the templates of a Hugging Face folder: `chat_template.jinja` and `chat_templates/*.jinja`,
    /// or without either the `chat_template` of `tokenizer_config.json`. `None` if there is none, as in
    /// the folder of a base model.
    pub fn open(dir: &Path) -> Result<Option<ChatTemplate>, TextError> {
        let config = read_optional(dir, "tokenizer_config.json")?;
        let map = read_optional(dir, "special_tokens_map.json")?;
        let mut files = Vec::new();
        if let Some(bytes) = read_optional(dir, "chat_template.jinja")? {
            files.push((DEFAULT.to_owned(), "chat_template.jinja".to_owned(), bytes));
        }
        let folder = dir.join("chat_templates");
        if folder.is_dir() {
            let broken = |error| unreadable(dir, "chat_templates", error);
            for entry in std::fs::read_dir(&folder).map_err(broken)? {
                let file = entry.map_err(broken)?.file_name().to_string_lossy().into_owned();
                let Some(name) = file.strip_suffix(".jinja") else {
                    continue;
                };
                let path = format!("chat_templates/{file}");
                let bytes = read_optional(dir, &path)?.unwrap_or_default();
                files.push((name.to_owned(), path, bytes));
            }
        }
        let files: Vec<(&str, &str, &[u8])> = files
            .iter()
            .map(|(name, path, bytes)| (name.as_str(), path.as_str(), bytes.as_slice()))
            .collect();
        let place = dir.display().to_string();
        ChatTemplate::from_bytes(&place, config.as_deref(), map.as_deref(), &files)
    }

    /// Builds the templates from the bytes of their files. `place` is the folder that messages name;
    /// `templates` are (template name, file name, source) and take the place of the one in
    /// `tokenizer_config.json`.
    pub fn from_bytes(
        place: &str,
        tokenizer_config_json: Option<&[u8]>,
        special_tokens_map_json: Option<&[u8]>,
        templates: &[(&str, &str, &[u8])],
    ) -> Result<Option<ChatTemplate>, TextError> {
        let config_file = display(Path::new(place), "tokenizer_config.json");
        let map_file = display(Path::new(place), "special_tokens_map.json");
        let special_tokens = SpecialTokens::from_bytes(
            tokenizer_config_json.map(|bytes| (config_file.as_str(), bytes)),
            special_tokens_map_json.map(|bytes| (map_file.as_str(), bytes)),
        )?;
        let mut sources = Vec::new();
        for (name, file, bytes) in templates {
            let file = display(Path::new(place), file);
            let Ok(source) = std::str::from_utf8(bytes) else {
                let reason = "it is not UTF-8".to_owned();
                return Err(TextError::Template { file, line: 0, reason });
            };
            sources.push(((*name).to_owned(), file, source.to_owned()));
        }
        if let (true, Some(bytes)) = (sources.is_empty(), tokenizer_config_json) {
            let config = parse_object(&config_file, bytes)?;
            sources = configured(&config_file, config.get("chat_template"))?;
        }
        if sources.is_empty() {
            return Ok(None);
        }

        let mut env = environment();
        let mut files = BTreeMap::new();
        for (name, file, source) in sources {
            env.add_template_owned(file.clone(), prepare(&source)).map_err(|error| {
                let line = error.line().unwrap_or(0);
                TextError::Template { file: file.clone(), line, reason: reason(&error) }
            })?;
            files.insert(name, file);
        }
        let special_tokens =
            special_tokens.named().map(|(name, content)| (name.to_owned(), Value::from(content))).collect();
        Ok(Some(ChatTemplate { place: place.to_owned(), env, files, special_tokens }))
    }

    /// The names of the templates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// The source of the template that is used by default, with tools or without.
    pub fn source(&self, has_tools: bool) -> String {
        let file = self.chosen(None, has_tools).and_then(|file| self.env.get_template(file).ok());
        file.map_or_else(String::new, |template| template.source().to_owned())
    }

    /// Whether that template shows tools at all.
    pub fn shows_tools(&self) -> bool {
        let file = self.chosen(None, true).and_then(|file| self.env.get_template(file).ok());
        file.is_some_and(|template| template.undeclared_variables(false).contains("tools"))
    }

    /// The prompt for a conversation. It holds its special tokens as text: encode it without adding any.
    pub fn render(&self, input: &ChatInput) -> Result<String, ChatError> {
        if input.messages.is_empty() {
            return Err(ChatError::NoMessages);
        }
        let mut messages = Vec::with_capacity(input.messages.len());
        for (index, message) in input.messages.iter().enumerate() {
            let Value::Object(message) = message else {
                return Err(ChatError::NotAMessage { index, found: files::kind(message) });
            };
            messages.push(Value::Object(tidy(message)));
        }

        let mut context: BTreeMap<&str, minijinja::Value> = BTreeMap::new();
        for (name, value) in self.special_tokens.iter().chain(input.extra.into_iter().flatten()) {
            context.insert(name, minijinja::Value::from_serialize(value));
        }
        let now = input.now;
        let strftime_now = move |format: &str| now.format(format);
        context.insert("strftime_now", minijinja::Value::from_function(strftime_now));
        context.insert("messages", minijinja::Value::from_serialize(&messages));
        context.insert("tools", minijinja::Value::from_serialize(input.tools));
        context.insert("documents", minijinja::Value::from_serialize(input.documents));
        context.insert("add_generation_prompt", input.add_generation_prompt.into());

        let file = self.choose(input)?;
        self.env
            .get_template(file)
            .and_then(|template| template.render(context))
            .map_err(|error| render_error(file, &error))
    }

    fn choose(&self, input: &ChatInput) -> Result<&str, ChatError> {
        self.chosen(input.template, input.tools.is_some()).ok_or_else(|| ChatError::NoSuchTemplate {
            file: self.place.clone(),
            name: input.template.unwrap_or(DEFAULT).to_owned(),
            available: self.names().collect::<Vec<_>>().join(", "),
        })
    }

    /// The key of a template, by its name or by what is to be shown.
    fn chosen(&self, name: Option<&str>, has_tools: bool) -> Option<&str> {
        let name = match name {
            Some(name) => name,
            None if has_tools && self.files.contains_key(TOOL_USE) => TOOL_USE,
            None => DEFAULT,
        };
        self.files.get(name).map(String::as_str)
    }
}

/// The templates under `chat_template` of `tokenizer_config.json`: a string, or a list of
/// `{name, template}`.
fn configured(file: &str, value: Option<&Value>) -> Result<Vec<(String, String, String)>, TextError> {
    const EXPECTED: &str = "a template, or a list of objects with name and template";
    let key = "chat_template";
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(source)) => {
            Ok(vec![(DEFAULT.to_owned(), format!("{file} ({key})"), source.clone())])
        }
        Some(Value::Array(list)) => list
            .iter()
            .map(|entry| match (entry["name"].as_str(), entry["template"].as_str()) {
                (Some(name), Some(source)) => {
                    Ok((name.to_owned(), format!("{file} ({key} {name})"), source.to_owned()))
                }
                _ => Err(wrong(file, key, EXPECTED, entry)),
            })
            .collect(),
        Some(other) => Err(wrong(file, key, EXPECTED, other)),
    }
}

/// A message as templates expect it: without nulls, which clients send and templates would print as
/// `None`, and with what was thought under each name that templates read.
fn tidy(message: &Map<String, Value>) -> Map<String, Value> {
    let present = message.iter().filter(|(_, value)| !value.is_null());
    let reasoning = REASONING_KEYS.iter().find_map(|key| message.get(*key).filter(|v| !v.is_null()));
    let mut tidied = Map::new();
    if let Some(reasoning) = reasoning {
        tidied.insert("thinking".to_owned(), reasoning.clone());
    }
    tidied.extend(present.map(|(key, value)| (key.clone(), value.clone())));
    if let Some(reasoning) = reasoning {
        tidied.insert(REASONING_KEYS[0].to_owned(), reasoning.clone());
    }
    tidied
}

/// What went wrong, in the words of the engine.
fn reason(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

fn render_error(file: &str, error: &minijinja::Error) -> ChatError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut innermost = error;
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref::<Raised>() {
            return ChatError::Refused { file: file.to_owned(), message: message.clone() };
        }
        if let Some(inner) = current.downcast_ref::<minijinja::Error>()
            && inner.kind() != ErrorKind::BadInclude
        {
            innermost = inner;
        }
        cause = current.source();
    }
    let line = innermost.line().or(error.line()).unwrap_or(0);
    ChatError::Render { file: file.to_owned(), line, reason: reason(innermost) }
}
