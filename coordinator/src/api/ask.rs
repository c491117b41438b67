//! What a client asks for: the parameters of `/v1/completions` and `/v1/chat/completions`.
//!
//! Pure. Everything is checked here, before anything is computed; what cannot be done is refused by name and never
//! left out. Defaults are OpenAI's.

use std::collections::BTreeMap;
use std::time::Duration;

use model::sampler::{Sampling, SamplingError, SamplingFields};
use model::text::{STOP_COUNT_MAX, StopStream};

use super::answer::Form;
use super::chat::Conversation;
use super::fields::Fields;
use super::form;
use super::prompt::{CHOICES_TOTAL_MAX, Prompt};
use super::refusal::{Refusal, quote};
use super::resume::digest;
use crate::data::request::{OnMissing, Priority};
use crate::grammar;

/// Tokens of a completion where nobody says, as OpenAI has it; a chat may go on to the end of the context.
const TOKENS_MAX: u64 = 16;
/// The most choices of one request. Each is computed like a request of its own.
const CHOICES_MAX: u64 = 32;
/// The most likeliest tokens that are told of each. Each costs a search and some bytes per token.
const LOGPROBS_MAX: u64 = 20;
/// The most tokens with a bias. Each costs an addition per token.
const BIASES_MAX: usize = 1024;
/// How long an answer may take where nobody says.
const DEADLINE_MS: u64 = 600_000;
/// The longest deadline: a day.
const DEADLINE_MS_MAX: u64 = 86_400_000;

pub(super) const KNOWN_TEXT: &[&str] = &[
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
    "response_format",
    "stream",
    "stream_options",
    "phalanx",
];

pub(super) const KNOWN_CHAT: &[&str] = &[
    "model",
    "messages",
    "max_completion_tokens",
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
    "top_logprobs",
    "ignore_eos",
    "n",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "chat_template_kwargs",
    "stream",
    "stream_options",
    "phalanx",
];

pub(super) const KNOWN_PHALANX: &[&str] =
    &["deadline_ms", "on_missing", "priority", "return_token_ids", "return_experts", "tokens"];

/// What is asked for. All of it is valid but for what only the model knows: ids, lengths, its name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    pub(super) model: Option<String>,
    /// At least one; several are as many requests with one.
    pub(super) prompts: Vec<Prompt>,
    /// How many answers to each; the first is the answer of a request for one.
    pub(super) choices: usize,
    /// The text of an answer begins with that of its prompt, and what is told of its tokens too.
    pub(super) echo: bool,
    pub(super) sampling: Sampling,
    pub(super) tokens_max: usize,
    pub(super) stop: Vec<String>,
    pub(super) logprobs: Option<usize>,
    pub(super) form: Option<grammar::Form>,
    pub(super) ignore_eos: bool,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) deadline: Duration,
    pub(super) priority: Priority,
    pub(super) on_missing: OnMissing,
    pub(super) return_token_ids: bool,
    pub(super) return_experts: bool,
    /// The beginning of an answer that is to be gone on with.
    pub(super) tokens: Option<Vec<u32>>,
    /// Of all that decides over tokens and text but prompt and seed, as it was written.
    pub(super) parameters: [u8; 6],
}

/// What does not decide over the answer, or is looked at by itself.
const APART: [&str; 7] = ["model", "prompt", "messages", "seed", "stream", "stream_options", "phalanx"];

