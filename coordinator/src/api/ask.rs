//! What a client asks for: the parameters of `/v1/completions`.
//!
//! Pure. Everything is checked here, before anything is computed; what cannot be done is refused by name and never
//! left out. Defaults are OpenAI's.

use std::collections::BTreeMap;
use std::time::Duration;

use model::sampler::{Sampling, SamplingError, SamplingFields};
use model::text::{STOP_COUNT_MAX, StopStream};

use super::fields::Fields;
use super::refusal::{Refusal, quote};

/// Tokens of an answer where nobody says, as OpenAI has it.
const TOKENS_MAX: u64 = 16;
/// The most likeliest tokens that are told of each. Each costs a search and some bytes per token.
const LOGPROBS_MAX: u64 = 20;
/// The most tokens with a bias. Each costs an addition per token.
const BIASES_MAX: usize = 1024;
/// How long an answer may take where nobody says.
const DEADLINE_MS: u64 = 600_000;
/// The longest deadline: a day.
const DEADLINE_MS_MAX: u64 = 86_400_000;

const KNOWN: &[&str] = &[
    "model",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "logprobs",
    "ignore_eos",
    "n",
    "best_of",
    "echo",
    "suffix",
    "stream",
    "stream_options",
    "phalanx",
];

/// A prompt.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Prompt {
    /// Still to be made ids.
    Text(String),
    /// Ids.
    Ids(Vec<u32>),
}

/// What is asked for. All of it is valid but for what only the model knows: ids, lengths, its name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    pub(super) model: Option<String>,
    pub(super) prompt: Prompt,
    pub(super) sampling: Sampling,
    pub(super) tokens_max: usize,
    pub(super) stop: Vec<String>,
    pub(super) logprobs: Option<usize>,
    pub(super) ignore_eos: bool,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) deadline: Duration,
    pub(super) return_token_ids: bool,
}

impl Asked {
    /// Reads a body. `seed` is for a client that names none.
    pub(super) fn read(body: &[u8], seed: u64) -> Result<Self, Refusal> {
        let body = std::str::from_utf8(body).map_err(|error| {
            let message = format!("the body is not UTF-8: {error}");
            Refusal::new(axum::http::StatusCode::BAD_REQUEST, "invalid_json", message)
        })?;
        let fields = Fields::read(body, "", KNOWN)?;
        refuse_unsupported(&fields)?;
        let stop = stop(&fields)?;
        let (stream, include_usage) = stream(&fields)?;
        let (deadline, return_token_ids) = extensions(&fields)?;
        Ok(Self {
            model: fields.take("model", "a string")?,
            prompt: prompt(&fields)?,
            sampling: sampling(&fields, seed)?,
            tokens_max: whole(&fields, "max_tokens", 1, u64::MAX)?.unwrap_or(TOKENS_MAX) as usize,
            stop,
            logprobs: whole(&fields, "logprobs", 0, LOGPROBS_MAX)?.map(|count| count as usize),
            ignore_eos: flag(&fields, "ignore_eos")?,
            stream,
            include_usage,
            deadline,
            return_token_ids,
        })
    }
}

fn flag(fields: &Fields<'_>, name: &str) -> Result<bool, Refusal> {
    Ok(fields.take(name, "true or false")?.unwrap_or(false))
}

fn number(fields: &Fields<'_>, name: &str, default: f64) -> Result<f64, Refusal> {
    Ok(fields.take(name, "a number")?.unwrap_or(default))
}

fn whole(fields: &Fields<'_>, name: &str, least: u64, most: u64) -> Result<Option<u64>, Refusal> {
    let expected = match most {
        u64::MAX => format!("a whole number of at least {least}"),
        most => format!("a whole number from {least} to {most}"),
    };
    match fields.take(name, &expected)? {
        Some(value) if !(least..=most).contains(&value) => Err(fields.wrong(name, &expected)),
        value => Ok(value),
    }
}

