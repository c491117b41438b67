//! What an authority remembers: which key has which name until when, and which join tokens are out.
//!
//! Pure: text in, text out, the time an argument. One line for each entry, so that a person can read it:
//!
//! ```text
//! phalanx ledger 1
//! name node rack-3.gpu-0 <SHA-256 of the key> <until, seconds since 1970>
//! token <id> <key of its proofs> <expires> <uses left, or -> <wrong proofs> <replace, or ->
//! ```

use std::collections::BTreeMap;
use std::fmt::Write;

use data_encoding::HEXLOWER;

use super::token::{Proof, TokenError};
use super::{ClusterId, PeerName, Role, SecurityError, Utc, check_name};

const FIRST_LINE: &str = "phalanx ledger 1";
/// Names that are held at once: four clusters of the reference plan.
const NAMES_MAX: usize = 16_384;
/// Tokens that are out at once.
const TOKENS_MAX: usize = 1_024;
/// Wrong proofs after which a token is blocked. Only who knows its id can make one, so this locks nobody else out.
pub(crate) const FAILURES_MAX: u32 = 16;
/// How long an expired token is remembered, so that whoever comes late is told why.
const EXPIRED_KEPT: std::time::Duration = std::time::Duration::from_secs(86_400);

/// The key that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub key_sha256: [u8; 32],
    /// Last second of the certificate.
    pub until: Utc,
}

/// A token that is out. Not the token itself: proofs can be checked with this, not made anew from a printed copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenRow {
    pub id: [u8; 8],
    pub key: [u8; 32],
    pub expires: Utc,
    pub uses_left: Option<u32>,
    pub failures: u32,
    pub replace: bool,
}

/// What an authority remembers, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// Who has a certificate, until when.
    pub names: Vec<(PeerName, Utc)>,
    /// Which join tokens are out, some just expired.
    pub tokens: Vec<TokenState>,
}

/// A join token that is out, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenState {
    /// Which.
    pub id: String,
    /// Its end.
    pub expires: Utc,
    /// How many may still join with it; `None` for any number.
    pub uses_left: Option<u32>,
    /// Whether it may take names that other keys have.
    pub replace: bool,
    /// Whether wrong proofs have blocked it.
    pub blocked: bool,
}

/// Both lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// By role and name, as written.
    names: BTreeMap<(String, String), Held>,
    tokens: BTreeMap<[u8; 8], TokenRow>,
}

