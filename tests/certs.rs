//! The journeys of `phalanx certs`: an authority, certificates and tokens as an operator makes them, and one clear
//! line for what goes wrong.

mod program;

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use program::{Scratch, command};
use serde_json::Value;

/// Runs `phalanx certs` in a world of its own: its default folders are those of the scratch.
fn certs(scratch: &Scratch, arguments: &[&str]) -> Output {
    command(&[&["certs"], arguments].concat())
        .env("XDG_CONFIG_HOME", scratch.path().join("config"))
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .output()
        .expect("it runs")
}

/// Standard output of a run that succeeds, and standard error.
fn done(scratch: &Scratch, arguments: &[&str]) -> (String, String) {
    let output = certs(scratch, arguments);
    let (out, err) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
    let (out, err) = (out.expect("UTF-8"), err.expect("UTF-8"));
    assert!(output.status.success(), "phalanx certs {}\n{err}", arguments.join(" "));
    assert!(!out.contains("PRIVATE") && !err.contains("PRIVATE"), "no command prints a key");
    (out, err)
}

fn refused(scratch: &Scratch, says: &[&str], arguments: &[&str]) {
    let output = certs(scratch, arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    let shown = format!("phalanx certs {}\n{message}", arguments.join(" "));
    assert_eq!(output.status.code(), Some(2), "exit code of {shown}");
    assert!(output.stdout.is_empty(), "nothing on standard output of {shown}");
    assert!(!message.contains("panicked"), "{shown}");
    for say in says {
        assert!(message.contains(say), "expected «{say}» of {shown}");
    }
    assert_eq!(message.lines().filter(|line| line.starts_with("error:")).count(), 1, "one message: {shown}");
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

fn damage(path: &Path, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(path).expect("there");
    fs::write(path, change(text)).expect("written");
}

#[test]
fn an_operator_makes_a_cluster() {
    let scratch = Scratch::new("certs-journey");
    let (made, _) = done(&scratch, &["init"]);
    assert!(made.contains("made the authority of cluster") && made.contains("authority.key"), "{made}");
    let folder = scratch.path().join("config/phalanx/authority");
    assert!(folder.join("authority.key").exists(), "in the default folder");

    let (issued, _) = done(&scratch, &["issue", "c0", "--role", "coordinator", "--out", "c0"]);
    assert!(issued.contains("issued coordinator c0") && issued.contains("in 90 days"), "{issued}");
    let (shown, _) = done(&scratch, &["show", "c0"]);
    for line in ["coordinator c0 of cluster", "fingerprint", "valid", "renewed", "authority"] {
        assert!(shown.contains(line), "{line} in {shown}");
    }
    let peer = json(&done(&scratch, &["show", "c0", "--json"]).0);
    let authority = json(&done(&scratch, &["show", "--json"]).0);
    assert_eq!(peer["kind"], "peer");
    assert_eq!((&peer["role"], &peer["name"]), (&Value::from("coordinator"), &Value::from("c0")));
    assert_eq!(peer["valid_now"], true);
    assert_eq!(peer["cluster"], authority["cluster"]);
    assert!(peer["not_after"].as_i64() > peer["not_before"].as_i64());
    // The cluster is the beginning of the authority's fingerprint.
    let fingerprint = authority["fingerprint_sha256"].as_str().expect("text");
    assert_eq!(fingerprint.len(), 64);
    assert_eq!(authority["cluster"], fingerprint[..32]);
    let alone = json(&done(&scratch, &["show", "c0/peer.crt", "--json"]).0);
    assert_eq!(alone["certificates"][0]["name"], "c0");

    // A token is the only thing on standard output.
    let (token, about) = done(&scratch, &["token", "--uses", "2"]);
    assert_eq!(token.lines().count(), 1);
    assert!(token.starts_with("phx1.") && token.ends_with('\n'));
    assert!(about.contains("for 2 nodes") && about.contains("in 60 minutes"), "{about}");
    assert!(!about.contains(token.trim()), "the secret stands in one place only");
    let of_token = json(&done(&scratch, &["show", token.trim(), "--json"]).0);
    assert_eq!(of_token["cluster"], authority["cluster"]);
    assert_eq!(of_token["authority_sha256"], fingerprint);
    assert_eq!(of_token["expired"], false);
    let piped = {
        let mut child = command(&["certs", "show", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut stdin = child.stdin.take().expect("piped");
        std::io::Write::write_all(&mut stdin, token.as_bytes()).expect("it reads");
        drop(stdin);
        String::from_utf8(child.wait_with_output().expect("it ends").stdout).expect("UTF-8")
    };
    assert!(piped.contains(of_token["id"].as_str().expect("text")), "{piped}");
    let (shown, _) = done(&scratch, &["show"]);
    for line in ["authority of cluster", "certificate  coordinator c0 until", "join token", "for 2 nodes"] {
        assert!(shown.contains(line), "{line} in {shown}");
    }
}

#[test]
fn nothing_is_overwritten_and_names_stay_with_their_keys() {
    let scratch = Scratch::new("certs-names");
    done(&scratch, &["init", "a"]);
    let key = fs::read(scratch.path().join("a/authority.key")).expect("there");
    refused(&scratch, &["authority.key", "never overwritten"], &["init", "a"]);
    assert_eq!(fs::read(scratch.path().join("a/authority.key")).expect("there"), key);

    done(&scratch, &["issue", "n0", "--role", "node", "--out", "n0", "--authority", "a"]);
    let issue = |out, more: &[&'static str]| {
        [&["issue", "n0", "--role", "node", "--authority", "a", "--out", out], more].concat()
    };
    refused(&scratch, &["n0/peer.key", "never overwritten"], &issue("n0", &["--replace"]));
    refused(&scratch, &["node n0", "another key", "--replace"], &issue("n1", &[]));
    assert!(!scratch.path().join("n1").exists(), "nothing half-written");
    done(&scratch, &issue("n1", &["--replace"]));
    done(&scratch, &["issue", "n0", "--role", "coordinator", "--out", "c0", "--authority", "a"]);
}

#[test]
fn what_an_operator_gets_wrong_is_one_line() {
    let scratch = Scratch::new("certs-wrong");
    let at = |path: &str| scratch.path().join(path);
    refused(&scratch, &["no authority in", "certs init", "--authority"], &["token"]);
    refused(&scratch, &["nowhere", "no such file"], &["show", "nowhere"]);
    fs::create_dir(at("empty")).expect("written");
    refused(&scratch, &["empty", "neither an authority"], &["show", "empty"]);
    fs::create_dir(at("used")).expect("written");
    fs::write(at("used/notes"), "x").expect("written");
    refused(&scratch, &["used", "not empty"], &["init", "used"]);
    fs::write(at("file"), "x").expect("written");
    refused(&scratch, &["file"], &["init", "file"]);
    refused(&scratch, &["file"], &["init", "file/below"]);
    refused(&scratch, &["file", "no certificate"], &["show", "file"]);

    done(&scratch, &["init", "a"]);
    fn issue(name: &str) -> [&str; 8] {
        ["issue", name, "--role", "node", "--out", "n0", "--authority", "a"]
    }
    refused(&scratch, &["empty"], &issue(""));
    refused(&scratch, &["'/'"], &issue("../n0"));
    refused(&scratch, &["' '"], &issue("n 0"));
    refused(&scratch, &["64 bytes"], &issue(&"n".repeat(64)));
    refused(&scratch, &["'ü'"], &issue("nü"));
    refused(&scratch, &["chief"], &["issue", "n0", "--role", "chief", "--out", "n0"]);
    refused(&scratch, &["soon"], &["token", "--valid", "soon"]);
    refused(&scratch, &["1s", "60s"], &["token", "--valid", "1s", "--authority", "a"]);
    refused(&scratch, &["0"], &["token", "--uses", "0", "--authority", "a"]);
    refused(&scratch, &["file"], &["issue", "n0", "--role", "node", "--out", "file/n0", "--authority", "a"]);
    assert!(!at("n0").exists());
    // The name was not taken for a key that could not be kept.
    done(&scratch, &issue("n0"));

    let (token, _) = done(&scratch, &["token", "--authority", "a"]);
    let token = token.trim();
    refused(&scratch, &["damaged", "letters"], &["show", &token[..60]]);
    let mut wrong = token.to_string();
    wrong.replace_range(20..21, if &token[20..21] == "A" { "B" } else { "A" });
    refused(&scratch, &["damaged", "checksum"], &["show", &wrong]);

    done(&scratch, &["issue", "n1", "--role", "node", "--out", "n1", "--authority", "a"]);
    refused(&scratch, &["peer.key", "no certificate"], &["show", "n1/peer.key"]);
    done(&scratch, &["issue", "n2", "--role", "node", "--out", "n2", "--authority", "a"]);
    fs::copy(at("n2/peer.key"), at("n1/peer.key")).expect("copied");
    refused(&scratch, &["n1/peer.key", "n1/peer.crt", "not that of"], &["show", "n1"]);
    damage(&at("n2/peer.crt"), |text| text.replace("MII", "###"));
    refused(&scratch, &["n2/peer.crt"], &["show", "n2"]);

    fs::copy(at("n1/peer.key"), at("a/authority.key")).expect("copied");
    refused(&scratch, &["authority.key", "authority.crt", "not that of"], &issue("n3"));
    done(&scratch, &["init", "b"]);
    done(&scratch, &["token", "--authority", "b"]);
    damage(&at("b/ledger"), |text| text.replace("token ", "tokem "));
    refused(&scratch, &["ledger", "line 2"], &["token", "--authority", "b"]);
    damage(&at("b/authority.key"), |_| String::new());
    refused(&scratch, &["authority.key", "private key"], &["show", "b"]);
}

#[cfg(unix)]
#[test]
fn a_key_that_others_may_read_is_spoken_of() {
    use std::os::unix::fs::PermissionsExt;

    let scratch = Scratch::new("certs-modes");
    done(&scratch, &["init", "a"]);
    let key = scratch.path().join("a/authority.key");
    assert_eq!(fs::metadata(&key).expect("there").permissions().mode() & 0o777, 0o600);
    let (_, quiet) = done(&scratch, &["show", "a"]);
    assert_eq!(quiet, "");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("ours");
    let (_, warned) = done(&scratch, &["show", "a"]);
    assert!(
        warned.contains("warning") && warned.contains("0644") && warned.contains("chmod 600"),
        "{warned}"
    );
}

/// Nothing of a token is shown where it cannot be shown whole.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_reported() {
    let scratch = Scratch::new("certs-full");
    done(&scratch, &["init", "a"]);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("linux has it");
    let output = command(&["certs", "token", "--authority", "a"])
        .current_dir(scratch.path())
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("standard output cannot be written"));
}
