//! From what is asked for to answers that can be computed, and to whoever tells them.
//!
//! A shell around tokenizer, template and forms, which may take their time elsewhere. Here what only the model knows is
//! checked: ids, lengths, what its template can show.

use axum::http::StatusCode;
use model::plain::{check_context, check_tokens};
use model::text::StopStream;

use super::Served;
use super::answer::{Answer, Form, Head, Wanted};
use super::ask::Asked;
use super::chat::Manner;
use super::form::Forms;
use super::prompt::Prompt;
use super::refusal::Refusal;
use super::resume::{self, EventId};
use super::routes::{App, ToDo, unix_seconds};
use super::stream::soon;
use super::tools::asked::Offer;
use super::tools::forced::{Shape, alone, opens_by_token};
use super::tools::{Reader, THOUGHTS};
use crate::generation::{Generation, Request};
use crate::grammar::{self, Grammar, tag_rule};

/// Tokens of a prompt's end in which an opening tag would be.
const TAIL_TOKENS: usize = 16;

/// Makes the choices of an answer that has not begun, prompt by prompt, and whoever tells it.
pub(super) async fn prepare(
    app: &App,
    form: Form,
    asked: Asked,
    resumed: Option<EventId>,
) -> Result<(ToDo, Answer), Refusal> {
    let Served { name, spec, texts, .. } = &app.served;
    let fields = asked.sampling.fields();
    if let Some((id, _)) = fields.logit_bias.iter().find(|(id, _)| *id as usize >= spec.vocab) {
        let message = format!("`logit_bias` names token {id}; the vocabulary has {} tokens", spec.vocab);
        return Err(Refusal::value("logit_bias", message));
    }
    if !asked.stop.is_empty() {
        texts.tokenizer().map_err(|error| Refusal::value("stop", error.to_string()))?;
    }
    let (manner, offer) = match asked.prompts.as_slice() {
        [Prompt::Chat(conversation)] => (conversation.manner(texts)?, conversation.offer().cloned()),
        _ => (Manner::default(), None),
    };
    let echoes = match asked.echo {
        true => asked.prompts.iter().map(|prompt| prompt.echo(texts)).collect::<Result<_, _>>()?,
        false => Vec::new(),
    };
    let time = resumed.map_or_else(unix_seconds, |id| id.stream.time);
    let prompts = ids(app, asked.prompts, time).await?;
    let speech = Speech { manner, offer, opened: manner.thinks && is_thinking(&app.served, &prompts) };
    let grammar = speech.grammar(app, asked.form.as_ref()).await?;
    // What it began with is what it goes on with, also if that was nothing.
    let bias = match resumed.map(|id| id.stream.same.bias) {
        Some(None) => None,
        Some(beginning) => soon(app.backend.bias(beginning)).await?,
        None => soon(app.backend.bias(None)).await?,
    };
    let head = Head {
        id: format!("{}-{:016x}", form.prefix(), app.random()),
        object: form.object(asked.stream),
        created: unix_seconds(),
        model: name.clone(),
        system_fingerprint: app.served.fingerprint(bias.as_deref()),
    };
    let wanted = Wanted {
        logprobs: asked.logprobs.is_some(),
        token_ids: asked.return_token_ids,
        usage: asked.include_usage,
        experts: match asked.return_experts {
            true => spec.moe_layers().map(|(layer, moe)| (layer, moe.top_k)).collect(),
            false => Vec::new(),
        },
    };
    let same = app.served.same(&prompts, asked.parameters, bias.as_deref());
    let stream = resume::Stream { seed: fields.seed, time, same };
    let all = prompts.len() * asked.choices;
    let tokens = resume::check(resumed.as_ref(), &stream, asked.stream, all, asked.tokens)?;
    check_tokens(spec, &tokens).map_err(|error| Refusal::value("phalanx.tokens", error.to_string()))?;
    let skip_special = !asked.ignore_eos;
    let tokenizer = texts.tokenizer.clone().map(|tokenizer| (tokenizer, skip_special));
    // One that goes on is of one choice.
    let choices = if resumed.is_some() { 1 } else { all };
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    let first = prompts[0].clone();
    let mut answer = Answer::new(head, form, choices, wanted, fields.seed, first, tokenizer);
    answer.count_prompts(prompt_tokens);
    answer.name_bias(bias.as_deref());
    if asked.stream && all <= resume::CHOICES_MAX {
        answer = answer.with_ids(stream);
    }
    for (index, (echo, ids)) in echoes.iter().zip(&prompts).enumerate() {
        let mut choices = index * asked.choices..(index + 1) * asked.choices;
        match &resumed {
            None => choices.for_each(|choice| answer.echo(choice, echo, ids)),
            // Who goes on has heard it.
            Some(id) if choices.any(|choice| choice == id.place.choice) => answer.pass_over_echo(echo),
            Some(_) => {}
        }
    }
    if !speech.is_plain() {
        // Whoever goes on with a stream gives its calls the names that they would have had.
        let calls = if asked.stream { stream.calls_seed() } else { app.random() };
        answer.read_with(speech.manner.format, calls, || speech.reader());
    }
    let stop = StopStream::new(asked.stop).map_err(|error| Refusal::value("stop", error.to_string()))?;
    let generation = |prompt: &Vec<u32>, index: usize| {
        let request = Request {
            // The last token is chosen from the logits of the last position and not computed itself.
            tokens_max: asked.tokens_max.min(spec.context_max + 1 - prompt.len()),
            prompt: prompt.clone(),
            sampling: asked.sampling.with_seed(fields.seed.wrapping_add(index as u64)),
            end_ids: if asked.ignore_eos { Vec::new() } else { texts.end_ids() },
            logprobs: asked.logprobs,
            prompt_logprobs: asked.echo && asked.logprobs.is_some(),
            experts: asked.return_experts,
            grammar: grammar.clone(),
            bias: bias.clone(),
        };
        let text = texts.tokenizer.as_ref().map(|tokenizer| match skip_special {
            true => tokenizer.stream_with(&speech.tags()),
            false => tokenizer.stream(false),
        });
        Generation::new(request, text, stop.clone())
    };
    let count = asked.choices;
    let Some(EventId { place, .. }) = resumed else {
        let generations = prompts.iter().flat_map(|prompt| (0..count).map(move |index| (prompt, index)));
        let generations = generations.map(|(prompt, index)| generation(prompt, index)).collect();
        return Ok((ToDo::Compute(generations), answer));
    };
    let mut answer = answer.resumed(&place, &tokens);
    if place.is_ended {
        return Ok((ToDo::Tell(None), answer));
    }
    let mut generation = generation(&prompts[place.choice / count], place.choice % count);
    for id in &tokens {
        // The stream's own tokens end where it was cut.
        if generation.finish_reason().is_none() {
            answer.read_over(&generation.handle_token(*id, None).text);
        }
    }
    Ok(match generation.finish_reason() {
        Some(reason) => (ToDo::Tell(Some(reason)), answer),
        None => (ToDo::Compute(vec![generation]), answer),
    })
}

