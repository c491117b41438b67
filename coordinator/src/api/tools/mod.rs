//! Tools: what functions a client offers, and which calls of them an answer holds.
//!
//! Pure. Each family of models writes calls, and what it thinks before it answers, in a way of its own, which its chat
//! template shows; [`Format`] is found there. [`asked`] reads what a client offers, [`forced`] makes a grammar of it where
//! an answer has to call, and a [`Reader`] tells content, thoughts and calls apart in the text of an answer. It is fed as
//! the text comes and looks at one character after the other, so how the text is cut makes no difference.

pub(super) mod asked;
mod bare;
mod coder;
mod deepseek;
pub(super) mod forced;
mod glm;
mod harmony;
mod hermes;
mod json_call;
mod llama;
mod mistral;
mod parts;
mod reader;
mod tags;
mod thoughts;

pub(super) use parts::Part;
pub(super) use reader::Reader;

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Qwen, Hermes.
    Hermes,
    /// `<tool_call><function=…><parameter=…>…</parameter></function></tool_call>`: Qwen3-Coder.
    Coder,
    /// `<tool_call>name<arg_key>…</arg_key><arg_value>…</arg_value></tool_call>`: GLM-4.5.
    Glm,
    /// `{"name": …, "parameters": …}` and nothing else: Llama 3.
    Llama,
    /// `[TOOL_CALLS][{"name": …, "arguments": …}]`, or where names have tags `[TOOL_CALLS]name[ARGS]{…}`: Mistral.
    Mistral {
        /// Names have tags.
        named: bool,
    },
    /// `<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜>…`: DeepSeek.
    DeepSeek {
        /// The name comes after the separator, and arguments are in a fence, as in V3 and R1.
        fenced: bool,
    },
    /// Channels, of which one is for calls: GPT-OSS.
    Harmony,
}

impl Format {
    /// What a template shows.
    pub(super) fn of(template: &str) -> Option<Self> {
        let has = |text: &str| template.contains(text);
        if has(harmony::CHANNEL) && has(harmony::MESSAGE) {
            return Some(Format::Harmony);
        }
        if has(deepseek::CALLS_BEGIN) {
            return Some(Format::DeepSeek { fenced: has("```json") });
        }
        if has(mistral::CALLS) {
            return Some(Format::Mistral { named: has(mistral::ARGUMENTS) });
        }
        if has(hermes::OPEN) {
            return Some(match (has(coder::FUNCTION), has(glm::KEY)) {
                (true, _) => Format::Coder,
                (false, true) => Format::Glm,
                (false, false) => Format::Hermes,
            });
        }
        has(llama::ASKED).then_some(Format::Llama)
    }

    /// Special tokens that are no text in other answers, and without which calls cannot be told here.
    pub(super) fn tags(self) -> &'static [&'static str] {
        match self {
            Format::Hermes => &hermes::TAGS,
            Format::Coder => &coder::TAGS,
            Format::Glm => &glm::TAGS,
            Format::Llama => &llama::TAGS,
            Format::Mistral { .. } => &mistral::TAGS,
            Format::DeepSeek { .. } => &deepseek::TAGS,
            Format::Harmony => &harmony::TAGS,
        }
    }

    /// Whether templates of it want the arguments of earlier calls as text, as the model wrote them.
    pub(super) fn wants_text(self) -> bool {
        matches!(self, Format::DeepSeek { .. })
    }

    /// The name of a call: `seed` tells answers apart, `index` the calls of one.
    pub(super) fn call_id(self, seed: u64, choice: usize, index: usize) -> String {
        let number = ((choice as u64) << 32 | index as u64).wrapping_add(1);
        let mut mixed = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^= mixed >> 27;
        match self {
            // Mistral's templates take nine letters and digits and nothing else.
            Format::Mistral { .. } => format!("{:09x}", mixed >> 28),
            _ => format!("call_{mixed:016x}"),
        }
    }
}

/// Whether a template shows that its model thinks between tags before it answers.
pub(super) fn thinks(template: &str) -> bool {
    template.contains(thoughts::OPEN) || template.contains(thoughts::CLOSE)
}

/// Tags around thoughts.
pub(super) const THOUGHTS: [&str; 2] = [thoughts::OPEN, thoughts::CLOSE];

#[cfg(test)]
mod tests {
    use super::*;

    /// Templates of released models, and what they are made of.
    #[test]
    fn formats_are_found_in_templates() {
        let recorded = include_str!("../../../../model/tests/recorded/chat_templates.txt");
        let template = |name: &str| {
            let begin = recorded.find(&format!("=== template {name}\n")).unwrap();
            recorded[begin..].split("\n=== case").next().unwrap()
        };
        for (name, format, has_thoughts) in [
            ("mixtral", None, false),
            ("qwen2", None, false),
            ("qwen3", Some(Format::Hermes), true),
            ("qwen3-coder", Some(Format::Coder), false),
            ("deepseek-v2", None, false),
            ("deepseek-v3", Some(Format::DeepSeek { fenced: true }), true),
            ("gpt-oss", Some(Format::Harmony), false),
            ("olmoe", None, false),
            ("glm", Some(Format::Glm), true),
        ] {
            assert_eq!(Format::of(template(name)), format, "{name}");
            assert_eq!(thinks(template(name)), has_thoughts, "{name}");
        }
        let mistral = Format::of("{{ '[TOOL_CALLS]' }}");
        assert_eq!(mistral, Some(Format::Mistral { named: false }));
        // A line of the templates of Llama 3.1 to 3.3.
        let llama = "{{- 'Respond in the format {\"name\": function name, \"parameters\": dictionary of argument name and its value}.' }}";
        assert_eq!(Format::of(llama), Some(Format::Llama));
    }

    #[test]
    fn calls_have_names_of_their_own() {
        let format = Format::Mistral { named: false };
        let ids: Vec<String> =
            (0..3).flat_map(|choice| (0..3).map(move |index| format.call_id(7, choice, index))).collect();
        assert!(ids.iter().all(|id| id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())));
        let different: std::collections::BTreeSet<&String> = ids.iter().collect();
        assert_eq!(different.len(), 9);
        assert!(Format::Hermes.call_id(7, 0, 0).starts_with("call_"));
    }
}