impl Ledger {
    /// Reads what [`Ledger::write`] wrote; nothing at all is an empty one.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let mut ledger = Self::default();
        let mut lines = text.lines().enumerate();
        match lines.next() {
            None => return Ok(ledger),
            Some((_, FIRST_LINE)) => {}
            Some((_, other)) => {
                return Err(format!("line 1 is {:?}, expected {FIRST_LINE:?}", shortened(other)));
            }
        }
        for (index, line) in lines {
            ledger
                .read_line(line)
                .ok_or_else(|| format!("line {} cannot be read: {:?}", index + 1, shortened(line)))?;
        }
        Ok(ledger)
    }

    fn read_line(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["name", role, name, key, until] => {
                let _: Role = role.parse().ok()?;
                check_name(name).ok()?;
                let held = Held { key_sha256: hex(key)?, until: Utc(until.parse().ok()?) };
                self.names.insert((role.into(), name.into()), held);
            }
            ["token", id, key, expires, uses, failures, replace] => {
                let row = TokenRow {
                    id: hex(id)?,
                    key: hex(key)?,
                    expires: Utc(expires.parse().ok()?),
                    uses_left: if uses == "-" { None } else { Some(uses.parse().ok()?) },
                    failures: failures.parse().ok()?,
                    replace: match replace {
                        "replace" => true,
                        "-" => false,
                        _ => return None,
                    },
                };
                self.tokens.insert(row.id, row);
            }
            _ => return None,
        }
        Some(())
    }

    /// As the file has it; nothing for an empty one.
    pub(crate) fn write(&self) -> String {
        let mut text = String::new();
        if self.names.is_empty() && self.tokens.is_empty() {
            return text;
        }
        let mut line = |words: std::fmt::Arguments<'_>| {
            text.write_fmt(words).expect("a string takes everything");
            text.push('\n');
        };
        line(format_args!("{FIRST_LINE}"));
        for ((role, name), held) in &self.names {
            let key = HEXLOWER.encode(&held.key_sha256);
            line(format_args!("name {role} {name} {key} {}", held.until.0));
        }
        for row in self.tokens.values() {
            let (id, key) = (HEXLOWER.encode(&row.id), HEXLOWER.encode(&row.key));
            let uses = row.uses_left.map_or("-".into(), |uses| uses.to_string());
            let replace = if row.replace { "replace" } else { "-" };
            let (expires, failures) = (row.expires.0, row.failures);
            line(format_args!("token {id} {key} {expires} {uses} {failures} {replace}"));
        }
        text
    }

    /// For people: who has a name, and which tokens are out.
    pub(crate) fn overview(&self, cluster: ClusterId) -> Overview {
        let name = |((role, name), held): (&(String, String), &Held)| {
            let role = role.parse().expect("read and written as a role");
            (PeerName { cluster, role, name: name.clone() }, held.until)
        };
        let token = |row: &TokenRow| TokenState {
            id: HEXLOWER.encode(&row.id),
            expires: row.expires,
            uses_left: row.uses_left,
            replace: row.replace,
            blocked: row.failures >= FAILURES_MAX,
        };
        Overview {
            names: self.names.iter().map(name).collect(),
            tokens: self.tokens.values().map(token).collect(),
        }
    }

    /// Forgets names whose certificates are over, and tokens some time after their end.
    pub(crate) fn prune(&mut self, now: Utc) {
        self.names.retain(|_, held| held.until >= now);
        self.tokens.retain(|_, row| row.expires.plus(EXPIRED_KEPT) >= now);
    }

    /// Gives a name to a key; refused while another key has it, unless that one is to be replaced.
    pub(crate) fn take_name(
        &mut self,
        peer: &PeerName,
        held: Held,
        replace: bool,
        now: Utc,
    ) -> Result<(), SecurityError> {
        let place = (peer.role.to_string(), peer.name.clone());
        let until = match self.names.get(&place) {
            Some(old) if old.key_sha256 == held.key_sha256 => old.until.max(held.until),
            Some(old) if old.until >= now && !replace => {
                return Err(SecurityError::NameHeld { peer: peer.clone(), until: old.until });
            }
            Some(_) => held.until,
            None if self.names.len() >= NAMES_MAX => {
                let count = self.names.len();
                return Err(SecurityError::Full { what: "names", count, max: NAMES_MAX });
            }
            None => held.until,
        };
        self.names.insert(place, Held { until, ..held });
        Ok(())
    }

    /// Remembers a token.
    pub(crate) fn insert_token(&mut self, row: TokenRow) -> Result<(), SecurityError> {
        if self.tokens.len() >= TOKENS_MAX {
            let count = self.tokens.len();
            return Err(SecurityError::Full { what: "tokens", count, max: TOKENS_MAX });
        }
        self.tokens.insert(row.id, row);
        Ok(())
    }

    /// Whether a proof is right and its token can still be used; says whether it may replace. A wrong one is counted.
    pub(crate) fn check_proof(&mut self, proof: &Proof<'_>, now: Utc) -> Result<bool, TokenError> {
        let id = || HEXLOWER.encode(&proof.id);
        let row = self.tokens.get_mut(&proof.id).ok_or_else(|| TokenError::Unknown(id()))?;
        if row.failures >= FAILURES_MAX {
            return Err(TokenError::Blocked(id()));
        }
        if !proof.fits(&row.key) {
            row.failures += 1;
            return Err(TokenError::WrongProof(id()));
        }
        if now > row.expires {
            return Err(TokenError::Expired { id: id(), expires: row.expires, now });
        }
        if row.uses_left == Some(0) {
            return Err(TokenError::UsedUp(id()));
        }
        Ok(row.replace)
    }

    /// Counts one use of a token whose proof was checked.
    pub(crate) fn use_up(&mut self, id: [u8; 8]) {
        if let Some(TokenRow { uses_left: Some(left), .. }) = self.tokens.get_mut(&id) {
            *left = left.saturating_sub(1);
        }
    }
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// Enough of a line to find it, and not a whole key in a message.
fn shortened(line: &str) -> String {
    line.chars().take(24).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Utc = Utc(1_800_000_000);

    fn peer(name: &str) -> PeerName {
        PeerName::new(ClusterId([1; 16]), Role::Node, name).unwrap()
    }

    fn held(key: u8, until: i64) -> Held {
        Held { key_sha256: [key; 32], until: Utc(NOW.0 + until) }
    }

    fn row(uses_left: Option<u32>) -> TokenRow {
        TokenRow { id: [5; 8], key: [6; 32], expires: NOW, uses_left, failures: 0, replace: true }
    }

    #[test]
    fn a_ledger_survives_its_file() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.write(), "");
        ledger.take_name(&peer("a"), held(1, 5), false, NOW).unwrap();
        ledger.insert_token(row(Some(3))).unwrap();
        ledger.insert_token(TokenRow { id: [9; 8], replace: false, ..row(None) }).unwrap();
        assert_eq!(Ledger::read(&ledger.write()), Ok(ledger));
    }

    #[test]
    fn a_damaged_line_is_named() {
        let mut ledger = Ledger::default();
        ledger.insert_token(row(None)).unwrap();
        let text = ledger.write();
        assert!(Ledger::read("something").unwrap_err().contains("line 1"));
        assert!(Ledger::read(&text.replace("replace", "perhaps")).unwrap_err().contains("line 2"));
        assert!(Ledger::read(&text[..text.len() - 12]).unwrap_err().contains("line 2"));
    }

    #[test]
    fn a_name_belongs_to_one_key_while_its_certificate_lives() {
        let mut ledger = Ledger::default();
        ledger.take_name(&peer("a"), held(1, 100), false, NOW).unwrap();
        ledger.take_name(&peer("a"), held(1, 200), false, NOW).expect("the same key renews");
        let refused = ledger.take_name(&peer("a"), held(2, 300), false, NOW);
        assert!(matches!(refused, Err(SecurityError::NameHeld { until, .. }) if until == Utc(NOW.0 + 200)));
        let later = Utc(NOW.0 + 201);
        ledger.take_name(&peer("a"), held(2, 300), false, later).expect("the other has expired");
        ledger.take_name(&peer("a"), held(3, 300), true, later).expect("it is to be replaced");
        assert!(ledger.take_name(&peer("a"), held(2, 300), false, later).is_err(), "it was replaced");
        ledger.prune(Utc(NOW.0 + 301));
        assert_eq!(ledger, Ledger::default());
    }

    #[test]
    fn the_lists_are_bounded() {
        let mut ledger = Ledger::default();
        for index in 0..NAMES_MAX {
            ledger.take_name(&peer(&index.to_string()), held(1, 1), false, NOW).unwrap();
        }
        assert!(matches!(
            ledger.take_name(&peer("more"), held(1, 1), false, NOW),
            Err(SecurityError::Full { max: NAMES_MAX, .. })
        ));
        ledger.take_name(&peer("7"), held(1, 9), false, NOW).expect("it is there already");
        assert!(ledger.write().len() < 4 << 20, "the file can be read again");
    }
}
