//! Where a stream was cut: the id of each of its events, by which any coordinator goes on from there.
//!
//! Pure. A token is a function of prompt, tokens before it, parameters, seed and numeric identity. So whoever knows those goes on
//! where another one stopped, and no state is kept for it: an id says how far its client had got, with which seed and at
//! which time the template was rendered, and has digests of all the rest, so that another model, cluster or body is noticed
//! before a token of it is told. It is 48 bytes, 64 letters.
//!
//! A token under a bias is a function of that too. Its digest is not enough to compute it: whoever goes on has to know the bias, as
//! the coordinator that began does for a while, and a later life of it that has its data directory.

use model::bias::Bias;

use super::refusal::{Refusal, quote};

/// The header by which clients of server-sent events say what they had last.
pub(super) const HEADER: &str = "last-event-id";
/// The first byte of an id, which says how the others are to be read.
const VERSION: u8 = 1;
/// Of the same byte: experts were left out of what was told, so nobody computes it again.
const LEFT_OUT: u8 = 0x80;
/// Of the same byte: rows choose under a bias, of whose digest the id has the beginning, and less of other digests for that.
const BIASED: u8 = 0x40;
/// Bytes of an id.
const BYTES: usize = 48;
/// Of the choice's byte: the end of this choice was told.
const ENDED: u8 = 0x80;
/// Of the choice's byte: what is told after the last token was told.
const FLUSHED: u8 = 0x40;
/// So many choices have ids; a stream of more is begun anew where it was cut.
pub(super) const CHOICES_MAX: usize = 64;
/// The letters of ids, six bits each.
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// What must be as it was. Each is the beginning of a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Same {
    /// The model's name and configuration.
    pub(super) model: [u8; 5],
    /// Numeric class and shards.
    pub(super) numeric: [u8; 3],
    /// Ids of the prompt.
    pub(super) prompt: [u8; 7],
    /// Parameters that decide over tokens and text.
    pub(super) parameters: [u8; 6],
    /// The bias under which rows choose their experts.
    pub(super) bias: Option<[u8; 4]>,
}

/// The beginning of a bias's digest.
pub(super) fn beginning(bias: &Bias) -> [u8; 4] {
    *bias.digest().0.as_bytes().first_chunk().expect("thirty-two bytes")
}

impl Same {
    /// As an id under a bias has it: the bias's four bytes are taken from three others.
    fn short(&self) -> Self {
        let mut short = *self;
        short.model[4..].fill(0);
        short.prompt[5..].fill(0);
        short.parameters[5..].fill(0);
        short
    }

    /// Refuses to go on with something else, by name.
    pub(super) fn check(&self, then: &Same) -> Result<(), Refusal> {
        let (now, then) = match then.bias {
            Some(_) => (self.short(), then.short()),
            None => (*self, *then),
        };
        let what = match () {
            () if now.model != then.model => {
                ("model", "the model served here is not the one that began this stream")
            }
            () if now.numeric != then.numeric => (
                "identity",
                "the numeric class or the number of shards is not that of the cluster that began this stream",
            ),
            () if now.bias != then.bias => (
                "bias",
                "this stream began under a selection bias (`balance = bias`) that is not known here any more; ask anew, \
                 without `Last-Event-ID`",
            ),
            () if now.parameters != then.parameters => {
                ("parameters", "the parameters are not those with which this stream began")
            }
            () if now.prompt != then.prompt => {
                ("prompt", "the prompt is not the one with which this stream began")
            }
            () => return Ok(()),
        };
        Err(Refusal::conflict(what.0, what.1))
    }
}

