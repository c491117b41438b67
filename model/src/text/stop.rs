//! Ends a stream of text before the first stop string.
//!
//! Pure. A stop string may come in several pieces, so text that could be the beginning of one is held
//! back until it is clear, and no more than that: what a client has read cannot be taken back.
//!
//! *First* is the stop string that is complete first; of two complete at once, the longer. That depends
//! on the text alone and not on how it was cut into pieces.

/// How many stop strings a request may have. Each costs one search per piece of text.
pub const STOP_COUNT_MAX: usize = 32;
/// How long a stop string may be, in bytes. As much text may be held back.
pub const STOP_BYTES_MAX: usize = 1024;

/// Why a list of stop strings was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// An empty string stops everything.
    #[error("stop string {index} is empty; leave it out")]
    Empty {
        /// Position in the list, from 0.
        index: usize,
    },

    /// Too many stop strings.
    #[error("there are {count} stop strings, at most {STOP_COUNT_MAX} are taken; send fewer")]
    TooMany {
        /// How many there are.
        count: usize,
    },

    /// A stop string is too long.
    #[error(
        "stop string {index} has {bytes} bytes, at most {STOP_BYTES_MAX} are taken; its beginning alone \
         would stop as well"
    )]
    TooLong {
        /// Position in the list, from 0.
        index: usize,
        /// Its length.
        bytes: usize,
    },
}

/// What a piece of text came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopText {
    /// Text that may be shown.
    pub text: String,
    /// Which stop string ended the stream, if one did with this piece.
    pub stopped_by: Option<usize>,
}

/// A stream of text that ends before the first stop string.
#[derive(Debug, Clone)]
pub struct StopStream {
    stops: Vec<String>,
    held: String,
    is_stopped: bool,
}

impl StopStream {
    /// A stream that ends before any of `stops`; without any it never ends.
    pub fn new(stops: Vec<String>) -> Result<StopStream, StopError> {
        if stops.len() > STOP_COUNT_MAX {
            return Err(StopError::TooMany { count: stops.len() });
        }
        for (index, stop) in stops.iter().enumerate() {
            match stop.len() {
                0 => return Err(StopError::Empty { index }),
                bytes if bytes > STOP_BYTES_MAX => return Err(StopError::TooLong { index, bytes }),
                _ => {}
            }
        }
        Ok(StopStream { stops, held: String::new(), is_stopped: false })
    }

    /// Takes a piece of text. After the end everything is swallowed.
    pub fn push(&mut self, piece: &str) -> StopText {
        if self.is_stopped || piece.is_empty() {
            return StopText::default();
        }
        self.held.push_str(piece);
        if let Some((start, index)) = self.first_match() {
            self.is_stopped = true;
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return StopText { text, stopped_by: Some(index) };
        }
        let rest = self.held.split_off(self.undecided());
        StopText { text: std::mem::replace(&mut self.held, rest), stopped_by: None }
    }

    /// Gives out what was held back, at the end of all text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Whether a stop string has come.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Where the first match begins and which it is.
    fn first_match(&self) -> Option<(usize, usize)> {
        let found = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, index))
        });
        found.min().map(|(_, start, index)| (start, index))
    }

    /// Where the longest ending begins that is the beginning of a stop string.
    fn undecided(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = (self.held.len() + 1).saturating_sub(longest);
        (from..self.held.len())
            .filter(|start| self.held.is_char_boundary(*start))
            .find(|start| self.stops.iter().any(|stop| stop.starts_with(&self.held[*start..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(stops: &[&str]) -> StopStream {
        StopStream::new(stops.iter().map(|stop| (*stop).to_owned()).collect()).unwrap()
    }

    fn text(text: &str) -> StopText {
        StopText { text: text.to_owned(), stopped_by: None }
    }

    /// A client sees nothing of a stop string, even if it comes letter by letter.
    #[test]
    fn a_stop_string_over_several_pieces_is_never_shown() {
        let mut stream = stream(&["</end>"]);
        assert_eq!(stream.push("all good <"), text("all good "));
        assert_eq!(stream.push("/e"), text(""));
        assert_eq!(stream.push("nd> and more"), StopText { text: String::new(), stopped_by: Some(0) });
        assert_eq!(stream.push("swallowed"), text(""));
        assert_eq!(stream.finish(), "");
        assert!(stream.is_stopped());
    }

    /// A beginning that comes to nothing is shown as soon as that is clear.
    #[test]
    fn a_false_beginning_is_given_out() {
        let mut stream = stream(&["abab!"]);
        assert_eq!(stream.push("aba"), text(""));
        // The first `ab` is out; `aba` may begin anew.
        assert_eq!(stream.push("ba"), text("ab"));
        assert_eq!(stream.finish(), "aba");
    }

    /// Of overlapping candidates the one that is complete first wins, whatever the pieces.
    #[test]
    fn the_first_complete_stop_string_wins() {
        for pieces in [vec!["xabcd"], vec!["x", "a", "b", "c", "d"]] {
            let mut stream = stream(&["abcd", "bc"]);
            let mut out = String::new();
            let mut stopped_by = None;
            for piece in pieces {
                let step = stream.push(piece);
                out.push_str(&step.text);
                stopped_by = stopped_by.or(step.stopped_by);
            }
            assert_eq!((out.as_str(), stopped_by), ("xa", Some(1)));
        }
    }

    /// The limits are part of the interface, and their messages tell a client what to change.
    #[test]
    fn lists_out_of_bounds_are_refused() {
        let refuse = |stops: Vec<String>| StopStream::new(stops).unwrap_err();
        assert_eq!(refuse(vec!["a".into(), String::new()]), StopError::Empty { index: 1 });
        assert_eq!(refuse(vec!["a".into(); 33]), StopError::TooMany { count: 33 });
        assert_eq!(refuse(vec!["a".repeat(1025)]), StopError::TooLong { index: 0, bytes: 1025 });
    }
}
