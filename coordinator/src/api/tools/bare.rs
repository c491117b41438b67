//! Arguments that come one by one, as bare values.
//!
//! What a bare value is, the function's parameters say: text where they want a string, else JSON, if it is any.

use std::collections::HashMap;

use serde_json::Value;

use super::asked::Function;
use super::parts::Parts;

/// Makes a JSON object of the arguments of one call after the other.
#[derive(Debug)]
pub(super) struct Bare {
    /// Parameters that are strings, by function.
    strings: HashMap<String, Vec<String>>,
    function: String,
    count: usize,
}

impl Bare {
    pub(super) fn new(functions: &[Function]) -> Self {
        let strings = |function: &Function| {
            let properties = function.parameters["properties"].as_object();
            let names = properties.into_iter().flatten().filter(|(_, schema)| is_string(schema));
            (function.name.clone(), names.map(|(name, _)| name.clone()).collect())
        };
        Self { strings: functions.iter().map(strings).collect(), function: String::new(), count: 0 }
    }

    /// A call of this function begins.
    pub(super) fn begin(&mut self, function: String, parts: &mut Parts) {
        parts.call(&function);
        (self.function, self.count) = (function, 0);
    }

    /// One of its arguments is known.
    pub(super) fn argument(&mut self, name: &str, text: &str, parts: &mut Parts) {
        let is_string = self.strings.get(&self.function).is_some_and(|names| names.iter().any(|n| n == name));
        let json = || serde_json::from_str::<Value>(text).ok().filter(|_| !is_string);
        let value = json().map_or_else(|| Value::from(text).to_string(), |_| text.trim().to_owned());
        let before = if self.count == 0 { "{" } else { ", " };
        parts.arguments_text(&format!("{before}{}: {value}", Value::from(name)));
        self.count += 1;
    }

    /// It has no more.
    pub(super) fn end(&mut self, parts: &mut Parts) {
        parts.arguments_text(if self.count == 0 { "{}" } else { "}" });
        self.count = 0;
    }
}

/// Whether a schema wants text and nothing else.
pub(super) fn is_string(schema: &Value) -> bool {
    match &schema["type"] {
        Value::String(kind) => kind == "string",
        _ => schema["enum"].as_array().is_some_and(|some| some.iter().all(Value::is_string)),
    }
}