/// Refuses what cannot be gone on with; returns the tokens that the client brings along. `now` is of the request, which asks for
/// so many choices.
pub(super) fn check(
    resumed: Option<&EventId>,
    now: &Stream,
    is_stream: bool,
    choices: usize,
    tokens: Option<Vec<u32>>,
) -> Result<Vec<u32>, Refusal> {
    let Some(EventId { stream: then, place }) = resumed else {
        return match tokens {
            None => Ok(Vec::new()),
            Some(_) => {
                let message = "`phalanx.tokens` is the beginning of a stream that is gone on with: send its \
                               `Last-Event-ID` too";
                Err(Refusal::value("phalanx.tokens", message))
            }
        };
    };
    if !is_stream {
        let message =
            "the header `Last-Event-ID` is for streams; send `stream`: true too, or ask anew without it";
        return Err(Refusal::value("Last-Event-ID", message));
    }
    now.same.check(&then.same)?;
    if place.has_left_out {
        let message = "experts without a holder were left out of this stream (`phalanx.on_missing`), so what would be computed \
                       now is another answer; ask anew, without `Last-Event-ID`";
        return Err(Refusal::conflict("phalanx.on_missing", message));
    }
    if now.seed != then.seed || place.choice >= choices {
        let what = if now.seed != then.seed { "seed" } else { "n" };
        let message = format!("`{what}` is not that with which this stream began");
        return Err(Refusal::conflict(what, message));
    }
    let tokens = tokens.unwrap_or_default();
    let mut sum = TokensSum::default();
    tokens.iter().for_each(|id| sum.push(*id));
    if !tokens.is_empty() && (tokens.len() as u64, sum) != (u64::from(place.tokens_count), place.tokens) {
        let message = format!(
            "`phalanx.tokens` are not the {} tokens that were told up to this event; leave them out to have them computed \
             again",
            place.tokens_count
        );
        return Err(Refusal::conflict("phalanx.tokens", message));
    }
    Ok(tokens)
}

/// The beginning of a hash of some parts, none of which can be taken for a piece of another.
pub(super) fn digest<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let hash = hasher.finalize();
    *hash.as_bytes().first_chunk().expect("fewer than 32 bytes")
}

/// The tokens of an answer so far, in four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TokensSum(pub(super) u32);

impl Default for TokensSum {
    fn default() -> Self {
        Self(0x811c_9dc5)
    }
}

impl TokensSum {
    /// Another one. This is FNV-1a: it is to find mistakes, and deceives nobody but who sends it.
    pub(super) fn push(&mut self, id: u32) {
        for byte in id.to_le_bytes() {
            self.0 = (self.0 ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    }
}

/// How far a choice of a stream was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Which choice.
    pub(super) choice: usize,
    /// How many tokens of its answer were told, with all text that they make certain.
    pub(super) tokens_count: u32,
    /// Which those are.
    pub(super) tokens: TokensSum,
    /// Whether text was told that had been held back to the end.
    pub(super) is_flushed: bool,
    /// Whether its end was told.
    pub(super) is_ended: bool,
    /// Whether rows went on without experts that nobody held.
    pub(super) has_left_out: bool,
}

/// What all ids of a stream have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stream {
    /// The seed of the first choice.
    pub(super) seed: u64,
    /// When the prompt was rendered, in seconds since 1970.
    pub(super) time: u64,
    pub(super) same: Same,
}

impl Stream {
    /// From which the names of its calls follow: whoever goes on with it names them alike.
    pub(super) fn calls_seed(&self) -> u64 {
        let Self { seed, time, same: Same { prompt, parameters, .. } } = self;
        u64::from_le_bytes(digest(&[&seed.to_le_bytes(), &time.to_le_bytes(), prompt, parameters]))
    }
}

/// An id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EventId {
    pub(super) stream: Stream,
    pub(super) place: Place,
}

impl EventId {
    /// Its letters.
    pub(super) fn write(&self) -> String {
        let Self { stream: Stream { seed, time, same }, place } = self;
        let mut bytes = Vec::with_capacity(BYTES);
        let flag = |is_so: bool, flag: u8| if is_so { flag } else { 0 };
        bytes.push(VERSION | flag(place.has_left_out, LEFT_OUT) | flag(same.bias.is_some(), BIASED));
        bytes.push(place.choice as u8 | flag(place.is_flushed, FLUSHED) | flag(place.is_ended, ENDED));
        bytes.extend(place.tokens_count.to_le_bytes());
        bytes.extend(place.tokens.0.to_le_bytes());
        bytes.extend(seed.to_le_bytes());
        bytes.extend(&time.to_le_bytes()[..5]);
        match same.bias {
            None => {
                bytes.extend(same.model);
                bytes.extend(same.numeric);
                bytes.extend(same.prompt);
                bytes.extend(same.parameters);
            }
            Some(bias) => {
                bytes.extend(&same.model[..4]);
                bytes.extend(same.numeric);
                bytes.extend(&same.prompt[..5]);
                bytes.extend(&same.parameters[..5]);
                bytes.extend(bias);
            }
        }
        bytes.extend(digest::<4>(&[&bytes]));
        letters(&bytes)
    }

