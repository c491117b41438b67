//! A grammar of an answer that has to call, or that has to have a form beside thoughts and calls.
//!
//! It is written in `llguidance`'s notation: a rule for each function, with its parameters' schema, between the tags of the
//! model's format. Tags that are tokens are named as such, so that no text can look like one.

use std::fmt::Write;

use serde_json::Value;

use super::asked::{Choice, Function, Offer};
use super::bare::is_string;
use super::{Format, coder, deepseek, glm, harmony, hermes, mistral, thoughts};
use crate::grammar::{self, Form, GrammarError, json_rule};

/// What an answer has to be.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct Shape<'a> {
    /// How the model writes calls.
    pub(in crate::api) format: Option<Format>,
    /// If it thinks: whether the prompt ends within thoughts.
    pub(in crate::api) thoughts: Option<bool>,
    /// What may or has to be called.
    pub(in crate::api) offer: Option<&'a Offer>,
    /// What the content has to be.
    pub(in crate::api) form: Option<&'a Form>,
}

impl Shape<'_> {
    /// Whether any text will do.
    pub(in crate::api) fn is_free(&self) -> bool {
        let is_free = |offer: &Offer| {
            offer.choice == Choice::Auto && offer.is_parallel && !offer.functions.iter().any(|f| f.is_strict)
        };
        self.form.is_none() && self.offer.is_none_or(is_free)
    }

    /// Whether the client has decided that something is called.
    pub(in crate::api) fn is_forced(&self) -> bool {
        self.offer.is_some_and(|offer| offer.choice == Choice::Required)
    }

    /// The form of the whole answer; `tag` is what stands for a tag in a grammar.
    pub(in crate::api) fn whole(&self, tag: &dyn Fn(&str) -> String) -> Result<Form, GrammarError> {
        let is_harmony = self.format == Some(Format::Harmony);
        let is_llama = self.format == Some(Format::Llama);
        let is_free_to_say = |offer: Option<&Offer>| offer.is_some_and(|offer| offer.choice == Choice::Auto);
        if let (Some(form), None, None, false) = (self.form, self.offer, self.thoughts, is_harmony) {
            return Ok(form.clone());
        }
        let mut rules = Rules { text: String::new(), tag };
        let before = if is_harmony { rules.analysis() } else { rules.thoughts(self.thoughts) };
        let content = match self.form {
            Some(Form::Schema(schema)) => {
                rules.rule("content", &json_rule(schema.clone())?);
                Some("content".to_owned())
            }
            Some(Form::Lark(_)) => unreachable!("clients give schemas"),
            // What begins like a call is one.
            None if is_free_to_say(self.offer) && is_llama => Some("PLAIN".to_owned()),
            None if is_free_to_say(self.offer) => Some("TEXT".to_owned()),
            None => None,
        };
        let content = match (content, is_harmony) {
            (Some(content), true) => {
                let (channel, message) = (tag(harmony::CHANNEL), tag(harmony::MESSAGE));
                Some(format!("{channel} \"final\" {message} {content}"))
            }
            (content, _) => content,
        };
        let calls = match (self.offer, self.format) {
            (Some(offer), Some(format)) => Some(rules.calls(format, offer)?),
            _ => None,
        };
        let start = match (content, calls) {
            // A model may say what it is about to call; a form leaves no room for that.
            (_, Some(calls)) if self.is_forced() => format!("{before} {calls}"),
            (Some(content), Some(calls)) if self.form.is_none() && !is_harmony && !is_llama => {
                format!("{before} ({content})? {calls} | {before} {content}")
            }
            (Some(content), Some(calls)) => format!("{before} {calls} | {before} {content}"),
            (Some(one), None) | (None, Some(one)) => format!("{before} {one}"),
            (None, None) => unreachable!("something is asked for"),
        };
        rules.rule("start", &start);
        rules.text.push_str("TEXT: /(.|\\n)+/\n");
        if is_llama {
            rules.text.push_str("PLAIN: /[^{\\s](.|\\n)*/\n");
        }
        Ok(Form::Lark(rules.text))
    }
}

struct Rules<'a> {
    text: String,
    tag: &'a dyn Fn(&str) -> String,
}

