//! What functions a client offers, and whether the answer has to call one: `tools`, `tool_choice`,
//! `parallel_tool_calls`.

use serde_json::{Map, Value, json};

use super::super::fields::Fields;
use super::super::form::{NAME_EXPECTED, is_name};
use super::super::refusal::{Refusal, quote};

/// The most functions of a request, as OpenAI has it.
const FUNCTIONS_MAX: usize = 128;

/// A function.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::api) struct Function {
    pub(in crate::api) name: String,
    /// A schema of its arguments, an object.
    pub(in crate::api) parameters: Value,
    /// Arguments have to be what the schema says.
    pub(in crate::api) is_strict: bool,
}

/// Who decides whether something is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum Choice {
    /// The model.
    Auto,
    /// The client: one of the functions at least.
    Required,
}

/// What is offered to the model.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::api) struct Offer {
    /// As it came, for the template.
    pub(in crate::api) tools: Vec<Value>,
    /// What may be called.
    pub(in crate::api) functions: Vec<Function>,
    pub(in crate::api) choice: Choice,
    /// Several calls may be in one answer.
    pub(in crate::api) is_parallel: bool,
}

impl Offer {
    /// Reads what is offered; `None` where nothing may be called.
    pub(in crate::api) fn read(fields: &Fields<'_>) -> Result<Option<Self>, Refusal> {
        let tools = fields.take::<Vec<Value>>("tools", "a list of functions")?.unwrap_or_default();
        let is_parallel = fields.take("parallel_tool_calls", "true or false")?.unwrap_or(true);
        if tools.len() > FUNCTIONS_MAX {
            let message = format!("`tools` has {} functions, at most {FUNCTIONS_MAX} are taken", tools.len());
            return Err(Refusal::value("tools", message));
        }
        let mut functions: Vec<Function> = Vec::with_capacity(tools.len());
        for (index, tool) in tools.iter().enumerate() {
            let function = read_tool(&format!("tools[{index}]"), tool)?;
            if functions.iter().any(|other| other.name == function.name) {
                let place = format!("tools[{index}].function.name");
                let message = format!("`{place}` is that of another function: \"{}\"", function.name);
                return Err(Refusal::value(&place, message));
            }
            functions.push(function);
        }
        let has_tools = !tools.is_empty();
        let choice = match read_choice(fields)? {
            Wanted::None => return Ok(None),
            Wanted::Auto if !has_tools => return Ok(None),
            Wanted::Auto => Choice::Auto,
            _ if !has_tools => {
                let message = "`tool_choice` asks for a call, and `tools` offers nothing to call";
                return Err(Refusal::value("tool_choice", message));
            }
            Wanted::Any => Choice::Required,
            Wanted::One(name) => {
                functions.retain(|function| function.name == name);
                if functions.is_empty() {
                    let place = "tool_choice.function.name";
                    let message = format!("`{place}` is \"{}\", which `tools` does not offer", quote(&name));
                    return Err(Refusal::value(place, message));
                }
                Choice::Required
            }
        };
        Ok(Some(Self { tools, functions, choice, is_parallel }))
    }
}

fn wrong(place: &str, expected: &str) -> Refusal {
    Refusal::value(place, format!("`{place}` should be {expected}"))
}

/// Refuses what is not known, by its place.
fn check_names(place: &str, object: &Map<String, Value>, known: &[&str]) -> Result<(), Refusal> {
    let Some(name) = object.keys().find(|name| !known.contains(&name.as_str())) else { return Ok(()) };
    let place = format!("{place}.{name}");
    let message = format!("`{}` is not supported; known here: {}", quote(&place), known.join(", "));
    Err(Refusal::unsupported(&place, message))
}

fn read_tool(place: &str, tool: &Value) -> Result<Function, Refusal> {
    let tool = tool.as_object().ok_or_else(|| wrong(place, "an object"))?;
    check_names(place, tool, &["type", "function"])?;
    if tool.get("type").and_then(Value::as_str) != Some("function") {
        return Err(wrong(&format!("{place}.type"), "\"function\""));
    }
    let place = format!("{place}.function");
    let function = tool.get("function").and_then(Value::as_object);
    let function = function.ok_or_else(|| wrong(&place, "an object with a `name`"))?;
    check_names(&place, function, &["name", "description", "parameters", "strict"])?;
    let named = |name: &str| function.get(name).filter(|value| !value.is_null());
    let at = |name: &str| format!("{place}.{name}");
    let name = named("name").and_then(Value::as_str).filter(|name| is_name(name));
    let name = name.ok_or_else(|| wrong(&at("name"), NAME_EXPECTED))?;
    if named("description").is_some_and(|description| !description.is_string()) {
        return Err(wrong(&at("description"), "a string"));
    }
    if named("parameters").is_some_and(|parameters| !parameters.is_object()) {
        return Err(wrong(&at("parameters"), "a JSON Schema, an object"));
    }
    let is_strict = match named("strict") {
        None => false,
        Some(strict) => strict.as_bool().ok_or_else(|| wrong(&at("strict"), "true or false"))?,
    };
    let parameters = named("parameters").cloned();
    // Without any it has no arguments.
    let nothing = || json!({"type": "object", "properties": {}, "additionalProperties": false});
    Ok(Function { name: name.to_owned(), parameters: parameters.unwrap_or_else(nothing), is_strict })
}

