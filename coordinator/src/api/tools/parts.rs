//! What an answer consists of.

/// A part of an answer, or more of the part before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) enum Part {
    /// For the reader.
    Content(String),
    /// What the model thought before it answered.
    Reasoning(String),
    /// A call begins: the function's name.
    Call(String),
    /// Arguments of the call that began last, as the model wrote them.
    Arguments(String),
}

/// Parts in the order of the text; what belongs together is one.
#[derive(Debug, Default)]
pub(super) struct Parts {
    parts: Vec<Part>,
    /// White space of the content that is part of it only if more follows, or if there is no call at all.
    space: String,
    has_calls: bool,
}

impl Parts {
    pub(super) fn take(&mut self) -> Vec<Part> {
        std::mem::take(&mut self.parts)
    }

    pub(super) fn content(&mut self, char: char) {
        // Between calls models leave lines that are no content.
        if char.is_whitespace() {
            self.space.push(char);
            return;
        }
        let mut text = std::mem::take(&mut self.space);
        text.push(char);
        match self.parts.last_mut() {
            Some(Part::Content(last)) => last.push_str(&text),
            _ => self.parts.push(Part::Content(text)),
        }
    }

    pub(super) fn content_text(&mut self, text: &str) {
        text.chars().for_each(|char| self.content(char));
    }

    pub(super) fn reasoning(&mut self, char: char) {
        match self.parts.last_mut() {
            Some(Part::Reasoning(last)) => last.push(char),
            _ => self.parts.push(Part::Reasoning(char.into())),
        }
    }

    pub(super) fn call(&mut self, name: &str) {
        self.space.clear();
        self.has_calls = true;
        self.parts.push(Part::Call(name.to_owned()));
    }

    pub(super) fn arguments(&mut self, char: char) {
        match self.parts.last_mut() {
            Some(Part::Arguments(last)) => last.push(char),
            _ => self.parts.push(Part::Arguments(char.into())),
        }
    }

    pub(super) fn arguments_text(&mut self, text: &str) {
        text.chars().for_each(|char| self.arguments(char));
    }

    /// Whether anything was called.
    pub(super) fn has_calls(&self) -> bool {
        self.has_calls
    }

    /// Nothing follows.
    pub(super) fn finish(&mut self) {
        let space = std::mem::take(&mut self.space);
        if !self.has_calls && !space.is_empty() {
            self.parts.push(Part::Content(space));
        }
    }
}