impl Rules<'_> {
    fn rule(&mut self, name: &str, what: &str) {
        writeln!(self.text, "{name}: {what}").expect("memory takes everything");
    }

    fn tag(&self, text: &str) -> String {
        (self.tag)(text)
    }

    /// What comes before an answer of a model that thinks.
    fn thoughts(&mut self, thoughts: Option<bool>) -> String {
        let Some(is_open) = thoughts else { return String::new() };
        let close = self.tag(thoughts::CLOSE);
        if is_token(&close) {
            self.rule("thinking", &format!("TEXT? {close} /\\n{{0,2}}/"));
        } else {
            self.rule("thinking[lazy]", "/(.|\\n)*<\\/think>\\n{0,2}/");
        }
        match is_open {
            true => "thinking".into(),
            false => format!("({} thinking)?", self.tag(thoughts::OPEN)),
        }
    }

    /// Thoughts in a channel of their own.
    fn analysis(&mut self) -> String {
        let [channel, message, end, start] =
            [harmony::CHANNEL, harmony::MESSAGE, harmony::END, harmony::START].map(|tag| self.tag(tag));
        self.rule("analysis", &format!("{channel} \"analysis\" {message} TEXT? {end} {start} \"assistant\""));
        "analysis?".into()
    }

    /// One call or several.
    fn calls(&mut self, format: Format, offer: &Offer) -> Result<String, GrammarError> {
        let mut calls = Vec::with_capacity(offer.functions.len());
        for (index, function) in offer.functions.iter().enumerate() {
            let arguments = format!("arguments_{index}");
            match format {
                Format::Coder | Format::Glm => self.parameters(format, &arguments, function)?,
                _ => {
                    let schema = json_rule(function.parameters.clone())?;
                    self.rule(&arguments, &schema);
                }
            }
            let call = self.call(format, &function.name, &arguments);
            self.rule(&format!("call_{index}"), &call);
            calls.push(format!("call_{index}"));
        }
        self.rule("call", &calls.join(" | "));
        let many = |between: &str| match offer.is_parallel {
            true => format!("call ({between} call)*"),
            false => "call".into(),
        };
        let calls = match format {
            Format::Hermes | Format::Coder | Format::Glm => many("\"\\n\""),
            // Its templates take one call of an answer and no more.
            Format::Llama => "call".into(),
            Format::Mistral { named: false } => {
                format!("{} \"[\" {} \"]\"", self.tag(mistral::CALLS), many("\", \""))
            }
            Format::Mistral { named: true } => many(""),
            Format::DeepSeek { fenced } => {
                let between = if fenced { "\"\\n\"" } else { "" };
                let (begin, end) = (self.tag(deepseek::CALLS_BEGIN), self.tag(deepseek::CALLS_END));
                format!("{begin} {} {end}", many(between))
            }
            // The end of a call is the end of the answer.
            Format::Harmony => "call".into(),
        };
        self.rule("calls", &calls);
        Ok("calls".into())
    }

    fn call(&self, format: Format, name: &str, arguments: &str) -> String {
        // Names have neither quotes nor line ends.
        let object = |before: &str, after: &str| {
            let key = if format == Format::Llama { "parameters" } else { "arguments" };
            let begin = Value::from(format!("{before}{{\"name\": \"{name}\", \"{key}\": "));
            format!("{begin} {arguments} {}", Value::from(format!("}}{after}")))
        };
        match format {
            Format::Hermes => {
                format!("{} {} {}", self.tag(hermes::OPEN), object("\n", "\n"), self.tag(hermes::CLOSE))
            }
            Format::Coder => {
                let (open, close) = (self.tag(hermes::OPEN), self.tag(hermes::CLOSE));
                let begin = Value::from(format!("\n{}{name}>\n", coder::FUNCTION));
                let end = Value::from(format!("{}\n", coder::FUNCTION_END));
                format!("{open} {begin} {arguments} {end} {close}")
            }
            Format::Glm => {
                let begin = Value::from(format!("{name}\n"));
                format!("{} {begin} {arguments} {}", self.tag(hermes::OPEN), self.tag(hermes::CLOSE))
            }
            Format::Mistral { named: false } | Format::Llama => object("", ""),
            Format::Mistral { named: true } => {
                format!(
                    "{} \"{name}\" {} {arguments}",
                    self.tag(mistral::CALLS),
                    self.tag(mistral::ARGUMENTS)
                )
            }
            Format::DeepSeek { fenced } => {
                let [begin, separator, end] =
                    [deepseek::CALL_BEGIN, deepseek::SEPARATOR, deepseek::CALL_END].map(|tag| self.tag(tag));
                match fenced {
                    true => {
                        let head = Value::from(format!("{name}\n```json\n"));
                        format!("{begin} \"function\" {separator} {head} {arguments} \"\\n```\" {end}")
                    }
                    false => format!("{begin} \"{name}\" {separator} {arguments} {end}"),
                }
            }
            Format::Harmony => {
                let [channel, constrain, message] =
                    [harmony::CHANNEL, harmony::CONSTRAIN, harmony::MESSAGE].map(|tag| self.tag(tag));
                format!(
                    "{channel} \"commentary to=functions.{name} \" {constrain} \"json\" {message} {arguments}"
                )
            }
        }
    }

    /// Bare values, one after the other, in the order of the schema.
    fn parameters(&mut self, format: Format, rule: &str, function: &Function) -> Result<(), GrammarError> {
        let schema = &function.parameters;
        let empty = serde_json::Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&empty);
        let required = |name: &str| {
            schema["required"].as_array().is_some_and(|names| names.iter().any(|other| other == name))
        };
        let mut all = Vec::new();
        for (index, (name, property)) in properties.iter().enumerate() {
            let (one, value) = (format!("{rule}_{index}"), format!("{rule}_{index}_value"));
            let (begin, end) = match format {
                Format::Glm => {
                    let [key, key_end, value, value_end] =
                        [glm::KEY, glm::KEY_END, glm::VALUE, glm::VALUE_END].map(|tag| self.tag(tag));
                    let name = Value::from(name.as_str());
                    (format!("{key} {name} {key_end} \"\\n\" {value}"), format!("{value_end} \"\\n\""))
                }
                _ => {
                    let begin = Value::from(format!("{}{name}>\n", coder::PARAMETER));
                    (begin.to_string(), Value::from(format!("\n{}\n", coder::PARAMETER_END)).to_string())
                }
            };
            match (is_string(property), property["enum"].as_array()) {
                (true, Some(some)) => {
                    let some: Vec<String> = some.iter().map(Value::to_string).collect();
                    self.rule(&one, &format!("{begin} ({}) {end}", some.join(" | ")));
                }
                (true, None) if format == Format::Glm && is_token(&self.tag(glm::VALUE_END)) => {
                    self.rule(&one, &format!("{begin} TEXT? {end}"));
                }
                (true, None) => {
                    let closed = match format {
                        Format::Glm => "/(.|\\n)*<\\/arg_value>\\n/",
                        _ => "/(.|\\n)*\\n<\\/parameter>\\n/",
                    };
                    self.rule(&format!("{value}[lazy]"), closed);
                    self.rule(&one, &format!("{begin} {value}"));
                }
                (false, _) => {
                    let mut property = property.clone();
                    for shared in ["$defs", "definitions"] {
                        if let (Some(inner), Some(definitions)) =
                            (property.as_object_mut(), schema.get(shared))
                        {
                            inner.insert(shared.into(), definitions.clone());
                        }
                    }
                    self.rule(&value, &json_rule(property)?);
                    self.rule(&one, &format!("{begin} {value} {end}"));
                }
            }
            all.push(if required(name) { one } else { format!("{one}?") });
        }
        let all = if all.is_empty() { "\"\"".to_owned() } else { all.join(" ") };
        self.rule(rule, &all);
        Ok(())
    }
}

