//! Tells content, thoughts and calls apart in the text of an answer.

use super::Format;
use super::asked::Function;
use super::coder::Coder;
use super::deepseek::DeepSeek;
use super::glm::Glm;
use super::harmony::Harmony;
use super::hermes::Hermes;
use super::llama::Llama;
use super::mistral::Mistral;
use super::parts::{Part, Parts};
use super::thoughts::Thoughts;

/// Reads one answer.
#[derive(Debug)]
pub(in crate::api) struct Reader {
    thoughts: Option<Thoughts>,
    format: Machine,
    parts: Parts,
}

#[derive(Debug)]
enum Machine {
    /// All of it is content.
    Text,
    Hermes(Hermes),
    Coder(Box<Coder>),
    Glm(Box<Glm>),
    Llama(Llama),
    Mistral(Mistral),
    DeepSeek(DeepSeek),
    Harmony(Harmony),
}

impl Machine {
    fn push(&mut self, parts: &mut Parts, char: char) {
        match self {
            Machine::Text => parts.content(char),
            Machine::Hermes(hermes) => hermes.push(char, parts),
            Machine::Coder(coder) => coder.push(char, parts),
            Machine::Glm(glm) => glm.push(char, parts),
            Machine::Llama(llama) => llama.push(char, parts),
            Machine::Mistral(mistral) => mistral.push(char, parts),
            Machine::DeepSeek(deepseek) => deepseek.push(char, parts),
            Machine::Harmony(harmony) => harmony.push(char, parts),
        }
    }

    fn finish(&mut self, parts: &mut Parts) {
        match self {
            Machine::Text => {}
            Machine::Hermes(hermes) => hermes.finish(parts),
            Machine::Coder(coder) => coder.finish(parts),
            Machine::Glm(glm) => glm.finish(parts),
            Machine::Llama(llama) => llama.finish(parts),
            Machine::Mistral(mistral) => mistral.finish(parts),
            Machine::DeepSeek(deepseek) => deepseek.finish(parts),
            Machine::Harmony(harmony) => harmony.finish(parts),
        }
    }
}

impl Reader {
    /// A reader of an answer with calls of this format, if there may be any, and with thoughts, if there are: then it is
    /// said whether the prompt ends within them.
    pub(in crate::api) fn new(
        format: Option<Format>,
        functions: &[Function],
        thoughts: Option<bool>,
    ) -> Self {
        let format = match format {
            None => Machine::Text,
            Some(Format::Hermes) => Machine::Hermes(Hermes::new()),
            Some(Format::Coder) => Machine::Coder(Box::new(Coder::new(functions))),
            Some(Format::Glm) => Machine::Glm(Box::new(Glm::new(functions))),
            Some(Format::Llama) => Machine::Llama(Llama::new(functions)),
            Some(Format::Mistral { .. }) => Machine::Mistral(Mistral::new()),
            Some(Format::DeepSeek { fenced }) => Machine::DeepSeek(DeepSeek::new(fenced)),
            Some(Format::Harmony) => Machine::Harmony(Harmony::new()),
        };
        Self { thoughts: thoughts.map(Thoughts::new), format, parts: Parts::default() }
    }

    /// Takes the next piece of the text and returns what is known by now.
    pub(in crate::api) fn push(&mut self, text: &str) -> Vec<Part> {
        let Self { thoughts, format, parts } = self;
        for char in text.chars() {
            match thoughts {
                None => format.push(parts, char),
                Some(thoughts) => thoughts.push(char, parts, &mut |parts, char| format.push(parts, char)),
            }
        }
        parts.take()
    }

