//! `phalanx generate`: one answer, streamed. Here it is computed in this process; `generate_remote` asks a cluster.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{ArgGroup, Args};
use coordinator::generation::{FinishReason, Generation, Request, Token};
use coordinator::texts::Texts;
use model::bias::Bias;
use model::kv::Sequence;
use model::plain::{StepError, Unobserved, check_context, check_tokens};
use model::sampler::{Sampling, SamplingFields};
use model::text::{ChatInput, StopStream, WallTime};
use serde_json::{Value, json};

use crate::access::Access;
use crate::arguments::{ModelArguments, Tokens, seconds, token_ids};
use crate::output::show;
use crate::remote::{ClusterUrl, cluster_url};
use crate::session::{self, Session};
use crate::{Failure, generate_remote};

/// Tokens of an answer where neither the command line nor the model says.
const TOKENS_MAX: usize = 256;

/// Continue a prompt or answer a chat message, in one process or by a cluster.
///
/// Examples:
///   phalanx generate --chat 'sort 7315='
///   phalanx generate --model DIR --prompt 'Once upon a time' --temperature 0.8 --seed 7
///   phalanx generate --model DIR --tokens 5,17,3 --max-tokens 32 --ignore-eos --json
///   phalanx generate --cluster http://127.0.0.1:8080 --prompt 'Once upon a time'
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, group = ArgGroup::new("input").required(true))]
pub(crate) struct Generate {
    #[command(flatten)]
    pub(crate) model: ModelArguments,

    /// Let a cluster answer: the URL of a coordinator, as its --http has it. The answer is the same. With
    /// --chat it needs the served model's folder (--model), unless that is the demo model.
    #[arg(long, value_name = "URL", value_parser = cluster_url,
          conflicts_with_all = ["numeric_class", "kernel_path", "threads", "cores", "shards", "kv_memory"])]
    pub(crate) cluster: Option<ClusterUrl>,

    #[command(flatten)]
    pub(crate) access: Access,

    /// With --cluster: how many seconds to wait for a cluster that is still loading.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds, requires = "cluster")]
    pub(crate) wait: Duration,

    /// Text to continue.
    #[arg(long, group = "input", value_name = "TEXT")]
    pub(crate) prompt: Option<String>,

    /// A user's message, put into the model's chat template.
    #[arg(long, group = "input", value_name = "TEXT")]
    pub(crate) chat: Option<String>,

    /// Token ids to continue, instead of text: no tokenizer is needed.
    #[arg(long, group = "input", value_name = "IDS", value_parser = token_ids)]
    pub(crate) tokens: Option<Tokens>,

    /// A system message before the user's.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,

    /// Most tokens of the answer. Default: the model's own (generation_config.json), or 256.
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,

    /// 0 takes the likeliest token, 1 draws as the model thinks, above 1 is flatter.
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) temperature: f64,

    /// Draw only from the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub(crate) top_p: f64,

    /// Draw only from so many of the likeliest tokens; 0 is all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) top_k: u32,

    /// Draw only from tokens at least this likely, relative to the likeliest.
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) min_p: f64,

    /// Which of the possible answers: same seed, same answer.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,

    /// End the answer before this text. Can be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,

    /// Above 1: tokens that have been used, in prompt or answer, become less likely.
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    pub(crate) repetition_penalty: f64,

    /// Above 0: tokens that are in the answer become less likely.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) presence_penalty: f64,

    /// Above 0: tokens become less likely each time they are used in the answer.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) frequency_penalty: f64,

    /// Go on after the model's end token.
    #[arg(long)]
    pub(crate) ignore_eos: bool,

    /// Choose experts under this selection bias, as a cluster with --balance bias does: the file that the coordinator's
    /// /bias/DIGEST shows, where DIGEST is `phalanx.bias` of an answer. The same bias, prompt and seed give the same answer.
    #[arg(long, value_name = "FILE", conflicts_with = "cluster")]
    pub(crate) bias: Option<PathBuf>,

    /// With --json: the likeliest alternatives of each token.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "json")]
    pub(crate) top_logprobs: usize,

    /// One JSON object at the end instead of streamed text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// How long what took.
pub(crate) struct Timing {
    pub(crate) load: Duration,
    pub(crate) prefill: Duration,
    pub(crate) decode: Duration,
}