impl Asked {
    /// Reads a body. `seed` is for a client that names none.
    pub(super) fn read(form: Form, body: &[u8], seed: u64) -> Result<Self, Refusal> {
        let known = match form {
            Form::Text => KNOWN_TEXT,
            Form::Chat => KNOWN_CHAT,
        };
        let fields = Fields::read(utf8(body)?, "", known)?;
        refuse_unsupported(&fields)?;
        let choices = choices(&fields)?;
        let echo = form == Form::Text && flag(&fields, "echo")?;
        let (prompts, tokens_max, logprobs) = match form {
            Form::Text => {
                // Who hears the prompt may want nothing else.
                let tokens_max =
                    whole(&fields, "max_tokens", u64::from(!echo), u64::MAX)?.unwrap_or(TOKENS_MAX);
                (Prompt::listed(&fields)?, tokens_max, whole(&fields, "logprobs", 0, LOGPROBS_MAX)?)
            }
            Form::Chat => {
                let prompt = Prompt::Chat(Conversation::read(&fields)?);
                (vec![prompt], chat_tokens_max(&fields)?, chat_logprobs(&fields)?)
            }
        };
        let stop = stop(&fields)?;
        let (wanted, ignore_eos) = (form::read(&fields)?, flag(&fields, "ignore_eos")?);
        let total = prompts.len() * choices;
        if total > CHOICES_TOTAL_MAX {
            let message = format!(
                "`prompt` has {} prompts and `n` is {choices}: {total} answers, at most {CHOICES_TOTAL_MAX} are taken",
                prompts.len()
            );
            return Err(Refusal::value("prompt", message));
        }
        let offer = match prompts.as_slice() {
            [Prompt::Chat(conversation)] => conversation.offer(),
            _ => None,
        };
        if ignore_eos && (wanted.is_some() || offer.is_some()) {
            let message = "`ignore_eos` goes on after an answer has ended, and `response_format` or `tools` say where it \
                           ends; leave one of them out";
            return Err(Refusal::unsupported("ignore_eos", message));
        }
        let (stream, include_usage) = stream(&fields)?;
        let Extensions { deadline, priority, on_missing, return_token_ids, return_experts, tokens } =
            extensions(&fields)?;
        let of_one =
            [("phalanx.return_token_ids", return_token_ids), ("phalanx.return_experts", return_experts)];
        if let Some((name, _)) = of_one.iter().find(|(_, wanted)| *wanted && total > 1) {
            let message = format!("`{name}` is for one answer, and {total} are asked for; leave it out");
            return Err(Refusal::unsupported(name, message));
        }
        Ok(Self {
            model: fields.take("model", "a string")?,
            prompts,
            choices,
            echo,
            sampling: sampling(&fields, seed)?,
            tokens_max: tokens_max as usize,
            stop,
            logprobs: logprobs.map(|count| count as usize),
            form: wanted,
            ignore_eos,
            stream,
            include_usage,
            deadline,
            priority,
            on_missing,
            return_token_ids,
            return_experts,
            tokens,
            parameters: parameters(form, &fields),
        })
    }
}

fn parameters(form: Form, fields: &Fields<'_>) -> [u8; 6] {
    let mut named: Vec<_> = fields.all().filter(|(name, _)| !APART.contains(name)).collect();
    named.sort_unstable();
    let words = named.iter().flat_map(|(name, raw)| [name.as_bytes(), raw.as_bytes()]);
    digest(&[form.prefix().as_bytes()].into_iter().chain(words).collect::<Vec<_>>())
}

/// A body as text.
pub(super) fn utf8(body: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(body).map_err(|error| {
        let message = format!("the body is not UTF-8: {error}");
        Refusal::new(axum::http::StatusCode::BAD_REQUEST, "invalid_json", message)
    })
}

pub(super) fn flag(fields: &Fields<'_>, name: &str) -> Result<bool, Refusal> {
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
    if fields.raw("suffix").is_some() {
        return Err(Refusal::unsupported("suffix", "`suffix` is not supported; leave it out"));
    }
    Ok(())
}

fn choices(fields: &Fields<'_>) -> Result<usize, Refusal> {
    let count = whole(fields, "n", 1, CHOICES_MAX)?.unwrap_or(1);
    if let Some(best_of) = whole(fields, "best_of", 1, u64::MAX)?.filter(|best_of| *best_of != count) {
        let message = format!(
            "`best_of` is {best_of} and `n` is {count}; answers are not chosen among, so leave it out"
        );
        return Err(Refusal::unsupported("best_of", message));
    }
    Ok(count as usize)
}

/// Of both names of one thing, one or the same.
fn chat_tokens_max(fields: &Fields<'_>) -> Result<u64, Refusal> {
    const NAMES: [&str; 2] = ["max_completion_tokens", "max_tokens"];
    match NAMES.map(|name| whole(fields, name, 1, u64::MAX)) {
        [Ok(Some(new)), Ok(Some(old))] if new != old => {
            let message = format!(
                "`max_completion_tokens` is {new} and `max_tokens`, its former name, is {old}; send one of them"
            );
            Err(Refusal::value(NAMES[1], message))
        }
        [new, old] => Ok(new?.or(old?).unwrap_or(u64::MAX)),
    }
}

