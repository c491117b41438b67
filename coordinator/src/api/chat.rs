//! A conversation: the `messages` of `/v1/chat/completions`, checked and made a prompt by the model's own template.
//!
//! Pure: the time that a template may show is an argument. A template drops in silence what it does not know, so
//! whatever no template reads is refused here, by its place.

use model::text::{ChatInput, WallTime};
use serde_json::{Map, Value};

use super::fields::Fields;
use super::refusal::{Refusal, quote};
use super::tools::asked::Offer;
use super::tools::{Format, thinks};
use crate::texts::Texts;

pub(super) const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];
/// What OpenAI calls whoever sets the rules. Templates that do not know it have `system` for that.
const DEVELOPER: &str = "developer";
/// What a message may have. The last three are one thing, under the names that clients send it by.
pub(super) const MESSAGE: [&str; 8] =
    ["role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking"];
/// Between the parts of a content, as vLLM has it.
const BETWEEN_PARTS: &str = "\n";

/// A conversation whose next turn is the model's.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conversation {
    messages: Vec<Value>,
    /// What the model may call.
    offer: Option<Offer>,
    /// What the client tells the template, such as `enable_thinking`.
    extra: Map<String, Value>,
}

impl Conversation {
    /// Reads `messages` and what belongs to them.
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, Refusal> {
        const EXPECTED: &str = "a list of messages, objects with `role` and `content`";
        let offer = Offer::read(fields)?;
        let Some(mut messages) = fields.take::<Vec<Value>>("messages", EXPECTED)? else {
            return Err(Refusal::value("messages", format!("`messages` is missing: give {EXPECTED}")));
        };
        if messages.is_empty() {
            return Err(Refusal::value("messages", "`messages` is empty: give at least one message"));
        }
        for (index, message) in messages.iter_mut().enumerate() {
            let place = format!("messages[{index}]");
            let Value::Object(message) = message else { return Err(wrong(&place, "an object")) };
            check_message(&place, message)?;
        }
        let extra = fields.take("chat_template_kwargs", "an object")?.unwrap_or_default();
        Ok(Self { messages, offer, extra })
    }

    /// What the model may call.
    pub(super) fn offer(&self) -> Option<&Offer> {
        self.offer.as_ref()
    }

    /// About how much work it is to make it ids.
    pub(super) fn bytes(&self) -> usize {
        let text = |message: &Value| message["content"].as_str().map_or(0, str::len);
        let tools = self.offer.as_ref().map_or(0, |offer| 256 * offer.tools.len());
        self.messages.iter().map(|message| text(message) + 64).sum::<usize>() + tools
    }

    /// How the model writes what is no plain text.
    pub(super) fn manner(&self, texts: &Texts) -> Result<Manner, Refusal> {
        let Some(template) = &texts.chat else { return Ok(Manner::default()) };
        let source = template.source(self.offer.is_some());
        let format = Format::of(&source);
        let is_harmony = format == Some(Format::Harmony);
        if self.offer.is_some() {
            if !template.shows_tools() {
                let message =
                    "the model's chat template shows no tools, so it cannot call any; leave `tools` out";
                return Err(Refusal::unsupported("tools", message));
            }
            if format.is_none() {
                let message = "calls cannot be told from text in the form that the model's chat template asks for; leave \
                               `tools` out";
                return Err(Refusal::unsupported("tools", message));
            }
        }
        // Without tools only channels are told apart.
        let format = format.filter(|_| self.offer.is_some() || is_harmony);
        Ok(Manner { format, thinks: thinks(&source) && !is_harmony })
    }

    /// The prompt, which brings its special tokens with it.
    pub(super) fn render(&self, texts: &Texts, now: WallTime) -> Result<String, Refusal> {
        let Some(template) = &texts.chat else {
            let message = "the model has no chat template, so it cannot read `messages`; send a prompt to \
                           /v1/completions";
            return Err(Refusal::unsupported("messages", message));
        };
        let tools = self.offer.as_ref().map(|offer| offer.tools.as_slice());
        let source = template.source(tools.is_some());
        let wants_text = Format::of(&source).is_some_and(Format::wants_text);
        let mut messages = if wants_text { with_text(&self.messages) } else { self.messages.clone() };
        if !source.contains(DEVELOPER) {
            let roles = messages.iter_mut().filter_map(|message| message.get_mut("role"));
            roles.filter(|role| **role == DEVELOPER).for_each(|role| *role = "system".into());
        }
        let input = ChatInput { extra: Some(&self.extra), tools, ..ChatInput::new(&messages, now) };
        template.render(&input).map_err(|error| Refusal::value("messages", error.to_string()))
    }
}

/// How a model writes what is no plain text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Manner {
    /// Calls, or channels.
    pub(super) format: Option<Format>,
    /// It thinks between tags before it answers.
    pub(super) thinks: bool,
}

/// Messages with the arguments of calls as text.
fn with_text(messages: &[Value]) -> Vec<Value> {
    let mut messages = messages.to_vec();
    let calls = messages.iter_mut().filter_map(|message| message.get_mut("tool_calls")?.as_array_mut());
    for arguments in calls.flatten().filter_map(|call| call.pointer_mut("/function/arguments")) {
        *arguments = arguments.to_string().into();
    }
    messages
}

