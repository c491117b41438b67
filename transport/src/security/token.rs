//! A join token: what a machine without a certificate is given so that it can get one.
//!
//! Pure but for the random bytes. It holds the fingerprint of the authority, so that the machine knows whom it
//! talks to, and a secret, so that the authority knows whom it lets in. It is text for a command line or an
//! environment file: `phx1.` and base64 of letters that need no quoting. A checksum tells a typing error from a
//! token that is wrong.
//!
//! The authority does not keep the secret, only a key derived from it; see [`Token::proof_key`].

use aws_lc_rs::{hmac, rand};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};

use super::certificate::cluster_of;
use super::{ClusterId, Utc};
use crate::wire::crc::crc32c;

const PREFIX: &str = "phx1.";
const VERSION: u8 = 1;
/// Version, fingerprint, id, secret, expiry, checksum.
const BYTES: usize = 1 + 32 + 8 + 32 + 8 + 4;

/// Bytes that bind a proof to one TLS connection.
pub const EXPORTER_BYTES: usize = 32;
/// The name under which both ends take these bytes from TLS.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-phalanx-enrolment-1";
const DERIVE_LABEL: &[u8] = b"phalanx enrolment key 1";
const PROOF_LABEL: &[u8] = b"phalanx enrolment proof 1";

/// A join token. Whoever has it can join as a node until it expires.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the authority's public key.
    pub authority: [u8; 32],
    /// Which token it is; no secret.
    pub id: [u8; 8],
    /// When it ends, by the authority's clock.
    pub expires: Utc,
    secret: [u8; 32],
}

/// Why a token cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else.
    #[error("this is no join token: it does not begin with `{PREFIX}`; make one with `phalanx certs token`")]
    Prefix,
    /// Letters are missing, too many or wrong.
    #[error("this join token was damaged on its way ({0}); copy it again, whole")]
    Damaged(String),
    /// Made by another version.
    #[error(
        "this join token is of version {0}, this program knows {VERSION}; run the same version on both ends"
    )]
    Version(u8),
    /// Its time is over.
    #[error(
        "join token {id} expired {expires}, the clock here says {now}; make a new one with `phalanx certs token`"
    )]
    Expired {
        /// Which.
        id: String,
        /// When it ended.
        expires: Utc,
        /// Here and now.
        now: Utc,
    },
    /// The authority has none such.
    #[error(
        "the authority knows no join token {0}: it expired long ago, or is another authority's; make a new one with `phalanx certs token`"
    )]
    Unknown(String),
    /// The secret is another.
    #[error("the proof for join token {0} is wrong; copy the token again")]
    WrongProof(String),
    /// It has let in as many as it may.
    #[error("join token {0} has been used as often as it may; make a new one with `phalanx certs token`")]
    UsedUp(String),
    /// Somebody guesses.
    #[error(
        "join token {0} is blocked after too many wrong proofs; make a new one with `phalanx certs token`"
    )]
    Blocked(String),
}

impl Token {
    pub(crate) fn random(authority: [u8; 32], expires: Utc) -> Self {
        let mut token = Self { authority, id: [0; 8], expires, secret: [0; 32] };
        fill_random(&mut token.id);
        fill_random(&mut token.secret);
        token
    }

    /// The cluster that it lets into.
    pub fn cluster(&self) -> ClusterId {
        cluster_of(&self.authority)
    }

    /// Its id, as messages show it.
    pub fn id(&self) -> String {
        HEXLOWER.encode(&self.id)
    }

    /// The token itself, secret and all. Not `Display`, so that no log line prints it by accident.
    pub fn reveal(&self) -> String {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.authority);
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(&self.expires.0.to_le_bytes());
        bytes.extend_from_slice(&crc32c(&bytes).to_le_bytes());
        format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }

    /// Refuses an expired one.
    pub fn check_time(&self, now: Utc) -> Result<(), TokenError> {
        if now <= self.expires {
            return Ok(());
        }
        Err(TokenError::Expired { id: self.id(), expires: self.expires, now })
    }

    /// What proofs are made and checked with. The authority keeps it in the place of the token: it does for checking
    /// proofs, and gives nobody the token back.
    pub(crate) fn proof_key(&self) -> [u8; 32] {
        mac(&self.secret, &[DERIVE_LABEL, &self.id])
    }

    /// Shows that the sender has this token, wants this name, and does so on this connection.
    pub fn prove(&self, exporter: &[u8; EXPORTER_BYTES], name: &str, request: &[u8]) -> [u8; 32] {
        mac(&self.proof_key(), &said(exporter, name, request).each_ref().map(|part| &part[..]))
    }
}

/// What came as a proof, and on which connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Proof<'a> {
    pub id: [u8; 8],
    pub exporter: &'a [u8; EXPORTER_BYTES],
    pub name: &'a str,
    pub request: &'a [u8],
    pub proof: &'a [u8; 32],
}