/// How many likeliest tokens are told of each position, if any is told.
fn chat_logprobs(fields: &Fields<'_>) -> Result<Option<u64>, Refusal> {
    let top = whole(fields, "top_logprobs", 0, LOGPROBS_MAX)?;
    match (flag(fields, "logprobs")?, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            Err(Refusal::value("top_logprobs", "`top_logprobs` needs `logprobs`: true; send it too"))
        }
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

/// What OpenAI does not have.
struct Extensions {
    deadline: Duration,
    priority: Priority,
    on_missing: OnMissing,
    return_token_ids: bool,
    return_experts: bool,
    tokens: Option<Vec<u32>>,
}

fn extensions(fields: &Fields<'_>) -> Result<Extensions, Refusal> {
    let fields = Fields::read(fields.raw("phalanx").unwrap_or("{}"), "phalanx.", KNOWN_PHALANX)?;
    let deadline = whole(&fields, "deadline_ms", 1, DEADLINE_MS_MAX)?.unwrap_or(DEADLINE_MS);
    const MANNERS: &str = "\"exact\" or \"drop\"";
    let on_missing = match fields.take::<String>("on_missing", MANNERS)?.as_deref() {
        None | Some("exact") => OnMissing::Exact,
        Some("drop") => OnMissing::Drop,
        Some(other) => {
            let message = format!(
                "`phalanx.on_missing` is \"{}\"; there are \"exact\": a missing expert is waited for, up to the deadline; \
                 and \"drop\": it is left out, and the answer says so",
                quote(other)
            );
            return Err(Refusal::unsupported("phalanx.on_missing", message));
        }
    };
    let expected = format!("a whole number from -{0} to {0}", Priority::MAX);
    let priority = match fields.take("priority", &expected)? {
        Some(priority) => Priority::new(priority).ok_or_else(|| fields.wrong("priority", &expected))?,
        None => Priority::default(),
    };
    Ok(Extensions {
        deadline: Duration::from_millis(deadline),
        priority,
        on_missing,
        return_token_ids: flag(&fields, "return_token_ids")?,
        return_experts: flag(&fields, "return_experts")?,
        tokens: fields.take("tokens", "a list of token ids")?,
    })
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
        Asked::read(Form::Text, json.as_bytes(), 5)
    }

    fn chat(more: &str) -> Result<Asked, Refusal> {
        let body = format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"x\"}}]{more}}}");
        Asked::read(Form::Chat, body.as_bytes(), 5)
    }

    /// A client written for OpenAI leaves out most and expects their defaults.
    #[test]
    fn defaults_are_those_of_openai() {
        let asked =
            read(r#"{"prompt": "x", "n": 1, "best_of": 1, "echo": false, "suffix": null, "stop": null}"#);
        let expected = Asked {
            model: None,
            prompts: vec![Prompt::text("x".into())],
            choices: 1,
            echo: false,
            sampling: Sampling::new(SamplingFields { temperature: 1.0, seed: 5, ..Default::default() })
                .unwrap(),
            tokens_max: 16,
            stop: Vec::new(),
            logprobs: None,
            form: None,
            ignore_eos: false,
            stream: false,
            include_usage: false,
            deadline: Duration::from_secs(600),
            priority: Priority::default(),
            on_missing: OnMissing::Exact,
            return_token_ids: false,
            return_experts: false,
            tokens: None,
            // Other values than none are parameters all the same.
            parameters: read(r#"{"prompt": "y", "suffix": null, "echo": false, "best_of": 1, "n": 1}"#)
                .unwrap()
                .parameters,
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
                "phalanx": {"deadline_ms": 250, "on_missing": "drop", "priority": -2, "return_token_ids": true,
                            "return_experts": true,                             "tokens": [9, 8]}}"#,
        );
        let asked = asked.unwrap();
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
            prompts: vec![Prompt::Ids(vec![1, 2])],
            sampling: Sampling::new(sampling).unwrap(),
            choices: 1,
            echo: false,
            tokens_max: 3,
            stop: vec!["a".into(), "b".into()],
            logprobs: Some(2),
            form: None,
            ignore_eos: true,
            stream: true,
            include_usage: true,
            deadline: Duration::from_millis(250),
            priority: Priority::new(-2).unwrap(),
            on_missing: OnMissing::Drop,
            return_token_ids: true,
            return_experts: true,
            tokens: Some(vec![9, 8]),
            parameters: asked.parameters,
        };
        assert_eq!(asked, expected);
    }

    #[test]
    fn prompts_may_be_listed() {
        let prompts = |json: &str| read(&format!("{{\"prompt\": {json}}}")).map(|asked| asked.prompts);
        let text = |text: &str| Prompt::text(text.into());
        assert_eq!(prompts(r#"["x"]"#).unwrap(), [text("x")]);
        assert_eq!(prompts(r#"["x", "y"]"#).unwrap(), [text("x"), text("y")]);
        assert_eq!(prompts("[ [1, 2], [3] ]").unwrap(), [Prompt::Ids(vec![1, 2]), Prompt::Ids(vec![3])]);
        assert_eq!(prompts("[1, 2]").unwrap(), [Prompt::Ids(vec![1, 2])]);
        assert_eq!(prompts("[]").unwrap(), [Prompt::Ids(vec![])], "the model says that it is empty");
        for wrong in
            ["1", "{}", "[-1]", "[1.5]", "[4294967296]", "[null]", "[[1], [\"x\"]]", "[\"x\", 1]", "[[1], 2]"]
        {
            assert_eq!(prompts(wrong).unwrap_err().param.as_deref(), Some("prompt"), "{wrong}");
        }
        let many = |count: usize, n: usize| {
            read(&format!("{{\"prompt\": [{}], \"n\": {n}}}", vec!["\"x\""; count].join(", ")))
        };
        assert_eq!(many(256, 1).unwrap().prompts.len(), 256);
        for (count, n) in [(257, 1), (100_000, 1), (128, 3)] {
            assert_eq!(many(count, n).unwrap_err().param.as_deref(), Some("prompt"));
        }
        let ids = read(r#"{"prompt": ["x", "y"], "phalanx": {"return_token_ids": true}}"#).unwrap_err();
        assert_eq!(ids.param.as_deref(), Some("phalanx.return_token_ids"));
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
            ("n", "33"),
            ("n", "0"),
            ("messages", "[]"),
            ("top_logprobs", "1"),
            ("best_of", "3"),
            ("echo", "1"),
            ("suffix", "\"x\""),
            ("stream", "\"yes\""),
            ("stream_options", "{}"),
            ("phalanx", "1"),
            ("phalanx.deadline_ms", "0"),
            ("phalanx.deadline_ms", "1e9"),
            ("phalanx.on_missing", "\"skip\""),
            ("phalanx.on_missing", "true"),
            ("phalanx.priority", "4"),
            ("phalanx.priority", "-4"),
            ("phalanx.priority", "0.5"),
            ("phalanx.priority", "\"high\""),
            ("phalanx.tokens", "[-1]"),
            ("phalanx.tokens", "\"x\""),
            ("phalanx.return_token_ids", "0"),
            ("phalanx.return_experts", "[]"),
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
        let none = |more: &str| {
            read(&format!("{{\"prompt\": \"x\", \"max_tokens\": 0{more}}}")).map(|asked| asked.tokens_max)
        };
        assert_eq!(none(", \"echo\": false").unwrap_err().param.as_deref(), Some("max_tokens"));
        assert_eq!(none(", \"echo\": true").unwrap(), 0, "the prompt alone");
        assert_eq!(none(", \"echo\": true, \"logprobs\": 0").unwrap(), 0);
        assert!(Asked::read(Form::Text, b"{\"prompt\": \"\xff\"}", 0).unwrap_err().message.contains("UTF-8"));
    }

    /// A chat's own: names and defaults are OpenAI's.
    #[test]
    fn a_chat_has_parameters_of_its_own() {
        let asked = chat("").unwrap();
        assert_eq!((asked.tokens_max, asked.logprobs, asked.choices), (usize::MAX, None, 1));
        let asked =
            chat(", \"logprobs\": true, \"n\": 3, \"max_completion_tokens\": 7, \"max_tokens\": 7").unwrap();
        assert_eq!((asked.tokens_max, asked.logprobs, asked.choices), (7, Some(0), 3));
        let asked = chat(
            ", \"logprobs\": true, \"top_logprobs\": 4, \"max_tokens\": 9, \"response_format\": {\"type\": \"text\"}",
        );
        let asked = asked.unwrap();
        assert_eq!((asked.tokens_max, asked.logprobs), (9, Some(4)));
        for (param, more) in [
            ("prompt", "\"prompt\": \"x\""),
            ("logprobs", "\"logprobs\": 3"),
            ("top_logprobs", "\"top_logprobs\": 3"),
            ("top_logprobs", "\"logprobs\": true, \"top_logprobs\": 21"),
            ("max_tokens", "\"max_tokens\": 0"),
            ("max_tokens", "\"max_tokens\": 1, \"max_completion_tokens\": 2"),
            ("max_completion_tokens", "\"max_completion_tokens\": -1"),
            ("response_format.type", "\"response_format\": {\"type\": \"xml\"}"),
            ("ignore_eos", "\"ignore_eos\": true, \"response_format\": {\"type\": \"json_object\"}"),
            ("response_format", "\"response_format\": 1"),
            ("response_format.kind", "\"response_format\": {\"kind\": 1}"),
            ("best_of", "\"best_of\": 1"),
            ("echo", "\"echo\": false"),
            ("functions", "\"functions\": []"),
            ("phalanx.return_token_ids", "\"n\": 2, \"phalanx\": {\"return_token_ids\": true}"),
            ("phalanx.return_experts", "\"n\": 2, \"phalanx\": {\"return_experts\": true}"),
        ] {
            let refusal = chat(&format!(", {more}")).expect_err(more);
            assert_eq!((refusal.param.as_deref(), refusal.status.as_u16()), (Some(param), 400), "{more}");
        }
    }
}
