//! `phalanx certs`: makes a cluster's authority, certificates of peers and join tokens, and shows them.
//!
//! Only `token` prints something secret, alone on standard output, so that it can be piped; everything about it
//! goes to standard error. No command ever prints a private key.

use std::fmt::Write;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use transport::security::{
    Authority, Credentials, Facts, Issuance, NewToken, Role, Token, Utc, authority, check_name, credentials,
    others_may_read,
};

use crate::Failure;
use crate::output::show;

/// Make a cluster's authority, certificates of peers and join tokens, and look at them.
///
/// A cluster is everybody who holds a certificate of one authority. Make the authority once, keep its folder
/// where the coordinator runs, issue the coordinator's certificate, and give nodes either certificates
/// of their own (`issue`) or a join token (`token`), with which they get one by themselves.
#[derive(Debug, Subcommand)]
pub(crate) enum Certs {
    /// Make a new cluster authority: a key and its certificate, valid for ten years.
    Init(Init),
    /// Make a key and a certificate for one peer.
    Issue(Issue),
    /// Make a join token: whoever has it can join as a node until it expires.
    Token(MakeToken),
    /// Show what an authority, a certificate or a join token says.
    Show(Show),
}

/// Make a new cluster authority.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Folder for it, new or empty. Default: phalanx/authority in $XDG_CONFIG_HOME, or in ~/.config.
    dir: Option<PathBuf>,
}

/// Which authority.
#[derive(Debug, Args)]
struct WhichAuthority {
    /// Folder of the authority. Default: phalanx/authority in $XDG_CONFIG_HOME, or in ~/.config.
    #[arg(long, value_name = "DIR")]
    authority: Option<PathBuf>,
}

/// Make a key and a certificate for one peer.
#[derive(Debug, Args)]
pub(crate) struct Issue {
    /// Its name: letters, digits, `-`, `_` and `.`, at most 63, no two alike in a role.
    name: String,

    /// What it is in the cluster.
    #[arg(long)]
    role: RoleArgument,

    /// Folder for peer.crt, peer.key and authority.crt; none of them may be there.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// How long it is valid, for example 90d or 12h; no longer than the authority.
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = span)]
    valid: Duration,

    /// Take the name even if another key has a certificate for it. The other is not renewed any more, and works
    /// until it expires.
    #[arg(long)]
    replace: bool,

    #[command(flatten)]
    authority: WhichAuthority,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleArgument {
    /// Owns requests; may enrol nodes.
    Coordinator,
    /// Owns devices.
    Node,
}

/// Make a join token.
#[derive(Debug, Args)]
pub(crate) struct MakeToken {
    /// How long nodes can join with it, for example 1h or 2d.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = span)]
    valid: Duration,

    /// How many nodes can join with it. Default: as many as come while it is valid.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    uses: Option<u32>,

    /// Nodes that join with it may take names for which other keys have certificates.
    #[arg(long)]
    replace: bool,

    #[command(flatten)]
    authority: WhichAuthority,
}

/// Show what an authority, a certificate or a join token says.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// A folder of an authority or of a peer, a certificate in PEM, a join token, or `-` for a join token from
    /// standard input. Default: the authority in its default folder.
    what: Option<PathBuf>,

    /// One JSON object.
    #[arg(long)]
    json: bool,
}

impl Certs {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let now = Utc::now();
        match self {
            Self::Init(command) => command.run(now),
            Self::Issue(command) => command.run(now),
            Self::Token(command) => command.run(now),
            Self::Show(command) => command.run(now),
        }
    }
}

impl Init {
    fn run(&self, now: Utc) -> Result<(), Failure> {
        let dir = folder(self.dir.as_deref())?;
        let made = Authority::create(&dir, now)?;
        show(&format!(
            "made the authority of cluster {} in {}\n{}keep {} secret, and a copy of the folder in a safe place\n",
            made.cluster(),
            dir.display(),
            facts_text(made.facts(), now),
            dir.join(authority::KEY_FILE).display(),
        ))
    }
}

impl Issue {
    fn run(&self, now: Utc) -> Result<(), Failure> {
        check_name(&self.name)?;
        let authority = self.authority.open(now)?;
        let role = match self.role {
            RoleArgument::Coordinator => Role::Coordinator,
            RoleArgument::Node => Role::Node,
        };
        let what = Issuance { name: &self.name, role, life: self.valid, replace: self.replace };
        let issued = authority.issue_into(&self.out, what, now)?;
        show(&format!(
            "issued {} of cluster {} into {}\n{}",
            issued.peer(),
            issued.peer().cluster,
            self.out.display(),
            facts_text(issued.facts(), now),
        ))
    }
}