/// The ids of all prompts, each within the context.
async fn ids(app: &App, prompts: Vec<Prompt>, time: u64) -> Result<Vec<Vec<u32>>, Refusal> {
    let spec = &app.served.spec;
    let count = prompts.len();
    let mut all = Vec::with_capacity(count);
    for (index, prompt) in prompts.into_iter().enumerate() {
        let param = prompt.param();
        let place = if count > 1 { format!("{param}[{index}]") } else { param.to_owned() };
        let ids = app.encoder.ids(prompt, time).await?;
        if ids.is_empty() {
            let message = format!("`{place}` is empty: it has no token to continue");
            return Err(Refusal::value(&place, message));
        }
        check_tokens(spec, &ids).map_err(|error| Refusal::value(&place, error.to_string()))?;
        check_context(spec, ids.len()).map_err(|error| {
            let refusal = Refusal::new(StatusCode::BAD_REQUEST, "context_length_exceeded", error.to_string());
            refusal.of(&place)
        })?;
        all.push(ids);
        // Many short prompts are work too, and others wait for this thread.
        tokio::task::yield_now().await;
    }
    Ok(all)
}

/// Whether a prompt ends within thoughts: then its template has opened them.
fn is_thinking(served: &Served, prompts: &[Vec<u32>]) -> bool {
    let Some(tokenizer) = &served.texts.tokenizer else { return false };
    let end = prompts[0].iter().rev().take(TAIL_TOKENS).rev().copied().collect::<Vec<u32>>();
    tokenizer.decode(&end, false).is_ok_and(|text| text.trim_end().ends_with(THOUGHTS[0]))
}

