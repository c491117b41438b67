//! API keys: who may ask, and how much at once.
//!
//! Pure: the file's text, the mode and the time are arguments. A key is kept as its digest alone and compared with all of
//! them in a time that does not depend on it; messages name lines and names, never keys.
//!
//! A key's `tokens-per-minute` is a bucket that fills again evenly: a request is taken while something is in it, its prompt
//! and the tokens of its answer are taken out as they come, and what that is beyond the bucket is waited for by the next.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode, header};

use super::refusal::Refusal;
use crate::data::request::Event;

/// The most keys of a file. Each request is compared with all of them.
const KEYS_MAX: usize = 1024;
/// So long is a key: shorter ones are guessed, longer ones no header needs.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 16..=256;
/// Bits of a file's mode that let others than its owner read it.
const OTHERS: u32 = 0o077;

/// What is wrong with a file of keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// A line of it.
    #[error("line {line}: {why}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// It has none: nobody could ask.
    #[error("it has no key; write one on a line, at least {} letters, for example from `openssl rand -hex 24`", KEY_BYTES.start())]
    Empty,
    /// It has too many.
    #[error("it has more than {KEYS_MAX} keys")]
    Many,
}

/// All keys.
#[derive(Debug)]
pub struct Keys(Vec<(blake3::Hash, Arc<Key>)>);

/// What is known of a key, and what it is doing.
pub(super) struct Key {
    name: String,
    requests_max: Option<u32>,
    running: AtomicU32,
    bucket: Option<Mutex<Bucket>>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key").field(&self.name).finish()
    }
}

impl Keys {
    /// Reads a file: a key on each line, and behind it what it is called and may do. `now` is when buckets are full.
    pub fn read(text: &str, now: Instant) -> Result<Self, KeysError> {
        let mut keys: Vec<(blake3::Hash, Arc<Key>)> = Vec::new();
        let mut names = BTreeSet::new();
        for (index, line) in text.lines().enumerate() {
            let mut words = line.split_whitespace();
            let Some(secret) = words.next().filter(|word| !word.starts_with('#')) else { continue };
            let wrong = |why: &str| KeysError::Line { line: index + 1, why: why.to_owned() };
            if !KEY_BYTES.contains(&secret.len()) || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
                let (least, most) = KEY_BYTES.into_inner();
                return Err(wrong(&format!(
                    "a key is {least} to {most} letters, digits and signs, without spaces"
                )));
            }
            let digest = blake3::hash(secret.as_bytes());
            let key = Key::read(index + 1, words, now).map_err(|why| wrong(&why))?;
            if keys.iter().any(|(other, _)| *other == digest) {
                return Err(wrong("this key is on an earlier line too"));
            }
            if !names.insert(key.name.clone()) {
                return Err(wrong(&format!("another key has the name {}", key.name)));
            }
            keys.push((digest, Arc::new(key)));
            if keys.len() > KEYS_MAX {
                return Err(KeysError::Many);
            }
        }
        if keys.is_empty() { Err(KeysError::Empty) } else { Ok(Self(keys)) }
    }

    /// Whose request it is.
    pub(super) fn find(&self, headers: &HeaderMap) -> Result<Arc<Key>, Refusal> {
        let refuse = |message: &str| Refusal::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message);
        let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let bearer = given.and_then(|value| {
            let (scheme, key) = value.split_at_checked("Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
        });
        let Some(given) = bearer else {
            return Err(refuse("this server wants an API key: send the header `Authorization: Bearer KEY`"));
        };
        let given = blake3::hash(given.trim_ascii());
        // Digests are compared in constant time, and with all keys, so that time tells nothing of any.
        let found =
            self.0.iter().fold(None, |found, (digest, key)| if *digest == given { Some(key) } else { found });
        found.cloned().ok_or_else(|| refuse("this API key is not known here"))
    }
}