impl MakeToken {
    fn run(&self, now: Utc) -> Result<(), Failure> {
        let authority = self.authority.open(now)?;
        let what = NewToken { life: self.valid, uses: self.uses, replace: self.replace };
        let token = authority.new_token(what, now)?;
        eprintln!(
            "join token {} of cluster {}: expires {} ({}), {}",
            token.id(),
            token.cluster(),
            token.expires,
            token.expires.seen_from(now),
            uses_text(self.uses),
        );
        show(&format!("{}\n", token.reveal()))
    }
}

impl Show {
    fn run(&self, now: Utc) -> Result<(), Failure> {
        let what = match &self.what {
            Some(what) => what.clone(),
            None => folder(None)?,
        };
        let (text, value) = match what.to_str() {
            Some("-") => {
                let mut text = String::new();
                // A token is 119 letters; whatever is much longer is none.
                std::io::stdin()
                    .take(4096)
                    .read_to_string(&mut text)
                    .map_err(|why| format!("standard input cannot be read: {why}"))?;
                of_token(&text.parse()?, now)
            }
            Some(text) if text.starts_with("phx1.") => of_token(&text.parse()?, now),
            _ => of_path(&what, now)?,
        };
        show(&if self.json { format!("{value:#}\n") } else { text })
    }
}

impl WhichAuthority {
    fn open(&self, now: Utc) -> Result<Authority, Failure> {
        let dir = folder(self.authority.as_deref())?;
        if !dir.join(authority::CERTIFICATE_FILE).exists() && !dir.join(authority::KEY_FILE).exists() {
            return Err(format!(
                "no authority in {}; make one with `phalanx certs init`, or name its folder with --authority",
                dir.display()
            )
            .into());
        }
        let authority = Authority::open(&dir)?;
        warn(authority.warning(now));
        warn(key_warning(&dir.join(authority::KEY_FILE)));
        Ok(authority)
    }
}

/// The authority's folder.
fn folder(named: Option<&Path>) -> Result<PathBuf, Failure> {
    match named {
        Some(dir) => Ok(dir.into()),
        None => match crate::config_folder() {
            Some(config) => Ok(config.join("authority")),
            None => Err("neither XDG_CONFIG_HOME nor HOME is set; name the folder of the authority".into()),
        },
    }
}

fn warn(what: Option<String>) {
    if let Some(what) = what {
        eprintln!("warning: {what}");
    }
}

fn key_warning(path: &Path) -> Option<String> {
    others_may_read(path).map(|mode| {
        let path = path.display();
        format!("others may read {path} (mode {mode:04o}); make it yours alone with `chmod 600 {path}`")
    })
}

fn of_path(path: &Path, now: Utc) -> Result<(String, Value), Failure> {
    let holds = |file: &str| path.join(file).exists();
    if !path.is_dir() {
        let all = Facts::read(path)?;
        let texts: Vec<String> = all.iter().map(|facts| certificate_text(facts, now)).collect();
        let values: Vec<Value> = all.iter().map(|facts| facts_json(facts, now)).collect();
        return Ok((texts.join("\n"), json!({ "kind": "certificates", "certificates": values })));
    }
    if holds(authority::KEY_FILE) {
        return of_authority(path, now);
    }
    if holds(credentials::CERTIFICATE_FILE) || holds(credentials::KEY_FILE) {
        let peer = Credentials::load(path)?;
        warn(key_warning(&path.join(credentials::KEY_FILE)));
        let mut text = certificate_text(peer.facts(), now);
        let renew = peer.renew_at();
        writeln!(text, "  renewed      from {renew} on ({})", renew.seen_from(now))?;
        let end = peer.authority_facts().not_after;
        writeln!(text, "  authority    until {end} ({})", end.seen_from(now))?;
        let mut value = facts_json(peer.facts(), now);
        value["renew_at"] = json!(renew.0);
        value["authority_not_after"] = json!(end.0);
        return Ok((text, value));
    }
    if holds(authority::CERTIFICATE_FILE) {
        return of_path(&path.join(authority::CERTIFICATE_FILE), now);
    }
    Err(format!(
        "{} holds neither an authority nor a peer's certificate; make one with `phalanx certs init` or `phalanx certs issue`",
        path.display()
    )
    .into())
}