    /// Nothing follows.
    pub(in crate::api) fn finish(&mut self) -> Vec<Part> {
        let Self { thoughts, format, parts } = self;
        if let Some(thoughts) = thoughts {
            thoughts.finish(parts, &mut |parts, char| format.push(parts, char));
        }
        format.finish(parts);
        parts.finish();
        parts.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn content(text: &str) -> Part {
        Part::Content(text.into())
    }

    fn thought(text: &str) -> Part {
        Part::Reasoning(text.into())
    }

    fn call(name: &str, arguments: &str) -> [Part; 2] {
        [Part::Call(name.into()), Part::Arguments(arguments.into())]
    }

    /// Neighbours of one kind are one.
    fn joined(parts: Vec<Part>) -> Vec<Part> {
        let mut all: Vec<Part> = Vec::new();
        for part in parts {
            match (all.last_mut(), part) {
                (Some(Part::Content(last)), Part::Content(text))
                | (Some(Part::Reasoning(last)), Part::Reasoning(text))
                | (Some(Part::Arguments(last)), Part::Arguments(text)) => *last += &text,
                (_, part) => all.push(part),
            }
        }
        all
    }

    /// Reads a text whole, cut in two at every place, and letter by letter: the parts must be the same.
    fn read(reader: impl Fn() -> Reader, text: &str) -> Vec<Part> {
        let pieces = |pieces: &[&str]| {
            let mut reader = reader();
            let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
            parts.extend(reader.finish());
            joined(parts)
        };
        let whole = pieces(&[text]);
        for (cut, _) in text.char_indices() {
            assert_eq!(pieces(&[&text[..cut], &text[cut..]]), whole, "{text} cut at {cut}");
        }
        let letters: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(
            pieces(&letters.iter().map(String::as_str).collect::<Vec<_>>()),
            whole,
            "{text} by letters"
        );
        whole
    }

    fn of(format: Format, text: &str) -> Vec<Part> {
        read(|| Reader::new(Some(format), &[], None), text)
    }

    #[test]
    fn calls_of_hermes() {
        let of = |text: &str| of(Format::Hermes, text);
        let one = call("rain", r#"{"city": "Bern <b>", "n": [1, {"a": "}"}]}"#);
        let json = r#"{"name": "rain", "arguments": {"city": "Bern <b>", "n": [1, {"a": "}"}]}}"#;
        assert_eq!(of(&format!("<tool_call>\n{json}\n</tool_call>")), one);
        let two =
            format!("Let me see. \n\n<tool_call>\n{json}\n</tool_call>\n<tool_call>{json}</tool_call>\n");
        assert_eq!(of(&two), [vec![content("Let me see.")], one.to_vec(), one.to_vec()].concat());
        // In another order, with other fields, as text, without any.
        assert_eq!(
            of(
                r#"<tool_call>{"id": 7, "arguments": {"a": 1}, "name": "f\"\u00e9", "x": [true]}</tool_call>"#
            ),
            call("f\"é", "{\"a\": 1}")
        );
        assert_eq!(
            of(r#"<tool_call>{"name": "f", "parameters": "{\"a\": \"\\n\"}"}</tool_call>"#),
            call("f", r#"{"a": "\n"}"#)
        );
        assert_eq!(of(r#"<tool_call>{"name": "f"}</tool_call>"#), call("f", "{}"));
        // What is no call is text, and what is cut is a call that is cut.
        for text in [
            "a < b <tool> </tool_call> c",
            "<tool_call>nothing</tool_call>",
            "<tool_call>{\"name\": 7}</tool_call>",
            "  spaces stay where nothing is called \n",
            "<tool_ca",
        ] {
            assert_eq!(of(text), [content(text)], "{text}");
        }
        assert_eq!(of("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"b"), call("f", "{\"a\": \"b"));
    }

    #[test]
    fn calls_of_coder() {
        let parameters = json!({"properties": {"city": {"type": "string"}, "days": {"type": "integer"},
            "where": {"type": "object"}}});
        let functions = [Function { name: "rain".into(), parameters, is_strict: false }];
        let of = |text: &str| read(|| Reader::new(Some(Format::Coder), &functions, None), text);
        let text = "I look.\n<tool_call>\n<function=rain>\n<parameter=city>\n7 \"B\"\nern\n</parameter>\n<parameter=days>\n3\n\
                    </parameter>\n<parameter=where>\n{\"a\": [1]}\n</parameter>\n<parameter=other>\nx < y\n</parameter>\n\
                    </function>\n</tool_call>";
        let arguments = r#"{"city": "7 \"B\"\nern", "days": 3, "where": {"a": [1]}, "other": "x < y"}"#;
        assert_eq!(of(text), [vec![content("I look.")], call("rain", arguments).to_vec()].concat());
        assert_eq!(of("<tool_call>\n<function=f>\n</function>\n</tool_call>"), call("f", "{}"));
        assert_eq!(of("a <function b"), [content("a <function b")]);
    }

    #[test]
    fn calls_of_glm() {
        let parameters = json!({"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}});
        let functions = [Function { name: "rain".into(), parameters, is_strict: false }];
        let of = |text: &str| read(|| Reader::new(Some(Format::Glm), &functions, None), text);
        let text = "I look.\n<tool_call>rain\n<arg_key>city</arg_key>\n<arg_value>7 <b> \"B\"\nern</arg_value>\n<arg_key>days</arg_key>\n\
                    <arg_value>3</arg_value>\n<arg_key>other</arg_key>\n<arg_value>[1, {\"a\": null}]</arg_value>\n</tool_call>";
        let arguments = r#"{"city": "7 <b> \"B\"\nern", "days": 3, "other": [1, {"a": null}]}"#;
        let one = [vec![content("I look.")], call("rain", arguments).to_vec()].concat();
        assert_eq!(of(text), one);
        // As GLM-4.6 has it, without line ends; a number that should be text is text.
        let dense = "<tool_call>rain<arg_key>city</arg_key><arg_value>7</arg_value></tool_call><tool_call>now</tool_call>";
        assert_eq!(of(dense), [call("rain", r#"{"city": "7"}"#), call("now", "{}")].concat());
        for text in ["a <tool_call", "<tool_call>never", "x </tool_call> <arg_key> y"] {
            assert_eq!(of(text), [content(text)], "{text}");
        }
        let cut = "<tool_call>rain\n<arg_key>city</arg_key>\n<arg_value>Be";
        assert_eq!(of(cut), [Part::Call("rain".into())], "half a value is none");
    }

    #[test]
    fn calls_of_llama() {
        let function = |name: &str| Function { name: name.into(), parameters: json!({}), is_strict: false };
        let functions = [function("rain"), function("now")];
        let of = |text: &str| read(|| Reader::new(Some(Format::Llama), &functions, None), text);
        let one = call("rain", r#"{"city": "Bern; {", "n": [1]}"#);
        let json = r#"{"name": "rain", "parameters": {"city": "Bern; {", "n": [1]}}"#;
        assert_eq!(of(json), one);
        assert_eq!(of(&format!("<|python_tag|>{json}")), one);
        assert_eq!(
            of(&format!("\n{json}; {{\"name\": \"now\"}}\n")),
            [one.clone(), call("now", "{}")].concat()
        );
        assert_eq!(
            of(r#"{"type": "function", "parameters": {"a": 1}, "name": "rain"}"#),
            call("rain", "{\"a\": 1}"),
            "in another order"
        );
        assert_eq!(
            of(r#"{"name": "rain", "parameters": {"city": "Be"#),
            call("rain", "{\"city\": \"Be"),
            "one that is cut"
        );
        // What names no function that is offered is what the model says, and so is what comes after text.
        for text in [
            r#"{"name": "Bob", "parameters": {"age": 7}}"#.to_owned(),
            r#"{"city": "Bern"} is a city"#.to_owned(),
            "{ nothing".into(),
            format!("I call {json}"),
            "; x".into(),
        ] {
            assert_eq!(of(&text), [content(&text)], "{text}");
        }
        assert_eq!(of(&format!("{json} so")), [one.to_vec(), vec![content(" so")]].concat());
    }

    #[test]
    fn calls_of_mistral() {
        let listed = Format::Mistral { named: false };
        let json = r#"{"name": "f", "arguments": {"a": "[ARGS]"}}"#;
        let one = call("f", r#"{"a": "[ARGS]"}"#);
        assert_eq!(of(listed, &format!("[TOOL_CALLS] [{json}]")), one);
        assert_eq!(
            of(listed, &format!("Yes. [TOOL_CALLS][{json}, {json}]")),
            [vec![content("Yes.")], one.to_vec(), one.to_vec()].concat()
        );
        let named = Format::Mistral { named: true };
        let text = "[TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]g[CALL_ID]x1[ARGS]{}";
        assert_eq!(of(named, text), [call("f", "{\"a\": 1}"), call("g", "{}")].concat());
        assert_eq!(of(named, "a [list] of [TOOL"), [content("a [list] of [TOOL")]);
    }

    #[test]
    fn calls_of_deepseek() {
        let fenced = "Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>rain\n```json\n{\"city\": \"`\"}\n```\
                      <｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜>\
                      <｜tool▁calls▁end｜>";
        let expected =
            [vec![content("Hm.")], call("rain", "{\"city\": \"`\"}").to_vec(), call("g", "{}").to_vec()];
        assert_eq!(of(Format::DeepSeek { fenced: true }, fenced), expected.concat());
        let plain = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>rain<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
        assert_eq!(of(Format::DeepSeek { fenced: false }, plain), call("rain", "{\"a\": 1}"));
    }

    #[test]
    fn channels_of_harmony() {
        let of = |text: &str| of(Format::Harmony, text);
        let text = "<|channel|>analysis<|message|>I think\n\n so.<|end|><|start|>assistant<|channel|>final<|message|>It \
                    is  <|so|>.";
        assert_eq!(of(text), [thought("I think\n\n so."), content("It is  <|so|>.")]);
        let one = call("rain", "{\"city\": \"Bern\"}");
        for head in [
            "<|channel|>commentary to=functions.rain <|constrain|>json",
            " to=functions.rain<|channel|>commentary json",
        ] {
            assert_eq!(of(&format!("{head}<|message|>{{\"city\": \"Bern\"}}<|call|>")), one);
        }
        let said = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant";
        assert_eq!(of(said), [content("I look.")]);
        assert_eq!(of("no channel"), [content("no channel")]);
        let long = "no channel ".repeat(100);
        assert_eq!(of(&long), [content(&long)]);
    }

    #[test]
    fn thoughts_are_told_from_what_is_said() {
        let of = |text: &str| read(|| Reader::new(Some(Format::Hermes), &[], Some(false)), text);
        let both = [thought("a <b>\n\nc"), content("x </think> y")];
        assert_eq!(of("<think>\na <b>\n\nc\n</think>\n\nx </think> y"), both);
        assert_eq!(of("<think>\n\n</think>\n\nx"), [content("x")]);
        assert_eq!(of(" \nx <think> y"), [content(" \nx <think> y")]);
        assert_eq!(of("<think>never ends "), [thought("never ends ")]);
        let text = "<think>\na\n</think>\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
        assert_eq!(of(text), [vec![thought("a")], call("f", "{}").to_vec()].concat());
        let open = |text: &str| read(|| Reader::new(None, &[], Some(true)), text);
        assert_eq!(open("a\n</think>\n\nx\n<tool_call>"), [thought("a"), content("x\n<tool_call>")]);
    }
}