/// Whether what stands for a tag is a token.
pub(in crate::api) fn is_token(tag: &str) -> bool {
    tag.starts_with("<[")
}

/// Whether an answer can be kept from calling, and from saying what looks like a call, by a grammar.
pub(in crate::api) fn opens_by_token(format: Format, tag: &dyn Fn(&str) -> String) -> bool {
    let opening = match format {
        // Text of it does not begin as a call does.
        Format::Llama => return true,
        Format::Hermes | Format::Coder | Format::Glm => hermes::OPEN,
        Format::Mistral { .. } => mistral::CALLS,
        Format::DeepSeek { .. } => deepseek::CALLS_BEGIN,
        Format::Harmony => harmony::CHANNEL,
    };
    is_token(&tag(opening))
}

/// Whether a schema of parameters alone can be kept to, to say which of several cannot.
pub(in crate::api) fn alone(function: &Function) -> Form {
    grammar::Form::Schema(function.parameters.clone())
}

#[cfg(test)]
mod tests {
    use model::sampler::{Sampling, SamplingFields};
    use model::text::{StopStream, Tokenizer};
    use serde_json::{Map, json};

    use super::super::{Part, Reader, THOUGHTS};
    use super::*;
    use crate::generation::{FinishReason, Generation, Request};
    use crate::grammar::{Grammars, tag_rule};