impl Key {
    fn read<'a>(line: usize, words: impl Iterator<Item = &'a str>, now: Instant) -> Result<Self, String> {
        let mut key = Self {
            name: format!("line-{line}"),
            requests_max: None,
            running: AtomicU32::new(0),
            bucket: None,
        };
        let mut said = BTreeSet::new();
        for word in words {
            const KNOWN: &str = "name=NAME, requests=N, tokens-per-minute=N";
            let Some((what, value)) = word.split_once('=') else {
                return Err(format!("what follows a key is {KNOWN}"));
            };
            let number = || match value.parse::<u32>() {
                Ok(number @ 1..) => Ok(number),
                _ => Err(format!("{what} should be a whole number of at least 1")),
            };
            match what {
                "name" if value.is_empty() => return Err("name is empty".into()),
                "name" => key.name = value.to_owned(),
                "requests" => key.requests_max = Some(number()?),
                "tokens-per-minute" => key.bucket = Some(Mutex::new(Bucket::new(number()?, now))),
                _ => return Err(format!("what follows a key is {KNOWN}")),
            }
            if !said.insert(what) {
                return Err(format!("{what} is said twice"));
            }
        }
        Ok(key)
    }

    fn bucket(&self) -> Option<std::sync::MutexGuard<'_, Bucket>> {
        self.bucket.as_ref().map(|bucket| bucket.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a request of a key may take; of nobody's request, anything. As long as it or a clone lives the request counts as
/// under way.
#[derive(Debug, Clone, Default)]
pub(super) struct Allowance(Option<Arc<Running>>);

#[derive(Debug)]
struct Running(Arc<Key>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Allowance {
    /// A request comes.
    pub(super) fn begin(key: Option<&Arc<Key>>, now: Instant) -> Result<Self, Refusal> {
        let Some(key) = key else { return Ok(Self::default()) };
        let refuse = |message: String, after: Duration| {
            let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
            refusal.retry_after(after)
        };
        // Counted before it is looked at: of two that come at once only one gets the last place.
        let before = key.running.fetch_add(1, Ordering::Relaxed);
        let running = Running(Arc::clone(key));
        if let Some(most) = key.requests_max.filter(|most| before >= *most) {
            let message =
                format!("this API key may have {most} requests under way, and has; try again later");
            return Err(refuse(message, Duration::from_secs(1)));
        }
        if let Some(mut bucket) = key.bucket()
            && let Some(wait) = bucket.wait(now)
        {
            let message = format!(
                "this API key may take {} tokens a minute, and has; try again in {} s",
                bucket.per_minute,
                wait.as_secs_f64().ceil()
            );
            return Err(refuse(message, wait));
        }
        Ok(Self(Some(Arc::new(running))))
    }

    /// It takes tokens.
    pub(super) fn take(&self, tokens: usize, now: Instant) {
        if let Some(mut bucket) = self.0.as_ref().and_then(|running| running.0.bucket()) {
            bucket.take(tokens, now);
        }
    }

    /// It takes what it is told of.
    pub(super) fn handle_event(&self, event: &Event, now: Instant) {
        if matches!(event, Event::Step { token: Some(_), .. }) {
            self.take(1, now);
        }
    }
}

/// Tokens that may still be taken.
#[derive(Debug)]
struct Bucket {
    per_minute: u32,
    /// Below zero where more was taken than there was.
    level: f64,
    at: Instant,
}

impl Bucket {
    fn new(per_minute: u32, now: Instant) -> Self {
        Self { per_minute, level: f64::from(per_minute), at: now }
    }

    fn per_second(&self) -> f64 {
        f64::from(self.per_minute) / 60.0
    }

    fn fill(&mut self, now: Instant) {
        let filled = self.per_second() * now.duration_since(self.at).as_secs_f64();
        self.level = (self.level + filled).min(f64::from(self.per_minute));
        self.at = now;
    }

    fn take(&mut self, tokens: usize, now: Instant) {
        self.fill(now);
        self.level -= tokens as f64;
    }

    /// How long until a token may be taken, unless one may now.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.fill(now);
        let missing = 1.0 - self.level;
        (missing > 0.0).then(|| Duration::from_secs_f64(missing / self.per_second()))
    }
}

/// Whether others than the owner of a file with this mode may read it.
pub fn is_shown(mode: u32) -> bool {
    mode & OTHERS != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbb";

    fn keys(text: &str) -> Result<Keys, KeysError> {
        Keys::read(text, Instant::now())
    }

    fn find(keys: &Keys, authorization: &str) -> Result<Arc<Key>, Refusal> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
        keys.find(&headers)
    }

    #[test]
    fn a_file_has_a_key_on_each_line() {
        let text = format!("# ours\n\n  {A} name=alice requests=2 tokens-per-minute=600\r\n{B}\n");
        let keys = keys(&text).unwrap();
        let key = find(&keys, &format!("Bearer {A}")).unwrap();
        assert_eq!((key.name.as_str(), key.requests_max), ("alice", Some(2)));
        assert_eq!(find(&keys, &format!("bearer  {B} ")).unwrap().name, "line-4");
        assert!(!format!("{keys:?}").contains("aaaa"), "a key is not shown");
    }

    /// Messages go to a log and to a terminal: what they say of a key must not be the key.
    #[test]
    fn what_is_wrong_with_a_file_is_said_without_keys() {
        let many: String = (0..=KEYS_MAX).map(|number| format!("{A}{number}\n")).collect();
        for (text, says) in [
            (String::new(), "no key"),
            ("# nothing".into(), "no key"),
            ("short".into(), "line 1: a key is 16 to 256"),
            (format!("{A}\n{}", "x".repeat(257)), "line 2: a key is"),
            (format!("{A}é{A}"), "line 1: a key is"),
            (format!("{A}\n{A}"), "line 2: this key is on an earlier line"),
            (format!("{A} name=x\n{B} name=x"), "line 2: another key has the name x"),
            (format!("{A} alice"), "name=NAME"),
            (format!("{A} colour=red"), "name=NAME"),
            (format!("{A} name="), "name is empty"),
            (format!("{A} requests=0"), "requests should be"),
            (format!("{A} tokens-per-minute=-1"), "tokens-per-minute should be"),
            (format!("{A} requests=1 requests=2"), "said twice"),
            (many, "more than 1024"),
        ] {
            let message = keys(&text).unwrap_err().to_string();
            assert!(message.contains(says) && !message.contains("aaaa"), "{says}: {message}");
        }
    }

    #[test]
    fn who_has_no_key_is_told_what_is_wanted() {
        let keys = keys(A).unwrap();
        let short = &A[..19];
        for header in
            ["", "Bearer", "Bearer ", "Basic eDp4", &format!("Bearer {B}"), &format!("Bearer {short}")]
        {
            let refusal = find(&keys, header).unwrap_err();
            assert_eq!((refusal.status.as_u16(), refusal.code), (401, "invalid_api_key"), "{header}");
        }
        assert_eq!(keys.find(&HeaderMap::new()).unwrap_err().status.as_u16(), 401);
    }

    #[test]
    fn requests_under_way_are_counted_until_they_end() {
        let keys = keys(&format!("{A} requests=2")).unwrap();
        let (key, now) = (find(&keys, &format!("Bearer {A}")).unwrap(), Instant::now());
        let begin = || Allowance::begin(Some(&key), now);
        let first = begin().unwrap();
        let (second, shared) = (begin().unwrap(), first.clone());
        for _ in 0..3 {
            let refusal = begin().unwrap_err();
            assert_eq!((refusal.status.as_u16(), refusal.code), (429, "rate_limit_exceeded"));
        }
        drop(first);
        assert!(begin().is_err(), "a part of it still runs");
        drop(shared);
        let third = begin().unwrap();
        assert!(begin().is_err());
        drop((second, third));
        assert_eq!(key.running.load(Ordering::Relaxed), 0);
        assert!(Allowance::begin(None, now).is_ok());
    }

    /// What is taken beyond a minute's tokens is waited for, and no more is saved than a minute's.
    #[test]
    fn tokens_come_back_evenly() {
        let start = Instant::now();
        let keys = Keys::read(&format!("{A} tokens-per-minute=60"), start).unwrap();
        let key = find(&keys, &format!("Bearer {A}")).unwrap();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let begin = |seconds: u64| Allowance::begin(Some(&key), after(seconds));
        let first = begin(0).unwrap();
        first.take(59, after(0));
        begin(0).unwrap().take(21, after(0));
        let refusal = begin(1).unwrap_err();
        assert_eq!((refusal.status.as_u16(), refusal.retry_after), (429, Some(Duration::from_secs(20))));
        assert!(begin(20).is_err());
        assert!(begin(21).is_ok());
        let late = begin(100_000).unwrap();
        late.take(60, after(100_000));
        assert!(begin(100_000).is_err(), "a minute's tokens and no more are saved");
        assert!(begin(100_001).is_ok());
    }

    #[test]
    fn a_file_that_others_read_is_noticed() {
        assert!(!is_shown(0o100600) && !is_shown(0o400));
        assert!(is_shown(0o644) && is_shown(0o640) && is_shown(0o604));
    }
}
