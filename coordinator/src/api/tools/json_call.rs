//! A call as a JSON object, `{"name": …, "arguments": …}`, told as its characters come.
//!
//! Arguments are passed on as the model wrote them, JSON or not: what they are worth is for the client to judge.

use super::parts::Parts;

/// A call that comes.
#[derive(Debug, Default)]
pub(super) struct JsonCall {
    state: State,
    /// All of it so far, until its name is known: what is no call is text.
    raw: String,
    has_name: bool,
    has_arguments: bool,
    /// Arguments that came before the name.
    early: String,
    key: String,
}

#[derive(Debug, Default)]
enum State {
    /// `{` should come.
    #[default]
    Object,
    /// A key, or the end.
    Key,
    InKey(Literal),
    Colon,
    Value,
    Name(Literal),
    /// Arguments, as an object.
    Arguments(Value),
    /// Arguments, as a string that holds one.
    Text(Literal),
    Other(Value),
    /// `,` or the end.
    Comma,
    Done,
    /// It is not what it should be. Before the name is known it is no call; after it, whatever comes is arguments.
    Broken,
}

impl JsonCall {
    /// Takes a character.
    pub(super) fn push(&mut self, char: char, parts: &mut Parts) {
        if !self.has_name {
            self.raw.push(char);
        }
        let state = std::mem::take(&mut self.state);
        self.state = self.next(state, char, parts);
    }

    /// Whether the object is complete, or none.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Done) || (matches!(self.state, State::Broken) && !self.has_name)
    }

    /// Nothing follows. If it was no call, what it was.
    pub(super) fn finish(self, parts: &mut Parts) -> Option<String> {
        if !self.has_name {
            return Some(self.raw);
        }
        if let State::Text(literal) = &self.state {
            parts.arguments_text(&literal.text);
        } else if !self.has_arguments {
            parts.arguments_text("{}");
        }
        None
    }

    fn next(&mut self, state: State, char: char, parts: &mut Parts) -> State {
        let is_space = char.is_whitespace();
        match (state, char) {
            (state @ (State::Object | State::Key | State::Colon | State::Value | State::Comma), _)
                if is_space =>
            {
                state
            }
            (State::Object, '{') => State::Key,
            (State::Key, '"') => State::InKey(Literal::default()),
            (State::Key | State::Comma, '}') => State::Done,
            (State::InKey(mut literal), _) => match literal.push(char) {
                None => State::InKey(literal),
                Some(None) => State::Broken,
                Some(Some(key)) => {
                    self.key = key;
                    State::Colon
                }
            },
            (State::Colon, ':') => State::Value,
            (State::Value, _) => self.value(char, parts),
            (State::Name(mut literal), _) => match literal.push(char) {
                None => State::Name(literal),
                Some(None) => State::Broken,
                Some(Some(name)) => {
                    self.name(&name, parts);
                    State::Comma
                }
            },
            (State::Arguments(mut value), _) => match value.push(char) {
                Step::Within => {
                    self.argument(char, parts);
                    State::Arguments(value)
                }
                Step::Last => {
                    self.argument(char, parts);
                    State::Comma
                }
                Step::After => self.next(State::Comma, char, parts),
            },
            (State::Text(mut literal), _) => match literal.push(char) {
                None => State::Text(literal),
                Some(None) => State::Broken,
                Some(Some(text)) => {
                    text.chars().for_each(|char| self.argument(char, parts));
                    State::Comma
                }
            },
            (State::Other(mut value), _) => match value.push(char) {
                Step::Within => State::Other(value),
                Step::Last => State::Comma,
                Step::After => self.next(State::Comma, char, parts),
            },
            (State::Comma, ',') => State::Key,
            (State::Done, _) => State::Done,
            (_, _) => {
                if self.has_name {
                    self.argument(char, parts);
                }
                State::Broken
            }
        }
    }

    fn value(&mut self, char: char, parts: &mut Parts) -> State {
        match (self.key.as_str(), char) {
            ("name", '"') if !self.has_name => State::Name(Literal::default()),
            ("arguments" | "parameters", '"') if !self.has_arguments => State::Text(Literal::default()),
            ("arguments" | "parameters", _) if !self.has_arguments => {
                let mut value = Value::default();
                value.push(char);
                self.argument(char, parts);
                State::Arguments(value)
            }
            (_, _) => {
                let mut value = Value::default();
                value.push(char);
                State::Other(value)
            }
        }
    }

    fn name(&mut self, name: &str, parts: &mut Parts) {
        self.has_name = true;
        self.raw.clear();
        parts.call(name);
        parts.arguments_text(&std::mem::take(&mut self.early));
    }

    fn argument(&mut self, char: char, parts: &mut Parts) {
        self.has_arguments = true;
        match self.has_name {
            true => parts.arguments(char),
            false => self.early.push(char),
        }
    }
}

/// A string after its opening quote.
#[derive(Debug, Default)]
struct Literal {
    text: String,
    is_escaped: bool,
}

impl Literal {
    /// The string once it has ended; within it nothing if it is none.
    fn push(&mut self, char: char) -> Option<Option<String>> {
        if char == '"' && !self.is_escaped {
            return Some(serde_json::from_str(&format!("\"{}\"", self.text)).ok());
        }
        self.is_escaped = char == '\\' && !self.is_escaped;
        self.text.push(char);
        None
    }
}

/// Where a JSON value ends, whatever it is.
#[derive(Debug, Default)]
pub(super) struct Value {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

/// Where a character stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// In the value.
    Within,
    /// It is the value's last.
    Last,
    /// The value ended before it.
    After,
}

impl Value {
    pub(super) fn push(&mut self, char: char) -> Step {
        if self.in_string {
            if char == '"' && !self.is_escaped {
                self.in_string = false;
                return self.ended();
            }
            self.is_escaped = char == '\\' && !self.is_escaped;
            return Step::Within;
        }
        match char {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' if self.depth > 0 => {
                self.depth -= 1;
                return self.ended();
            }
            '}' | ']' | ',' if self.depth == 0 => return Step::After,
            _ if self.depth == 0 && char.is_whitespace() => return Step::After,
            _ => {}
        }
        Step::Within
    }

    fn ended(&self) -> Step {
        if self.depth == 0 { Step::Last } else { Step::Within }
    }
}