    const END: u32 = 256;

    /// A token for each byte, the end, and the tags.
    fn tokenizer(tags: &[&str]) -> Tokenizer {
        // GPT-2's letters: a byte that prints is itself, the others are from U+0100 on.
        let mut others = 0x100u32..;
        let mut letter = |byte: u32| match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte,
            _ => others.next().unwrap(),
        };
        let vocabulary: Map<String, Value> =
            (0..256).map(|byte| (char::from_u32(letter(byte)).unwrap().to_string(), byte.into())).collect();
        let added = |(id, content): (u32, &str)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let added: Vec<Value> = (END..).zip([&["<end>"], tags].concat()).map(added).collect();
        let json = json!({"version": "1.0", "added_tokens": added, "normalizer": null, "post_processor": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []}});
        Tokenizer::from_bytes("m", json.to_string().as_bytes(), None, None).unwrap()
    }

    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *state >> 33
    }

    /// The text of an answer to random logits that would rather end than go on.
    fn answer(tokenizer: &Tokenizer, form: Form, tags: &[&str], seed: u64) -> (String, FinishReason) {
        let count = tokenizer.vocabulary_size();
        let grammar = Grammars::new(tokenizer, count, &[END]).unwrap().compile(form).unwrap();
        let fields = SamplingFields { temperature: 1.0, seed, ..SamplingFields::default() };
        let request = Request {
            prompt: vec![65],
            sampling: Sampling::new(fields).unwrap(),
            tokens_max: 5000,
            end_ids: vec![END],
            logprobs: None,
            prompt_logprobs: false,
            experts: false,
            grammar: Some(grammar),
            bias: None,
        };
        let stop = StopStream::new(Vec::new()).unwrap();
        let mut answer = Generation::new(request, Some(tokenizer.stream_with(tags)), stop);
        let (mut state, mut text) = (seed, String::new());
        while answer.finish_reason().is_none() {
            let bonus = |id: usize| match u8::try_from(id) {
                Ok(b'"' | b'}' | b']' | b'\n' | b'<' | b'/') => 5.0,
                Ok(_) => 0.0,
                Err(_) => 6.0,
            };
            let logits: Vec<f32> =
                (0..count).map(|id| (next(&mut state) % 6000) as f32 / 1000.0 + bonus(id)).collect();
            text += &answer.handle_logits(&logits).unwrap().text;
        }
        (text, answer.finish_reason().unwrap())
    }

    fn offer(format: Format, choice: Choice, is_parallel: bool) -> Offer {
        // Random letters spell no tag that would end a bare text.
        let city = match format {
            Format::Coder | Format::Glm => json!({"enum": ["Bern", "Rom \"x\""]}),
            _ => json!({"type": "string", "maxLength": 12}),
        };
        let rain = json!({"type": "object", "properties": {"city": city,
            "days": {"$ref": "#/$defs/days"}}, "required": ["city", "days"], "additionalProperties": false,
            "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 7}}});
        let now = json!({"type": "object", "properties": {"zone": {"enum": ["utc", "local"]}},
            "additionalProperties": false});
        let function =
            |name: &str, parameters: Value| Function { name: name.into(), parameters, is_strict: true };
        let functions = vec![function("rain", rain), function("now", now)];
        Offer { tools: vec![Value::Null; 2], functions, choice, is_parallel }
    }

    /// Whether the arguments are what their function wants.
    fn is_valid(name: &str, arguments: &str) -> bool {
        let Ok(Value::Object(arguments)) = serde_json::from_str(arguments) else { return false };
        let is_known = |(key, value): (&String, &Value)| match (name, key.as_str()) {
            ("rain", "city") => value.is_string(),
            ("rain", "days") => value.as_u64().is_some_and(|days| (1..=7).contains(&days)),
            ("now", "zone") => value == "utc" || value == "local",
            _ => false,
        };
        arguments.iter().all(is_known) && (name == "now" || arguments.len() == 2)
    }

    const FORMATS: [Format; 9] = [
        Format::Hermes,
        Format::Coder,
        Format::Glm,
        Format::Llama,
        Format::Mistral { named: false },
        Format::Mistral { named: true },
        Format::DeepSeek { fenced: true },
        Format::DeepSeek { fenced: false },
        Format::Harmony,
    ];

    /// The calls of an answer, name and arguments, its content, and whether it has thoughts.
    fn read(shape: &Shape<'_>, text: &str) -> (Vec<(String, String)>, String, bool) {
        let functions = shape.offer.map_or(&[][..], |offer| &offer.functions);
        let mut reader = Reader::new(shape.format, functions, shape.thoughts);
        let (mut calls, mut content, mut has_thoughts) = (Vec::new(), String::new(), false);
        for part in reader.push(text).into_iter().chain(reader.finish()) {
            match part {
                Part::Content(text) => content += &text,
                Part::Reasoning(_) => has_thoughts = true,
                Part::Call(name) => calls.push((name, String::new())),
                Part::Arguments(text) => calls.last_mut().unwrap().1 += &text,
            }
        }
        (calls, content, has_thoughts)
    }

    /// Whatever the model would like to write, what is read back is a call of a function that is offered, with arguments
    /// that it takes; with tags as tokens and as text.
    #[test]
    fn a_forced_answer_calls_what_is_offered() {
        for (format, has_tags, seed) in FORMATS
            .iter()
            .flat_map(|format| [(*format, true), (*format, false)])
            .flat_map(|(f, t)| (0..12).map(move |s| (f, t, s)))
        {
            let tags = [format.tags(), &THOUGHTS[..]].concat();
            let tokenizer = tokenizer(if has_tags { &tags } else { &[] });
            let is_harmony = format == Format::Harmony;
            // Without tags that are tokens, channels are text that nothing ends.
            if is_harmony && !has_tags {
                continue;
            }
            let offer = offer(format, Choice::Required, seed % 2 == 0);
            // Random letters spell no tag that would end thoughts.
            let thoughts =
                [None, Some(true), Some(false)][seed as usize % 3].filter(|_| !is_harmony && has_tags);
            let shape = Shape { format: Some(format), thoughts, offer: Some(&offer), form: None };
            assert!(!shape.is_free() && shape.is_forced());
            let form = shape.whole(&|text| tag_rule(&tokenizer, text)).unwrap();
            let shown = format!("{format:?} {has_tags} {thoughts:?} {seed}");
            let (text, reason) = answer(&tokenizer, form, &tags, seed);
            assert_eq!(reason, FinishReason::Stop, "{shown}: {text}");
            let (calls, content, has_thoughts) = read(&shape, &text);
            assert!(!calls.is_empty() && content.is_empty(), "{shown}: {text} {calls:?}");
            assert!(offer.is_parallel || calls.len() == 1, "{shown}: {text}");
            assert!(calls.iter().all(|(name, arguments)| is_valid(name, arguments)), "{shown}: {calls:?}");
            assert!(thoughts.is_some() || is_harmony || !has_thoughts);
        }
    }

    /// A model that may choose says something, or calls, once where calls are not to be many; a form is the form of what it
    /// says, also behind thoughts and in a channel.
    #[test]
    fn a_free_choice_is_between_calls_and_content() {
        let (mut called, mut said) = (0, 0);
        for (format, seed) in FORMATS.iter().flat_map(|format| (0..16).map(move |seed| (*format, seed))) {
            let tags = [format.tags(), &THOUGHTS[..]].concat();
            let tokenizer = tokenizer(&tags);
            let offer = offer(format, Choice::Auto, false);
            let schema = Form::Schema(json!({"type": "array", "items": {"type": "boolean"}, "maxItems": 3}));
            let form = Some(&schema).filter(|_| seed % 2 == 0);
            let thoughts = [None, Some(false)][seed as usize / 2 % 2].filter(|_| format != Format::Harmony);
            let shape = Shape { format: Some(format), thoughts, offer: Some(&offer), form };
            assert!(!shape.is_free() && !shape.is_forced());
            let whole = shape.whole(&|text| tag_rule(&tokenizer, text)).unwrap();
            let (text, reason) = answer(&tokenizer, whole, &tags, seed);
            let (calls, content, _) = read(&shape, &text);
            let shown = format!("{format:?} {seed}: {text}");
            assert!(calls.len() <= 1, "{shown}");
            if reason == FinishReason::Stop {
                assert!(calls.iter().all(|(name, arguments)| is_valid(name, arguments)), "{shown}");
                if form.is_some() && calls.is_empty() {
                    let list: Vec<bool> = serde_json::from_str(&content).expect(&shown);
                    assert!(list.len() <= 3);
                }
                (called, said) = (called + calls.len(), said + usize::from(calls.is_empty()));
            }
        }
        assert!(called > 5 && said > 5, "{called} {said}");
    }
}