fn of_authority(path: &Path, now: Utc) -> Result<(String, Value), Failure> {
    let authority = Authority::open(path)?;
    warn(authority.warning(now));
    warn(key_warning(&path.join(authority::KEY_FILE)));
    let overview = authority.overview(now)?;
    let mut text = certificate_text(authority.facts(), now);
    for (peer, until) in &overview.names {
        writeln!(text, "  certificate  {peer} until {until} ({})", until.seen_from(now))?;
    }
    for token in &overview.tokens {
        let (id, expires) = (&token.id, token.expires);
        let verb = if expires < now { "expired" } else { "expires" };
        let uses = uses_text(token.uses_left);
        let blocked = if token.blocked { ", blocked after wrong proofs" } else { "" };
        writeln!(text, "  join token   {id} {verb} {expires} ({}), {uses}{blocked}", expires.seen_from(now))?;
    }
    let mut value = facts_json(authority.facts(), now);
    value["certificates"] = (overview.names.iter())
        .map(
            |(peer, until)| json!({ "role": peer.role.to_string(), "name": peer.name, "not_after": until.0 }),
        )
        .collect();
    value["tokens"] = (overview.tokens.iter())
        .map(|token| {
            json!({
                "id": token.id,
                "expires": token.expires.0,
                "uses_left": token.uses_left,
                "replace": token.replace,
                "blocked": token.blocked,
            })
        })
        .collect();
    Ok((text, value))
}

fn of_token(token: &Token, now: Utc) -> (String, Value) {
    let verb = if token.expires < now { "expired" } else { "expires" };
    let authority: String = token.authority.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = format!(
        "join token {} of cluster {}\n  authority    SHA-256 {authority}\n  {verb}      {} ({})\n",
        token.id(),
        token.cluster(),
        token.expires,
        token.expires.seen_from(now),
    );
    let value = json!({
        "kind": "token",
        "id": token.id(),
        "cluster": token.cluster().to_string(),
        "authority_sha256": authority,
        "expires": token.expires.0,
        "expired": token.expires < now,
    });
    (text, value)
}

fn uses_text(uses: Option<u32>) -> String {
    match uses {
        None => "for any number of nodes".into(),
        Some(1) => "for 1 node".into(),
        Some(uses) => format!("for {uses} nodes"),
    }
}

fn certificate_text(facts: &Facts, now: Utc) -> String {
    let title = match &facts.peer {
        Some(peer) => format!("{peer} of cluster {}", peer.cluster),
        None if facts.is_authority => format!("authority of cluster {}", facts.cluster()),
        None => "a certificate that names no peer".into(),
    };
    format!("{title}\n{}", facts_text(facts, now))
}

fn facts_text(facts: &Facts, now: Utc) -> String {
    let (from, until) = (facts.not_before, facts.not_after);
    let state = if now < from {
        "NOT YET VALID, "
    } else if now > until {
        "EXPIRED "
    } else {
        ""
    };
    let seen = if now < from { from } else { until }.seen_from(now);
    format!("  fingerprint  SHA-256 {}\n  valid        {from} until {until} ({state}{seen})\n", hex(facts))
}

fn facts_json(facts: &Facts, now: Utc) -> Value {
    let kind = match &facts.peer {
        Some(_) => "peer",
        None if facts.is_authority => "authority",
        None => "other",
    };
    let cluster = match &facts.peer {
        Some(peer) => Some(peer.cluster),
        None => facts.is_authority.then(|| facts.cluster()),
    };
    json!({
        "kind": kind,
        "cluster": cluster.map(|cluster| cluster.to_string()),
        "role": facts.peer.as_ref().map(|peer| peer.role.to_string()),
        "name": facts.peer.as_ref().map(|peer| &peer.name),
        "fingerprint_sha256": hex(facts),
        "not_before": facts.not_before.0,
        "not_after": facts.not_after.0,
        "valid_now": facts.check_time(now).is_ok(),
    })
}

fn hex(facts: &Facts) -> String {
    facts.key_sha256.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A length of time: `90d`, `12h`, `30m`, `90s`.
fn span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a length of time; write for example 90d, 12h or 30m");
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    let seconds = count.checked_mul(unit).filter(|seconds| *seconds > 0 && *seconds < 1 << 40);
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_as_people_write_them() {
        for (text, seconds) in [("90s", 90), ("30m", 1_800), ("12h", 43_200), ("90d", 7_776_000)] {
            assert_eq!(span(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in ["", "1", "h", "-1h", "1.5h", "1w", "0h", "99999999999999999999d", "999999999d", "1h30m"] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }
}