/// Parameters that OpenAI's clients may send, and of which only the value that asks for nothing can be taken.
fn refuse_unsupported(fields: &Fields<'_>) -> Result<(), Refusal> {
    for name in ["n", "best_of"] {
        if let Some(count) = whole(fields, name, 1, u64::MAX)?.filter(|count| *count != 1) {
            let message =
                format!("`{name}` is {count}; one answer per request is given, so send as many requests");
            return Err(Refusal::unsupported(name, message));
        }
    }
    if flag(fields, "echo")? {
        return Err(Refusal::unsupported("echo", "`echo` is not supported; the prompt is what was sent"));
    }
    match fields.raw("suffix") {
        Some(_) => Err(Refusal::unsupported("suffix", "`suffix` is not supported; leave it out")),
        None => Ok(()),
    }
}

/// A list of which only the first is taken.
struct One<T> {
    first: Option<T>,
    is_several: bool,
}

impl<'de, T: serde::Deserialize<'de>> serde::Deserialize<'de> for One<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T>(std::marker::PhantomData<T>);
        impl<'de, T: serde::Deserialize<'de>> serde::de::Visitor<'de> for List<T> {
            type Value = One<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<One<T>, A::Error> {
                let first = list.next_element()?;
                let mut is_several = false;
                while list.next_element::<serde::de::IgnoredAny>()?.is_some() {
                    is_several = true;
                }
                Ok(One { first, is_several })
            }
        }
        deserializer.deserialize_seq(List(std::marker::PhantomData))
    }
}

/// A text, ids, or a list of one of these.
fn prompt(fields: &Fields<'_>) -> Result<Prompt, Refusal> {
    const EXPECTED: &str = "a string or a list of token ids";
    let Some(raw) = fields.raw("prompt") else {
        return Err(Refusal::value("prompt", "`prompt` is missing: give a string or a list of token ids"));
    };
    // The first element says of what it is a list.
    let inner = raw.strip_prefix('[').map(|list| list.trim_start().chars().next());
    let listed = match inner {
        None => return Ok(Prompt::Text(fields.take("prompt", EXPECTED)?.unwrap_or_default())),
        Some(Some('"')) => {
            let One { first, is_several } = take::<One<String>>(fields)?;
            One { first: first.map(Prompt::Text), is_several }
        }
        Some(Some('[')) => {
            let One { first, is_several } = take::<One<Vec<u32>>>(fields)?;
            One { first: first.map(Prompt::Ids), is_several }
        }
        Some(_) => return take(fields).map(Prompt::Ids),
    };
    return match listed {
        One { first: Some(prompt), is_several: false } => Ok(prompt),
        One { is_several: true, .. } => Err(Refusal::unsupported(
            "prompt",
            "`prompt` is a list of several prompts; one prompt per request is taken, so send as many requests",
        )),
        One { first: None, .. } => Err(fields.wrong("prompt", EXPECTED)),
    };

    fn take<'a, T: serde::Deserialize<'a>>(fields: &Fields<'a>) -> Result<T, Refusal> {
        fields.take("prompt", EXPECTED)?.ok_or_else(|| fields.wrong("prompt", EXPECTED))
    }
}

fn stop(fields: &Fields<'_>) -> Result<Vec<String>, Refusal> {
    let expected = format!("a string or a list of at most {STOP_COUNT_MAX} strings");
    let stop = match fields.raw("stop") {
        Some(raw) if raw.starts_with('"') => fields.take("stop", &expected)?.map(|stop| vec![stop]),
        _ => fields.take::<Vec<String>>("stop", &expected)?,
    };
    let stop = stop.unwrap_or_default();
    match StopStream::new(stop.clone()) {
        Ok(_) => Ok(stop),
        Err(error) => Err(Refusal::value("stop", error.to_string())),
    }
}

fn stream(fields: &Fields<'_>) -> Result<(bool, bool), Refusal> {
    let stream = flag(fields, "stream")?;
    let Some(options) = fields.raw("stream_options") else { return Ok((stream, false)) };
    if !stream {
        return Err(Refusal::value(
            "stream_options",
            "`stream_options` is for streams; send `stream`: true too",
        ));
    }
    let options = Fields::read(options, "stream_options.", &["include_usage"])?;
    Ok((stream, flag(&options, "include_usage")?))
}

