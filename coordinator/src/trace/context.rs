//! Which trace a request belongs to: ids, and the headers by which it comes from one program to the next.
//!
//! Pure. The headers are W3C's Trace Context; what does not keep to it is as if it were not there.

use std::fmt;

/// Names a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub u128);

/// Names a span of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(pub u64);

/// The span of another program that a request is a part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The trace.
    pub trace: TraceId,
    /// The span.
    pub span: SpanId,
    /// Whether the caller keeps its spans; then ours are wanted too.
    pub is_sampled: bool,
    /// What tracing systems on the way say to themselves; it is passed on.
    pub state: Option<String>,
}

/// The longest `tracestate` that has to be passed on.
const STATE_BYTES_MAX: usize = 512;

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Parent {
    /// Reads `traceparent` and `tracestate`.
    pub fn read(parent: &str, state: Option<&str>) -> Option<Self> {
        let mut fields = parent.split('-');
        let version = hex(fields.next()?, 2)?;
        let trace = TraceId(hex(fields.next()?, 32)?);
        let span = SpanId(u64::try_from(hex(fields.next()?, 16)?).ok()?);
        let flags = hex(fields.next()?, 2)?;
        // Later versions may say more; this one does not.
        let is_known = match version {
            0xff => false,
            0 => fields.next().is_none(),
            _ => true,
        };
        if !is_known || trace.0 == 0 || span.0 == 0 {
            return None;
        }
        let fits = |state: &&str| {
            state.len() <= STATE_BYTES_MAX && state.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        };
        let state = state.map(str::trim).filter(|state| !state.is_empty()).filter(fits).map(str::to_owned);
        Some(Self { trace, span, is_sampled: flags & 1 == 1, state })
    }
}

/// A number of so many small hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == digits && text.bytes().all(is_hex)).then(|| u128::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    /// The examples of the recommendation, and what it says is invalid.
    #[test]
    fn a_parent_is_read_as_the_recommendation_has_it() {
        let read = |parent: &str| Parent::read(parent, None);
        let found =
            Parent::read(&format!("00-{TRACE}-{SPAN}-01"), Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"));
        let found = found.unwrap();
        assert_eq!((found.trace.to_string(), found.span.to_string()), (TRACE.into(), SPAN.into()));
        assert!(found.is_sampled);
        assert_eq!(found.state.as_deref(), Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"));
        assert!(!read(&format!("00-{TRACE}-{SPAN}-00")).unwrap().is_sampled);
        assert!(
            read(&format!("00-{TRACE}-{SPAN}-ff")).unwrap().is_sampled,
            "other flags are others' business"
        );
        assert!(read(&format!("cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like")).is_some());
        for wrong in [
            String::new(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{TRACE}0-{SPAN}-01"),
            format!("00-{TRACE}-+0f067aa0ba902b7-01"),
            format!("00-{TRACE}-{SPAN}-0x"),
        ] {
            assert_eq!(read(&wrong), None, "{wrong}");
        }
        let long = "a=".to_owned() + &"b".repeat(600);
        assert_eq!(Parent::read(&format!("00-{TRACE}-{SPAN}-01"), Some(&long)).unwrap().state, None);
    }
}