impl Proof<'_> {
    /// Whether it was made with this key. Takes as long whatever differs.
    pub(crate) fn fits(&self, key: &[u8; 32]) -> bool {
        let parts = said(self.exporter, self.name, self.request);
        let whole = parts.iter().flat_map(|part| part.iter().copied()).collect::<Vec<_>>();
        hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, key), &whole, self.proof).is_ok()
    }
}

/// What a proof speaks of. The name is preceded by its length, so that no letter moves between it and the request.
fn said(exporter: &[u8; EXPORTER_BYTES], name: &str, request: &[u8]) -> [Vec<u8>; 5] {
    let length = (name.len() as u64).to_le_bytes();
    [PROOF_LABEL.to_vec(), exporter.to_vec(), length.to_vec(), name.into(), request.to_vec()]
}

fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    parts.iter().for_each(|part| context.update(part));
    context.sign().as_ref().try_into().expect("HMAC-SHA-256 has 32 bytes")
}

/// Random bytes from the system.
pub(crate) fn fill_random(bytes: &mut [u8]) {
    rand::fill(bytes).expect("the system's source of randomness works, or nothing here is safe");
}

impl std::str::FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let (letters, whole) = (body.chars().count(), BASE64URL_NOPAD.encode_len(BYTES));
        if letters != whole {
            return Err(TokenError::Damaged(format!(
                "it has {letters} letters after the prefix, a whole one {whole}"
            )));
        }
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|why| {
            TokenError::Damaged(format!("letter {} after the prefix is odd", why.position + 1))
        })?;
        let bytes: &[u8; BYTES] =
            bytes.as_slice().try_into().map_err(|_| TokenError::Damaged("its length is odd".into()))?;
        let (body, sum) = bytes.split_last_chunk::<4>().expect("85 bytes");
        if crc32c(body).to_le_bytes() != *sum {
            return Err(TokenError::Damaged("its checksum does not fit".into()));
        }
        if bytes[0] != VERSION {
            return Err(TokenError::Version(bytes[0]));
        }
        let (authority, rest) = bytes[1..].split_first_chunk::<32>().expect("85 bytes");
        let (id, rest) = rest.split_first_chunk::<8>().expect("52 bytes");
        let (secret, rest) = rest.split_first_chunk::<32>().expect("44 bytes");
        let (expires, _) = rest.split_first_chunk::<8>().expect("12 bytes");
        let expires = Utc(i64::from_le_bytes(*expires));
        Ok(Self { authority: *authority, id: *id, secret: *secret, expires })
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the secret.
        formatter.debug_struct("Token").field("id", &self.id()).field("expires", &self.expires).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token::random([7; 32], Utc(2_000_000_000))
    }

    #[test]
    fn a_token_survives_being_copied() {
        let token = token();
        assert_eq!(format!(" {}\n", token.reveal()).parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&token.reveal()[40..60]));
    }

    /// A typing error must not look like a token of another cluster, or a wrong secret.
    #[test]
    fn every_changed_letter_and_every_cut_is_a_typing_error() {
        let text = token().reveal();
        for at in PREFIX.len()..text.len() {
            let other = if text.as_bytes()[at] == b'A' { "B" } else { "A" };
            let mut wrong = text.clone();
            wrong.replace_range(at..=at, other);
            // The last letter has bits to spare, and a change there may be refused as such.
            assert!(matches!(wrong.parse::<Token>(), Err(TokenError::Damaged(_))), "{at}");
            assert!(matches!(text[..at].parse::<Token>(), Err(TokenError::Damaged(_))), "cut at {at}");
        }
        assert!(matches!(format!("{text}A").parse::<Token>(), Err(TokenError::Damaged(_))));
        assert_eq!("hello".parse::<Token>(), Err(TokenError::Prefix));
    }

    /// HMAC-SHA-256 by hand over the parts, from another computation of the same standard.
    #[test]
    fn a_proof_speaks_of_connection_name_and_request() {
        let token = token();
        let (exporter, other) = ([1; 32], [2; 32]);
        let proof = token.prove(&exporter, "a", b"request");
        let fits = |exporter: &[u8; 32], name: &str, request: &[u8], proof: &[u8; 32]| {
            Proof { id: token.id, exporter, name, request, proof }.fits(&token.proof_key())
        };
        assert!(fits(&exporter, "a", b"request", &proof));
        assert!(!fits(&other, "a", b"request", &proof), "another connection");
        assert!(!fits(&exporter, "b", b"request", &proof), "another name");
        assert!(!fits(&exporter, "a", b"Request", &proof), "another key");
        assert!(!fits(&exporter, "ar", b"equest", &proof), "letters moved from one part to the next");
        let mut wrong = proof;
        wrong[31] ^= 1;
        assert!(!fits(&exporter, "a", b"request", &wrong));
    }
}
