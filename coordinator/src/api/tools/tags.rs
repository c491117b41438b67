//! Finds tags in a text that comes character by character.

/// What a character turned out to be part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// Text.
    Text(char),
    /// The tag with this number.
    Tag(usize),
}

/// Looks for tags. No tag may begin with another.
#[derive(Debug)]
pub(super) struct Tags {
    tags: &'static [&'static str],
    /// What may become a tag.
    held: String,
}

impl Tags {
    pub(super) fn new(tags: &'static [&'static str]) -> Self {
        Self { tags, held: String::new() }
    }

    /// Takes a character; `found` hears of all that is known by now.
    pub(super) fn push(&mut self, char: char, mut found: impl FnMut(Piece)) {
        self.held.push(char);
        while !self.held.is_empty() {
            if let Some(tag) = self.tags.iter().position(|tag| *tag == self.held) {
                self.held.clear();
                found(Piece::Tag(tag));
            } else if self.tags.iter().any(|tag| tag.starts_with(&self.held)) {
                return;
            } else {
                found(Piece::Text(self.held.remove(0)));
            }
        }
    }

    /// Whether nothing is held that may become a tag.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Nothing follows: what was held is text.
    pub(super) fn finish(&mut self, found: impl FnMut(Piece)) {
        std::mem::take(&mut self.held).chars().map(Piece::Text).for_each(found);
    }
}