fn wrong(place: &str, expected: &str) -> Refusal {
    Refusal::value(place, format!("`{place}` should be {expected}"))
}

fn check_message(place: &str, message: &mut Map<String, Value>) -> Result<(), Refusal> {
    message.retain(|_, value| !value.is_null());
    if let Some(name) = message.keys().find(|name| !MESSAGE.contains(&name.as_str())) {
        let place = format!("{place}.{name}");
        let known = MESSAGE.join(", ");
        let message = format!("`{}` is not supported; known here: {known}", quote(&place));
        return Err(Refusal::unsupported(&place, message));
    }
    let role = message.get("role").and_then(Value::as_str);
    let Some(role) = role.filter(|role| ROLES.contains(role)) else {
        return Err(wrong(&format!("{place}.role"), &format!("one of {}", ROLES.join(", "))));
    };
    let is_assistant = role == "assistant";
    for name in MESSAGE.into_iter().filter(|name| !["content", "tool_calls"].contains(name)) {
        if message.get(name).is_some_and(|value| !value.is_string()) {
            return Err(wrong(&format!("{place}.{name}"), "a string"));
        }
    }
    let has_calls = message.contains_key("tool_calls");
    match message.get_mut("tool_calls") {
        None => {}
        Some(calls) if is_assistant => read_calls(place, calls)?,
        Some(_) => return Err(wrong(&format!("{place}.tool_calls"), "in messages of the assistant only")),
    }
    match message.get_mut("content") {
        Some(Value::String(_)) => Ok(()),
        Some(content @ Value::Array(_)) => join_parts(place, content),
        None if is_assistant && has_calls => Ok(()),
        _ => Err(wrong(&format!("{place}.content"), "a string or a list of parts of type text")),
    }
}

/// Arguments come as text, as the model wrote them; templates read objects.
fn read_calls(place: &str, calls: &mut Value) -> Result<(), Refusal> {
    let place = format!("{place}.tool_calls");
    let expected = "a list of calls, objects with `function`: its `name` and its `arguments` as a JSON object in a \
                    string";
    let calls = calls.as_array_mut().ok_or_else(|| wrong(&place, expected))?;
    for call in calls {
        let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) else {
            return Err(wrong(&place, expected));
        };
        let arguments = function.get("arguments").and_then(Value::as_str);
        let arguments = arguments.and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
        match (function.get("name").is_some_and(Value::is_string), arguments) {
            (true, Some(arguments)) => function.insert("arguments".into(), arguments.into()),
            _ => return Err(wrong(&place, expected)),
        };
    }
    Ok(())
}

