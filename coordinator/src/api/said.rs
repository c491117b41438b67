//! What is said in an answer, in OpenAI's shapes: text, messages and the deltas of streams, with calls and thoughts.
//!
//! Pure.

use serde::Serialize;

use super::answer::Form;

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    Text(String),
    Message(Message),
    Delta(Delta),
}

#[derive(Serialize)]
pub(super) struct Message {
    role: &'static str,
    /// Nothing where it calls and says nothing else.
    content: Option<String>,
    /// OpenAI's way to say that nothing was refused.
    refusal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
}

#[derive(Serialize)]
pub(super) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
}

#[derive(Serialize)]
pub(super) struct Call {
    /// In streams alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<usize>,
    /// Where it begins.
    #[serde(flatten)]
    pub(super) identity: Option<CallIdentity>,
    pub(super) function: CallFunction,
}

#[derive(Serialize)]
pub(super) struct CallIdentity {
    pub(super) id: String,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
}

#[derive(Serialize)]
pub(super) struct CallFunction {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    pub(super) arguments: String,
}

/// A call, or more of its arguments.
#[derive(Debug)]
pub(super) struct CallNews {
    pub(super) index: usize,
    /// Where it begins.
    pub(super) name: Option<String>,
    pub(super) arguments: String,
}

/// What there is to tell of a choice.
pub(super) struct News {
    pub(super) text: String,
    pub(super) reasoning: Option<String>,
    pub(super) calls: Vec<Call>,
}

/// News in their form. In a stream of a chat the first chunk of a choice says whose turn it is.
pub(super) fn said(form: Form, is_chunk: bool, is_first: bool, news: News) -> Said {
    const ROLE: &str = "assistant";
    let News { text, reasoning: reasoning_content, calls: tool_calls } = news;
    match (form, is_chunk) {
        (Form::Text, _) => Said::Text(text),
        (Form::Chat, false) => {
            let content = (!text.is_empty() || tool_calls.is_empty()).then_some(text);
            Said::Message(Message { role: ROLE, content, refusal: None, reasoning_content, tool_calls })
        }
        (Form::Chat, true) => Said::Delta(Delta {
            role: is_first.then_some(ROLE),
            content: (is_first || !text.is_empty()).then_some(text),
            reasoning_content,
            tool_calls,
        }),
    }
}