fn extensions(fields: &Fields<'_>) -> Result<(Duration, bool), Refusal> {
    let none = (Duration::from_millis(DEADLINE_MS), false);
    let Some(raw) = fields.raw("phalanx") else { return Ok(none) };
    let fields = Fields::read(raw, "phalanx.", &["deadline_ms", "on_missing", "return_token_ids"])?;
    let deadline = whole(&fields, "deadline_ms", 1, DEADLINE_MS_MAX)?.unwrap_or(DEADLINE_MS);
    let on_missing: Option<String> = fields.take("on_missing", "\"exact\"")?;
    match on_missing.as_deref() {
        None | Some("exact") => {}
        Some(other) => {
            let message = format!(
                "`phalanx.on_missing` is \"{}\"; only \"exact\" is supported: a missing expert is waited for, up \
                 to the deadline",
                quote(other)
            );
            return Err(Refusal::unsupported("phalanx.on_missing", message));
        }
    }
    Ok((Duration::from_millis(deadline), flag(&fields, "return_token_ids")?))
}

fn sampling(fields: &Fields<'_>, seed: u64) -> Result<Sampling, Refusal> {
    const SEED: &str = "a whole number of 64 bits";
    let seed = match fields.raw("seed") {
        // OpenAI's seeds have a sign; it is one bit of the seed.
        Some(raw) if raw.starts_with('-') => fields.take::<i64>("seed", SEED)?.map(|seed| seed as u64),
        _ => fields.take("seed", SEED)?,
    }
    .unwrap_or(seed);
    let top_k = whole(fields, "top_k", 0, u64::from(u32::MAX))?.unwrap_or(0) as u32;
    let logit_bias = fields
        .take::<BTreeMap<u32, f64>>("logit_bias", "an object of token ids and numbers")?
        .unwrap_or_default();
    if logit_bias.len() > BIASES_MAX {
        let message =
            format!("`logit_bias` names {} tokens, at most {BIASES_MAX} are taken", logit_bias.len());
        return Err(Refusal::value("logit_bias", message));
    }
    Sampling::new(SamplingFields {
        temperature: number(fields, "temperature", 1.0)?,
        top_p: number(fields, "top_p", 1.0)?,
        top_k,
        min_p: number(fields, "min_p", 0.0)?,
        repetition_penalty: number(fields, "repetition_penalty", 1.0)?,
        presence_penalty: number(fields, "presence_penalty", 0.0)?,
        frequency_penalty: number(fields, "frequency_penalty", 0.0)?,
        logit_bias: logit_bias.into_iter().collect(),
        seed,
    })
    .map_err(|error| match &error {
        SamplingError::Field { field, .. } => Refusal::value(field, error.to_string()),
        other => Refusal::value("temperature", other.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Asked, Refusal> {
        Asked::read(json.as_bytes(), 5)
    }

    /// A client written for OpenAI leaves out most and expects their defaults.
    #[test]
    fn defaults_are_those_of_openai() {
        let asked =
            read(r#"{"prompt": "x", "n": 1, "best_of": 1, "echo": false, "suffix": null, "stop": null}"#);
        let expected = Asked {
            model: None,
            prompt: Prompt::Text("x".into()),
            sampling: Sampling::new(SamplingFields { temperature: 1.0, seed: 5, ..Default::default() })
                .unwrap(),
            tokens_max: 16,
            stop: Vec::new(),
            logprobs: None,
            ignore_eos: false,
            stream: false,
            include_usage: false,
            deadline: Duration::from_secs(600),
            return_token_ids: false,
        };
        assert_eq!(asked.unwrap(), expected);
    }

    #[test]
    fn every_parameter_arrives() {
        let asked = read(
            r#"{"model": "m", "prompt": [1, 2], "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 4,
                "min_p": 0.1, "seed": -1, "stop": ["a", "b"], "presence_penalty": 1, "frequency_penalty": -1,
                "repetition_penalty": 1.1, "logit_bias": {"7": -100, "3": 2.5}, "logprobs": 2, "ignore_eos": true,
                "stream": true, "stream_options": {"include_usage": true},
                "phalanx": {"deadline_ms": 250, "on_missing": "exact", "return_token_ids": true}}"#,
        );
        let sampling = SamplingFields {
            temperature: 0.5,
            top_p: 0.9,
            top_k: 4,
            min_p: 0.1,
            repetition_penalty: 1.1,
            presence_penalty: 1.0,
            frequency_penalty: -1.0,
            logit_bias: vec![(3, 2.5), (7, -100.0)],
            seed: u64::MAX,
        };
        let expected = Asked {
            model: Some("m".into()),
            prompt: Prompt::Ids(vec![1, 2]),
            sampling: Sampling::new(sampling).unwrap(),
            tokens_max: 3,
            stop: vec!["a".into(), "b".into()],
            logprobs: Some(2),
            ignore_eos: true,
            stream: true,
            include_usage: true,
            deadline: Duration::from_millis(250),
            return_token_ids: true,
        };
        assert_eq!(asked.unwrap(), expected);
    }

    #[test]
    fn a_prompt_may_be_alone_in_a_list() {
        let prompt = |json: &str| read(&format!("{{\"prompt\": {json}}}")).map(|asked| asked.prompt);
        assert_eq!(prompt(r#"["x"]"#).unwrap(), Prompt::Text("x".into()));
        assert_eq!(prompt("[ [1, 2] ]").unwrap(), Prompt::Ids(vec![1, 2]));
        assert_eq!(prompt("[]").unwrap(), Prompt::Ids(vec![]), "the model says that it is empty");
        for several in [r#"["x", "y"]"#, "[[1], [2]]", r#"["x", 1]"#] {
            let refusal = prompt(several).unwrap_err();
            assert_eq!((refusal.param.as_deref(), refusal.code), (Some("prompt"), "unsupported_parameter"));
        }
        for wrong in ["1", "{}", "[-1]", "[1.5]", "[4294967296]", "[null]", "[[1], [\"x\"]"] {
            assert!(prompt(wrong).is_err(), "{wrong}");
        }
    }

    /// Each of these must be refused, and name what is to be changed.
    #[test]
    fn what_is_wrong_is_named() {
        for (param, value) in [
            ("model", "7"),
            ("max_tokens", "0"),
            ("max_tokens", "-1"),
            ("max_tokens", "1.5"),
            ("max_tokens", "1e99"),
            ("max_tokens", "\"7\""),
            ("temperature", "\"hot\""),
            ("temperature", "-0.1"),
            ("temperature", "1e400"),
            ("temperature", "NaN"),
            ("top_p", "0"),
            ("top_k", "-1"),
            ("min_p", "2"),
            ("seed", "0.5"),
            ("seed", "99999999999999999999"),
            ("stop", "[\"\"]"),
            ("stop", "[1]"),
            ("stop", "7"),
            ("presence_penalty", "3"),
            ("frequency_penalty", "[]"),
            ("repetition_penalty", "0"),
            ("logit_bias", "{\"x\": 1}"),
            ("logit_bias", "{\"1\": 101}"),
            ("logit_bias", "[]"),
            ("logprobs", "21"),
            ("logprobs", "true"),
            ("ignore_eos", "1"),
            ("n", "2"),
            ("n", "0"),
            ("best_of", "3"),
            ("echo", "true"),
            ("suffix", "\"x\""),
            ("stream", "\"yes\""),
            ("stream_options", "{}"),
            ("phalanx", "1"),
            ("phalanx.deadline_ms", "0"),
            ("phalanx.deadline_ms", "1e9"),
            ("phalanx.on_missing", "\"drop\""),
            ("phalanx.return_token_ids", "0"),
            ("phalanx.colour", "0"),
            ("tools", "[]"),
            ("user", "\"me\""),
        ] {
            let body = match param.strip_prefix("phalanx.") {
                Some(inner) => format!("{{\"prompt\": \"x\", \"phalanx\": {{\"{inner}\": {value}}}}}"),
                None => format!("{{\"prompt\": \"x\", \"{param}\": {value}}}"),
            };
            let refusal = read(&body).expect_err(&body);
            if value != "NaN" {
                assert_eq!(refusal.param.as_deref(), Some(param), "{body}: {}", refusal.message);
                assert!(refusal.message.contains(param.rsplit('.').next().unwrap()), "{}", refusal.message);
            }
            assert_eq!(refusal.status.as_u16(), 400);
        }
        assert!(read("{}").unwrap_err().message.contains("`prompt` is missing"));
        assert!(Asked::read(b"{\"prompt\": \"\xff\"}", 0).unwrap_err().message.contains("UTF-8"));
    }
}