/// An answer that is complete, whoever gave it.
pub(crate) struct Told {
    pub(crate) prompt: Vec<u32>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) text: String,
    pub(crate) logprobs: Vec<Value>,
    pub(crate) top_logprobs: Vec<Value>,
    pub(crate) finish_reason: Option<String>,
    pub(crate) numeric_class: String,
    /// Shards of every expert.
    pub(crate) shards: usize,
    /// The digest of the bias under which experts were chosen.
    pub(crate) bias: Option<String>,
}

impl Told {
    /// What `--json` prints.
    pub(crate) fn json(&self, timing: &Timing, with_top: bool) -> Value {
        let rate = |count: usize, time: Duration| match time.as_secs_f64() {
            s if s > 0.0 && count > 0 => Some(count as f64 / s),
            _ => None,
        };
        let mut object = json!({
            "prompt_tokens": self.prompt,
            "tokens": self.tokens,
            "text": self.text,
            "logprobs": self.logprobs,
            "finish_reason": self.finish_reason,
            "numeric_class": self.numeric_class,
            "shards": self.shards,
            "timing": {
                "load_s": timing.load.as_secs_f64(),
                "prefill_s": timing.prefill.as_secs_f64(),
                "decode_s": timing.decode.as_secs_f64(),
                "prefill_tokens_per_s": rate(self.prompt.len(), timing.prefill),
                "decode_tokens_per_s": rate(self.tokens.len().saturating_sub(1), timing.decode),
            },
        });
        if let Some(bias) = &self.bias {
            object["bias"] = json!(bias);
        }
        if with_top {
            object["top_logprobs"] = json!(self.top_logprobs);
        }
        object
    }
}

impl Generate {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        if let Some(url) = &self.cluster {
            return generate_remote::run(self, url);
        }
        let sampling = self.sampling()?;
        let stop = StopStream::new(self.stop.clone())?;
        let opened = self.model.open()?;
        let bias = session::bias(self.bias.as_deref(), &opened)?;
        let texts = session::texts(self.model.model.as_deref())?;
        if !self.stop.is_empty() {
            // Stop strings are found in text.
            texts.tokenizer()?;
        }
        let prompt = self.prompt_ids(&texts)?;
        let request = self.request(&texts, prompt, sampling, bias)?;
        check_tokens(&opened.spec, &request.prompt)?;
        check_context(&opened.spec, request.prompt.len())?;
        let mut session = Session::load_opened(&opened, &self.model.compute, self.model.kv_memory)?;
        let prompt = request.prompt.clone();
        let mut generation =
            Generation::new(request, texts.tokenizer.as_ref().map(|t| t.stream(!self.ignore_eos)), stop);
        let mut tokens = Vec::new();
        let mut text = String::new();
        let timing = generate(&mut session, &mut generation, |token, piece| {
            let id = token.as_ref().map(|t| t.id);
            tokens.extend(token);
            text += piece;
            match (self.json, &texts.tokenizer, id) {
                (true, ..) | (false, None, None) => Ok(()),
                (false, Some(_), _) => show(piece),
                (false, None, Some(id)) => show(&format!("{id} ")),
            }
        })?;
        match self.json {
            true => {
                let told = told(prompt, &tokens, text, generation.finish_reason(), &session);
                show(&format!("{:#}\n", told.json(&timing, self.top_logprobs > 0)))
            }
            false => show("\n"),
        }
    }

    pub(crate) fn sampling(&self) -> Result<Sampling, Failure> {
        Ok(Sampling::new(SamplingFields {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: Vec::new(),
            seed: self.seed,
        })?)
    }

    fn prompt_ids(&self, texts: &Texts) -> Result<Vec<u32>, Failure> {
        let ids = if let Some(chat) = &self.chat {
            chat_ids(texts, self.system.as_deref(), chat)?
        } else if let Some(prompt) = &self.prompt {
            texts.tokenizer()?.encode(prompt, true)?
        } else {
            self.tokens.as_ref().map(|t| t.0.clone()).unwrap_or_default()
        };
        match ids.is_empty() {
            true => Err("the prompt is empty: it has no token to continue; give some text".into()),
            false => Ok(ids),
        }
    }

    /// Most tokens of the answer, where the model's makers recommend `recommended`.
    pub(crate) fn tokens_max(&self, recommended: Option<usize>) -> Result<usize, Failure> {
        match self.max_tokens.or(recommended).unwrap_or(TOKENS_MAX) {
            0 => Err("--max-tokens 0: an answer has at least one token".into()),
            count => Ok(count),
        }
    }

    fn request(
        &self,
        texts: &Texts,
        prompt: Vec<u32>,
        sampling: Sampling,
        bias: Option<Arc<Bias>>,
    ) -> Result<Request, Failure> {
        let tokens_max = self.tokens_max(texts.defaults.max_new_tokens.map(|n| n as usize))?;
        let end_ids = if self.ignore_eos { Vec::new() } else { texts.end_ids() };
        Ok(Request {
            prompt,
            sampling,
            tokens_max,
            end_ids,
            logprobs: self.json.then_some(self.top_logprobs),
            prompt_logprobs: false,
            experts: false,
            grammar: None,
            bias,
        })
    }
}