    /// Reads what a client sends back.
    pub(super) fn read(text: &str) -> Result<Self, Refusal> {
        let wrong = || {
            let message = format!(
                "the header `Last-Event-ID` is `{}`, which is no id of one of our events; send the last one as it came, or \
                 leave it out to begin anew",
                quote(text)
            );
            Refusal::value("Last-Event-ID", message)
        };
        let bytes = bytes_of(text.trim()).ok_or_else(wrong)?;
        let (said, sum) = bytes.split_at(BYTES - 4);
        if said[0] & !(LEFT_OUT | BIASED) != VERSION || sum != digest::<4>(&[said]) {
            return Err(wrong());
        }
        let mut rest = &said[2..];
        let place = Place {
            choice: usize::from(said[1] & !(ENDED | FLUSHED)),
            is_ended: said[1] & ENDED != 0,
            is_flushed: said[1] & FLUSHED != 0,
            has_left_out: said[0] & LEFT_OUT != 0,
            tokens_count: u32::from_le_bytes(take(&mut rest)),
            tokens: TokensSum(u32::from_le_bytes(take(&mut rest))),
        };
        let seed = u64::from_le_bytes(take(&mut rest));
        let mut time = [0; 8];
        time[..5].copy_from_slice(&take::<5>(&mut rest));
        let same = match said[0] & BIASED {
            0 => Same {
                model: take(&mut rest),
                numeric: take(&mut rest),
                prompt: take(&mut rest),
                parameters: take(&mut rest),
                bias: None,
            },
            _ => Same {
                model: padded(take::<4>(&mut rest)),
                numeric: take(&mut rest),
                prompt: padded(take::<5>(&mut rest)),
                parameters: padded(take::<5>(&mut rest)),
                bias: Some(take(&mut rest)),
            },
        };
        Ok(Self { stream: Stream { seed, time: u64::from_le_bytes(time), same }, place })
    }
}

/// Base64 as URLs have it. Three bytes are four letters, and an id has a multiple of three.
fn letters(bytes: &[u8]) -> String {
    let four = |three: &[u8]| {
        let bits = three.iter().fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        [18, 12, 6, 0].map(|shift| char::from(LETTERS[bits >> shift & 63]))
    };
    bytes.chunks_exact(3).flat_map(four).collect()
}

fn bytes_of(text: &str) -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    if text.len() != BYTES / 3 * 4 {
        return None;
    }
    for (four, three) in text.as_bytes().chunks_exact(4).zip(bytes.chunks_exact_mut(3)) {
        let mut bits = 0;
        for letter in four {
            bits = bits << 6 | LETTERS.iter().position(|other| other == letter)?;
        }
        three.copy_from_slice(&[(bits >> 16) as u8, (bits >> 8) as u8, bits as u8]);
    }
    Some(bytes)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (first, rest) = bytes.split_first_chunk().expect("an id has so many bytes");
    *bytes = rest;
    *first
}