enum Wanted {
    None,
    Auto,
    Any,
    One(String),
}

fn read_choice(fields: &Fields<'_>) -> Result<Wanted, Refusal> {
    const EXPECTED: &str =
        "\"none\", \"auto\", \"required\", or {\"type\": \"function\", \"function\": {\"name\": …}}";
    let Some(raw) = fields.raw("tool_choice") else { return Ok(Wanted::Auto) };
    if raw.starts_with('{') {
        let choice = Fields::read(raw, "tool_choice.", &["type", "function"])?;
        if choice.take::<String>("type", "\"function\"")?.as_deref() != Some("function") {
            return Err(choice.wrong("type", "\"function\""));
        }
        let function = choice.raw("function").ok_or_else(|| choice.wrong("function", "an object"))?;
        let function = Fields::read(function, "tool_choice.function.", &["name"])?;
        let name = function.take("name", "a string")?;
        return Ok(Wanted::One(name.ok_or_else(|| function.wrong("name", "a string"))?));
    }
    match fields.take::<String>("tool_choice", EXPECTED)?.as_deref() {
        Some("none") => Ok(Wanted::None),
        Some("auto") => Ok(Wanted::Auto),
        Some("required") => Ok(Wanted::Any),
        _ => Err(fields.wrong("tool_choice", EXPECTED)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["tools", "tool_choice", "parallel_tool_calls"];

    fn read(body: Value) -> Result<Option<Offer>, Refusal> {
        Offer::read(&Fields::read(&body.to_string(), "", KNOWN)?)
    }

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
    }

    #[test]
    fn what_is_offered_may_be_narrowed_to_nothing_or_to_one() {
        assert_eq!(read(json!({})).unwrap(), None);
        assert_eq!(read(json!({"tools": []})).unwrap(), None);
        let tools = json!([tool("a"), tool("b")]);
        assert_eq!(read(json!({"tools": tools, "tool_choice": "none"})).unwrap(), None);
        let names = |offer: &Offer| offer.functions.iter().map(|f| f.name.clone()).collect::<Vec<_>>();
        let offer = read(json!({"tools": tools})).unwrap().unwrap();
        assert_eq!(
            (names(&offer), offer.choice, offer.is_parallel),
            (vec!["a".into(), "b".into()], Choice::Auto, true)
        );
        let one = json!({"type": "function", "function": {"name": "b"}});
        let body = json!({"tools": tools, "tool_choice": one, "parallel_tool_calls": false});
        let offer = read(body).unwrap().unwrap();
        assert_eq!(
            (names(&offer), offer.choice, offer.is_parallel),
            (vec!["b".into()], Choice::Required, false)
        );
        assert_eq!(offer.tools.len(), 2, "the template shows all");
        let bare =
            json!([{"type": "function", "function": {"name": "a", "description": null, "strict": true}}]);
        assert!(read(json!({"tools": bare})).unwrap().unwrap().functions[0].is_strict);
    }

    #[test]
    fn what_is_wrong_with_tools_is_named() {
        let function = |value: Value| json!({"tools": [{"type": "function", "function": value}]});
        for (body, param) in [
            (json!({"tools": 1}), "tools"),
            (json!({"tools": vec![tool("a"); 129]}), "tools"),
            (json!({"tools": ["a"]}), "tools[0]"),
            (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
            (json!({"tools": [{"type": "search", "function": {}}]}), "tools[0].type"),
            (json!({"tools": [{"type": "function", "function": {"name": "a"}, "x": 1}]}), "tools[0].x"),
            (function(json!({})), "tools[0].function.name"),
            (function(json!({"name": "a b"})), "tools[0].function.name"),
            (function(json!({"name": "a", "description": 1})), "tools[0].function.description"),
            (function(json!({"name": "a", "parameters": []})), "tools[0].function.parameters"),
            (function(json!({"name": "a", "strict": "yes"})), "tools[0].function.strict"),
            (function(json!({"name": "a", "returns": {}})), "tools[0].function.returns"),
            (json!({"tools": [tool("a"), tool("a")]}), "tools[1].function.name"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"tools": [tool("a")], "tool_choice": "maybe"}), "tool_choice"),
            (json!({"tools": [tool("a")], "tool_choice": 1}), "tool_choice"),
            (json!({"tools": [tool("a")], "tool_choice": {"type": "function"}}), "tool_choice.function"),
            (json!({"tools": [tool("a")], "tool_choice": {"type": "allowed_tools"}}), "tool_choice.type"),
            (
                json!({"tools": [tool("a")], "tool_choice": {"type": "function", "function": {"name": "b"}}}),
                "tool_choice.function.name",
            ),
            (json!({"tools": [tool("a")], "parallel_tool_calls": 1}), "parallel_tool_calls"),
        ] {
            let refusal = read(body.clone()).expect_err(&body.to_string());
            assert_eq!(refusal.param.as_deref(), Some(param), "{body}: {}", refusal.message);
            assert_eq!(refusal.status.as_u16(), 400);
        }
    }
}