fn join_parts(place: &str, content: &mut Value) -> Result<(), Refusal> {
    let mut texts = Vec::new();
    for (index, part) in content.as_array().into_iter().flatten().enumerate() {
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(text)) => texts.push(text),
            (Some(kind), _) if kind != "text" => {
                let place = format!("{place}.content[{index}].type");
                let message = format!("`{place}` is \"{}\"; only \"text\" is supported", quote(kind));
                return Err(Refusal::unsupported(&place, message));
            }
            _ => {
                let place = format!("{place}.content[{index}]");
                return Err(wrong(&place, "a part: {\"type\": \"text\", \"text\": \"…\"}"));
            }
        }
    }
    *content = texts.join(BETWEEN_PARTS).into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const KNOWN: &[&str] =
        &["messages", "tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs"];

    fn read(body: Value) -> Result<Conversation, Refusal> {
        Conversation::read(&Fields::read(&body.to_string(), "", KNOWN)?)
    }

    fn texts(template: &str) -> Texts {
        let config = json!({ "chat_template": template }).to_string();
        let chat = model::text::ChatTemplate::from_bytes("dir", Some(config.as_bytes()), None, &[]).unwrap();
        Texts { tokenizer: None, chat, defaults: Default::default() }
    }

    fn render(template: &str, body: Value) -> String {
        read(body).unwrap().render(&texts(template), WallTime::from_unix(0, 0)).unwrap()
    }

    /// What a template sees is what a template of transformers sees, whatever form clients write it in.
    #[test]
    fn templates_see_strings_and_objects() {
        let template = "{% for m in messages %}[{{ m.role }} {{ m.content }}\
                        {% for c in m.tool_calls %}{{ c.function.name }} {{ c.function.arguments.city }}{% endfor %}]\
                        {% endfor %}{% if add_generation_prompt %}<{{ mood }}>{% endif %}";
        let call = json!({"id": "1", "type": "function",
            "function": {"name": "rain", "arguments": "{\"city\": \"Bern\"}"}});
        let body = json!({
            "messages": [
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": null, "tool_calls": [call]},
                {"role": "tool", "content": "wet", "tool_call_id": "1", "name": null}
            ],
            "chat_template_kwargs": {"mood": "glad"}, "tools": [], "tool_choice": "auto"
        });
        let expected = "[system be kind][user a\nb][assistant rain Bern][tool wet]<glad>";
        assert_eq!(render(template, body), expected);
    }

    /// A template would drop these without a word.
    #[test]
    fn what_no_template_reads_is_named() {
        let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
        let with = |name: &str, value: Value| {
            let mut body = user(json!("x"));
            body[name] = value;
            body
        };
        let message = |name: &str, value: Value| {
            let mut body = user(json!("x"));
            body["messages"][0][name] = value;
            body
        };
        for (body, param) in [
            (json!({}), "messages"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": "x"}), "messages"),
            (json!({"messages": ["x"]}), "messages[0]"),
            (user(json!(null)), "messages[0].content"),
            (user(json!(7)), "messages[0].content"),
            (user(json!([{"type": "image_url", "image_url": {}}])), "messages[0].content[0].type"),
            (user(json!([{"type": "text"}])), "messages[0].content[0]"),
            (user(json!(["x"])), "messages[0].content[0]"),
            (message("role", json!("boss")), "messages[0].role"),
            (message("role", json!(null)), "messages[0].role"),
            (message("colour", json!(1)), "messages[0].colour"),
            (message("name", json!(1)), "messages[0].name"),
            (message("tool_calls", json!([])), "messages[0].tool_calls"),
            (
                json!({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}]}),
                "messages[0].tool_calls",
            ),
            (with("tools", json!([{"type": "function"}])), "tools[0].function"),
            (with("tools", json!(1)), "tools"),
            (with("tool_choice", json!("required")), "tool_choice"),
            (with("chat_template_kwargs", json!([])), "chat_template_kwargs"),
        ] {
            let refusal = read(body.clone()).expect_err(&body.to_string());
            assert_eq!(refusal.param.as_deref(), Some(param), "{body}: {}", refusal.message);
            assert_eq!(refusal.status.as_u16(), 400);
        }
    }

    /// A template that has no place for tools would drop them without a word, and calls in a form that nobody knows would
    /// be told as text.
    #[test]
    fn tools_need_a_template_that_shows_them() {
        let tool = json!({"type": "function", "function": {"name": "rain"}});
        let body = json!({"messages": [{"role": "user", "content": "x"}], "tools": [tool]});
        let manner = |template: &str, body: &Value| read(body.clone()).unwrap().manner(&texts(template));
        let hermes = "{{ tools | tojson }}{{ messages[0].content }}<tool_call><think>";
        let found = Manner { format: Some(Format::Hermes), thinks: true };
        assert_eq!(manner(hermes, &body).unwrap(), found);
        assert!(
            render(hermes, body.clone())
                .starts_with("[{\"type\": \"function\", \"function\": {\"name\": \"rain\"}}]x")
        );
        for template in ["{{ messages[0].tool_calls }}<tool_call>", "{{ tools }}"] {
            let refusal = manner(template, &body).unwrap_err();
            assert_eq!((refusal.param.as_deref(), refusal.code), (Some("tools"), "unsupported_parameter"));
        }
        let mut none = body.clone();
        none["tool_choice"] = json!("none");
        assert_eq!(manner(hermes, &none).unwrap(), Manner { format: None, thinks: true });
    }

    /// A template that does not know OpenAI's newer role would drop its messages, or refuse them.
    #[test]
    fn a_developer_is_the_system_where_a_template_knows_none() {
        let body = json!({"messages": [{"role": "developer", "content": "be kind"}, {"role": "user", "content": "x"}]});
        let usual = "{% for m in messages %}[{{ m.role }} {{ m.content }}]{% endfor %}";
        assert_eq!(render(usual, body.clone()), "[system be kind][user x]");
        let knows = format!("{usual}{{% if messages[0].role in ['developer', 'system'] %}}!{{% endif %}}");
        assert_eq!(render(&knows, body), "[developer be kind][user x]!");
    }

    /// Some templates put arguments between their own words, as the text that a model wrote.
    #[test]
    fn arguments_are_text_where_a_template_wants_them_so() {
        let template = "<｜tool▁calls▁begin｜>{% for m in messages %}{% for c in m.tool_calls %}\
                        {{ 'args ' + c.function.arguments }}{% endfor %}{% endfor %}";
        let call = json!({"function": {"name": "rain", "arguments": "{\"city\": \"Bern\"}"}});
        let body = json!({"messages": [{"role": "assistant", "tool_calls": [call]}]});
        assert_eq!(render(template, body), "<｜tool▁calls▁begin｜>args {\"city\":\"Bern\"}");
    }

    #[test]
    fn what_a_template_refuses_is_told_and_a_base_model_has_none() {
        let now = WallTime::from_unix(0, 0);
        let conversation = read(json!({"messages": [{"role": "user", "content": "x"}]})).unwrap();
        let refusal = conversation.render(&texts("{{ raise_exception('no users') }}"), now).unwrap_err();
        assert!(refusal.message.contains("no users"), "{}", refusal.message);
        let base = Texts { chat: None, ..texts("x") };
        assert!(conversation.render(&base, now).unwrap_err().message.contains("/v1/completions"));
    }
}