/// With zeros behind.
fn padded<const N: usize, const M: usize>(bytes: [u8; N]) -> [u8; M] {
    let mut longer = [0; M];
    longer[..N].copy_from_slice(&bytes);
    longer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> EventId {
        let same = Same { model: [1; 5], numeric: [2; 3], prompt: [3; 7], parameters: [4; 6], bias: None };
        let mut tokens = TokensSum::default();
        [7, 70_000].into_iter().for_each(|id| tokens.push(id));
        let place = Place {
            choice: 31,
            tokens_count: 70_000,
            tokens,
            is_flushed: false,
            is_ended: true,
            has_left_out: false,
        };
        EventId { stream: Stream { seed: u64::MAX - 5, time: 1 << 39, same }, place }
    }

    /// What a client sends back is what it was sent, and it may be as long as is said.
    #[test]
    fn an_id_comes_back_as_it_was() {
        let written = id().write();
        assert_eq!(written.len(), 64);
        assert!(written.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        assert_eq!(EventId::read(&written), Ok(id()));
        let lossy = EventId { place: Place { has_left_out: true, ..id().place }, ..id() };
        assert_eq!(EventId::read(&lossy.write()), Ok(lossy));
        let stream = biased(id().stream);
        let written = EventId { stream, ..id() }.write();
        assert_eq!(written.len(), 64);
        let read = EventId::read(&written).unwrap();
        assert_eq!((read.place, read.stream.seed, read.stream.time), (id().place, stream.seed, stream.time));
        assert_eq!(read.stream.same, stream.same.short());
    }

    fn biased(stream: Stream) -> Stream {
        Stream { same: Same { bias: Some([9, 8, 7, 6]), ..stream.same }, ..stream }
    }

    /// Whoever went under a bias goes on under it and nothing else, and whoever went without goes on without.
    #[test]
    fn another_bias_is_named() {
        let (without, under) = (id().stream, biased(id().stream));
        let read = |stream: Stream| EventId::read(&EventId { stream, ..id() }.write()).unwrap();
        assert_eq!(check(Some(&read(under)), &under, true, 32, None), Ok(Vec::new()));
        assert_eq!(check(Some(&read(without)), &without, true, 32, None), Ok(Vec::new()));
        let other = Stream { same: Same { bias: Some([9, 8, 7, 5]), ..under.same }, ..under };
        for (then, now) in [(under, without), (without, under), (under, other)] {
            let refusal = check(Some(&read(then)), &now, true, 32, None).unwrap_err();
            assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (409, Some("bias")));
            assert!(refusal.message.contains("selection bias"), "{}", refusal.message);
        }
        for (now, what) in [
            (Same { model: [0; 5], ..under.same }, "model"),
            (Same { numeric: [0; 3], ..under.same }, "identity"),
            (Same { prompt: [0; 7], ..under.same }, "prompt"),
            (Same { parameters: [0; 6], ..under.same }, "parameters"),
        ] {
            let refusal = now.check(&read(under).stream.same).unwrap_err();
            assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (409, Some(what)));
        }
    }

    /// Nobody knows any more which experts a row went on without.
    #[test]
    fn what_was_told_without_experts_is_not_gone_on_with() {
        let id = id();
        assert_eq!(check(Some(&id), &id.stream, true, 32, None), Ok(Vec::new()));
        let lossy = EventId { place: Place { has_left_out: true, ..id.place }, ..id };
        let refusal = check(Some(&lossy), &id.stream, true, 32, None).unwrap_err();
        assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (409, Some("phalanx.on_missing")));
        assert!(refusal.message.contains("left out of this stream"), "{}", refusal.message);
    }

    /// A letter that is wrong or missing is noticed, whatever it would say.
    #[test]
    fn an_id_that_was_changed_is_refused() {
        let written = id().write();
        for at in 0..written.len() {
            let other = if &written[at..=at] == "A" { "B" } else { "A" };
            let changed = format!("{}{other}{}", &written[..at], &written[at + 1..]);
            let refusal = EventId::read(&changed).unwrap_err();
            assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (400, Some("Last-Event-ID")));
            assert!(EventId::read(&written[..at]).is_err());
        }
        for strange in ["", "7", "é", &"A".repeat(64), &"A".repeat(1000)] {
            assert!(EventId::read(strange).is_err());
        }
    }

    /// Whatever differs is named.
    #[test]
    fn what_differs_is_named() {
        let then = id().stream.same;
        assert_eq!(then.check(&then), Ok(()));
        for (now, what) in [
            (Same { model: [0; 5], ..then }, "model"),
            (Same { numeric: [0; 3], ..then }, "identity"),
            (Same { prompt: [0; 7], ..then }, "prompt"),
            (Same { parameters: [0; 6], ..then }, "parameters"),
        ] {
            let refusal = now.check(&then).unwrap_err();
            assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (409, Some(what)));
        }
        assert_ne!(digest::<8>(&[b"a", b"b"]), digest::<8>(&[b"ab", b""]));
    }
}