/// How a chat is answered.
struct Speech {
    manner: Manner,
    offer: Option<Offer>,
    /// The prompt ends within thoughts.
    opened: bool,
}

impl Speech {
    fn is_plain(&self) -> bool {
        self.manner == Manner::default()
    }

    fn reader(&self) -> Reader {
        let functions = self.offer.as_ref().map_or(&[][..], |offer| &offer.functions);
        Reader::new(self.manner.format, functions, self.manner.thinks.then_some(self.opened))
    }

    /// Special tokens that are part of its text.
    fn tags(&self) -> Vec<&'static str> {
        let calls = self.manner.format.map_or(&[][..], |format| format.tags());
        let thoughts = if self.manner.thinks { &THOUGHTS[..] } else { &[] };
        [calls, thoughts].concat()
    }

    /// What the answer has to be, if not any text will do.
    async fn grammar(&self, app: &App, form: Option<&grammar::Form>) -> Result<Option<Grammar>, Refusal> {
        const SCHEMA: &str = "response_format.json_schema.schema";
        let shape = Shape {
            format: self.manner.format,
            thoughts: self.manner.thinks.then_some(self.opened),
            offer: self.offer.as_ref(),
            form,
        };
        if shape.is_free() {
            return Ok(None);
        }
        let tokenizer = app.served.texts.tokenizer();
        let tokenizer =
            tokenizer.map_err(|error| Refusal::unsupported("response_format", error.to_string()))?;
        let tag = |text: &str| tag_rule(tokenizer, text);
        if let (Some(offer), Some(format), false) = (&self.offer, shape.format, shape.is_forced())
            && !opens_by_token(format, &tag)
        {
            let message = "this model's calls begin like text, so an answer that may call cannot be kept to one call, to \
                           `strict` functions or to `response_format`; leave these out, or say `tool_choice`: \
                           \"required\"";
            let param = if offer.is_parallel { "tools" } else { "parallel_tool_calls" };
            return Err(Refusal::unsupported(param, message));
        }
        let place = if self.offer.is_some() { "tools" } else { SCHEMA };
        let refused = match shape.whole(&tag) {
            Ok(whole) => match app.forms.grammar(whole, place, place).await {
                Ok(grammar) => return Ok(Some(grammar)),
                Err(refusal) => refusal,
            },
            Err(error) => Refusal::value(place, format!("`{place}` is not supported: {error}")),
        };
        // Of several schemas the one that is to be changed is named.
        self.check_alone(&app.forms, form).await?;
        Err(refused)
    }

    async fn check_alone(&self, forms: &Forms, form: Option<&grammar::Form>) -> Result<(), Refusal> {
        let Some(offer) = &self.offer else { return Ok(()) };
        if let Some(form) = form {
            const SCHEMA: &str = "response_format.json_schema.schema";
            forms.grammar(form.clone(), SCHEMA, SCHEMA).await?;
        }
        for function in &offer.functions {
            let is_it = |tool: &serde_json::Value| tool["function"]["name"] == function.name.as_str();
            let index = offer.tools.iter().position(is_it).unwrap_or(0);
            let place = format!("tools[{index}].function.parameters");
            forms.grammar(alone(function), &place, &place).await?;
        }
        Ok(())
    }
}
