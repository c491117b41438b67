//! `phalanx generate --cluster`: the same command, answered by a cluster.
//!
//! A client of `/v1/completions` like any other. What it prints has the shape of what `generate` prints, so that the two
//! can be compared with diff.

use std::time::Instant;

use model::load;
use serde_json::{Value, json};

use crate::Failure;
use crate::generate::{Generate, Timing, Told, chat_ids};
use crate::output::show;
use crate::remote::{ClusterUrl, Remote, Served};
use crate::session;

/// An answer as it comes.
#[derive(Default)]
struct Coming {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text: String,
    finish_reason: Option<String>,
    bias: Option<String>,
    first: Option<Instant>,
}

pub(crate) fn run(command: &Generate, url: &ClusterUrl) -> Result<(), Failure> {
    let start = Instant::now();
    let remote = Remote::new(url, &command.access)?;
    let served = remote.wait_until_served(command.wait)?;
    let body = body(command, &served, url)?;
    let asked = Instant::now();
    let mut coming = Coming::default();
    let result = remote.stream("/v1/completions", &body, |event| {
        let piece = coming.take(event)?;
        match (command.json, served.has_tokenizer) {
            (true, _) => Ok(()),
            (false, true) => show(&piece.text),
            (false, false) => show(&piece.ids.iter().map(|id| format!("{id} ")).collect::<String>()),
        }
    });
    let result = result.and_then(|()| match coming.finish_reason {
        Some(_) => Ok(()),
        None => Err(format!("{url} ended its answer without a reason; ask again").into()),
    });
    if let Err(failure) = result {
        if !command.json && coming.first.is_some() {
            show("\n")?;
        }
        return Err(match coming.tokens.len() {
            0 => failure,
            count => format!("after {count} tokens: {failure}").into(),
        });
    }
    let prefill = coming.first.unwrap_or(asked) - asked;
    let timing = Timing { load: asked - start, prefill, decode: asked.elapsed() - prefill };
    match command.json {
        false => show("\n"),
        true => show(&format!("{:#}\n", coming.told(&served).json(&timing, command.top_logprobs > 0))),
    }
}

/// What is asked of the cluster. Everything is named, since its defaults are OpenAI's and not the command line's.
fn body(command: &Generate, served: &Served, url: &ClusterUrl) -> Result<Value, Failure> {
    let sampling = command.sampling()?;
    let fields = sampling.fields();
    Ok(json!({
        "model": served.model,
        "prompt": prompt(command, served, url)?,
        "max_tokens": command.tokens_max(served.max_new_tokens)?,
        "temperature": fields.temperature,
        "top_p": fields.top_p,
        "top_k": fields.top_k,
        "min_p": fields.min_p,
        "seed": fields.seed,
        "stop": command.stop,
        "repetition_penalty": fields.repetition_penalty,
        "presence_penalty": fields.presence_penalty,
        "frequency_penalty": fields.frequency_penalty,
        "ignore_eos": command.ignore_eos,
        "logprobs": command.json.then_some(command.top_logprobs),
        "stream": true,
        "phalanx": { "return_token_ids": true },
    }))
}

fn prompt(command: &Generate, served: &Served, url: &ClusterUrl) -> Result<Value, Failure> {
    let model = command.model.model.as_deref();
    let digest = match model {
        Some(dir) => Some(load::read_spec(dir)?.1),
        // The demo model is at hand without being named.
        None if command.chat.is_some() => Some(session::open(None)?.config_digest),
        None => None,
    };
    if digest.is_some_and(|digest| digest.to_string() != served.config_digest) {
        return Err(match model {
            Some(dir) => format!(
                "{} is not the model that {url} serves ({}): their config.json differ; give that model's folder",
                dir.display(),
                served.model
            ),
            None => format!(
                "{url} serves {}, whose chat template is not at hand; give its folder with --model, or use --prompt",
                served.model
            ),
        }
        .into());
    }
    if let Some(chat) = &command.chat {
        return Ok(json!(chat_ids(&session::texts(model)?, command.system.as_deref(), chat)?));
    }
    Ok(match (&command.prompt, &command.tokens) {
        (Some(text), _) => json!(text),
        (None, tokens) => json!(tokens.as_ref().map(|tokens| tokens.0.as_slice()).unwrap_or_default()),
    })
}

/// What a chunk brought.
struct Piece {
    text: String,
    ids: Vec<u32>,
}

impl Coming {
    /// Takes a chunk.
    fn take(&mut self, event: &str) -> Result<Piece, Failure> {
        let strange =
            || -> Failure { format!("the coordinator sent what is no answer: {event:.200}").into() };
        let mut chunk: Value = serde_json::from_str(event).map_err(|_| strange())?;
        if let Some(message) = chunk["error"]["message"].as_str() {
            return Err(message.into());
        }
        let list = |value: &mut Value| match value.take() {
            Value::Array(list) => list,
            _ => Vec::new(),
        };
        let ids = |value: &mut Value| -> Option<Vec<u32>> {
            list(value).iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
        };
        let extension = &mut chunk["phalanx"];
        let tokens = ids(&mut extension["token_ids"]).ok_or_else(strange)?;
        self.prompt.extend(ids(&mut extension["prompt_token_ids"]).ok_or_else(strange)?);
        self.top_logprobs.extend(list(&mut extension["top_logprobs"]));
        self.bias = extension["bias"].as_str().map(str::to_owned).or(self.bias.take());
        let choice = &mut chunk["choices"][0];
        self.logprobs.extend(list(&mut choice["logprobs"]["token_logprobs"]));
        self.finish_reason =
            choice["finish_reason"].as_str().map(str::to_owned).or(self.finish_reason.take());
        let Value::String(text) = choice["text"].take() else { return Err(strange()) };
        self.first.get_or_insert_with(Instant::now);
        self.tokens.extend(&tokens);
        self.text += &text;
        Ok(Piece { text, ids: tokens })
    }

    fn told(self, served: &Served) -> Told {
        Told {
            prompt: self.prompt,
            tokens: self.tokens,
            text: self.text,
            logprobs: self.logprobs,
            top_logprobs: self.top_logprobs,
            finish_reason: self.finish_reason,
            numeric_class: served.numeric_class.clone(),
            shards: served.shards,
            bias: self.bias,
        }
    }
}