fn told(
    prompt: Vec<u32>,
    tokens: &[Token],
    text: String,
    finish_reason: Option<FinishReason>,
    session: &Session,
) -> Told {
    let logprobs = || tokens.iter().filter_map(|token| token.logprobs.as_ref());
    Told {
        prompt,
        tokens: tokens.iter().map(|token| token.id).collect(),
        text,
        logprobs: logprobs().map(|logprobs| json!(logprobs.chosen)).collect(),
        top_logprobs: logprobs().map(|logprobs| json!(logprobs.top)).collect(),
        finish_reason: finish_reason.map(|reason| reason.name().to_owned()),
        numeric_class: session.kernels().class().to_string(),
        shards: session.trunk.spec().shards,
        bias: session.bias.as_ref().map(|bias| bias.digest().to_string()),
    }
}

/// The ids of a conversation of one message.
pub(crate) fn chat_ids(texts: &Texts, system: Option<&str>, chat: &str) -> Result<Vec<u32>, Failure> {
    let Some(template) = &texts.chat else {
        return Err("the model has no chat template (neither chat_template.jinja nor one in \
                    tokenizer_config.json); use --prompt"
            .into());
    };
    let mut messages = Vec::new();
    if let Some(system) = system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    messages.push(json!({ "role": "user", "content": chat }));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    let text = template.render(&ChatInput::new(&messages, WallTime::from_unix(now, 0)))?;
    Ok(texts.tokenizer()?.encode(&text, false)?)
}

/// Runs an answer to its end, handing on tokens and text as they come.
fn generate(
    session: &mut Session,
    generation: &mut Generation,
    mut take: impl FnMut(Option<Token>, &str) -> Result<(), Failure>,
) -> Result<Timing, Failure> {
    session.bias.clone_from(&generation.request().bias);
    let mut sequence = Sequence::default();
    let mut logits = Vec::new();
    let start = Instant::now();
    let mut prefill = None;
    while generation.finish_reason().is_none() {
        let tokens = generation.next_tokens().to_vec();
        match session.advance(&mut sequence, &tokens, &mut Unobserved) {
            // A prompt that does not fit is refused; an answer that has begun is as long as it can be.
            Err(StepError::ContextFull { .. } | StepError::KvFull(_)) if prefill.is_some() => {
                take(None, &generation.handle_full())?;
                break;
            }
            result => result?,
        }
        let last = session.work.hidden.len() / session.trunk.spec().hidden - 1;
        session.logits(&[last], &mut logits);
        prefill.get_or_insert_with(|| start.elapsed());
        let step = generation.handle_logits(&logits)?;
        take(step.token, &step.text)?;
    }
    session.cache.release(sequence);
    let prefill = prefill.unwrap_or_default();
    Ok(Timing { load: session.load_time, prefill, decode: start.elapsed() - prefill })
}

/// One greedy answer of at most `tokens_max` tokens, as text.
pub(crate) fn answer(
    session: &mut Session,
    texts: &Texts,
    chat: &str,
    tokens_max: usize,
) -> Result<String, Failure> {
    let tokenizer = texts.tokenizer()?;
    let request = Request {
        prompt: chat_ids(texts, None, chat)?,
        sampling: Sampling::greedy(),
        tokens_max,
        end_ids: texts.end_ids(),
        logprobs: None,
        prompt_logprobs: false,
        experts: false,
        grammar: None,
        bias: None,
    };
    let mut generation = Generation::new(request, Some(tokenizer.stream(true)), StopStream::new(Vec::new())?);
    let mut text = String::new();
    generate(session, &mut generation, |_, piece| {
        text += piece;
        Ok(())
    })?;
    Ok(text)
}
