//! What a user gets wrong gives one clear message and exit code 2: no panic, no signal, nothing
//! half-written. Each case says what the message must name.

mod program;

use std::fs;
use std::path::{Path, PathBuf};

use program::{Scratch, fixture, phalanx};
use serde_json::{Value, json};

/// Runs the program, which must refuse with a message that has all of `says`.
fn refuse(says: &[&str], arguments: &[&str]) {
    let output = phalanx(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    let shown = format!("phalanx {}\n{message}", arguments.join(" "));
    assert_eq!(output.status.code(), Some(2), "exit code of {shown}");
    assert!(!message.contains("panicked"), "{shown}");
    for say in says {
        assert!(message.contains(say), "expected «{say}» of {shown}");
    }
    assert!(message.lines().filter(|line| line.starts_with("error:")).count() == 1, "one message: {shown}");
}

/// A copy of a fixture to be damaged.
fn copy(scratch: &Scratch, of: &str) -> PathBuf {
    let to = scratch.path().join(of);
    let _ = fs::remove_dir_all(&to);
    fs::create_dir_all(&to).expect("scratch can be written");
    for entry in fs::read_dir(fixture(of)).expect("a fixture") {
        let entry = entry.expect("readable");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
    to
}

fn generate(dir: &Path, says: &[&str]) {
    let dir = dir.to_str().expect("UTF-8");
    refuse(says, &["generate", "--model", dir, "--tokens", "5,17,3", "--max-tokens", "2"]);
}

#[test]
fn arguments_are_checked() {
    let mixtral = fixture("mixtral");
    let mixtral = mixtral.to_str().expect("UTF-8");
    let long = (0..600).map(|i| (i % 500).to_string()).collect::<Vec<_>>().join(",");
    refuse(&["nowhere/config.json", "Hugging Face"], &["generate", "--model", "nowhere", "--prompt", "x"]);
    refuse(&["empty"], &["generate", "--model", mixtral, "--prompt", ""]);
    refuse(&["99999", "512 tokens"], &["generate", "--model", mixtral, "--tokens", "5,99999"]);
    refuse(&["600 positions", "context is 512"], &["generate", "--model", mixtral, "--tokens", &long]);
    refuse(&["`x` is not a token id"], &["generate", "--model", mixtral, "--tokens", "5,x"]);
    refuse(&["temperature", "-1"], &["generate", "--chat", "x", "--temperature", "-1"]);
    refuse(&["top_p", "above 0"], &["generate", "--chat", "x", "--top-p", "0"]);
    refuse(&["repetition_penalty"], &["generate", "--chat", "x", "--repetition-penalty", "nan"]);
    refuse(&["f64", "portable"], &["generate", "--chat", "x", "--numeric-class", "f64"]);
    let cut = |shards| ["generate", "--model", mixtral, "--tokens", "5", "--shards", shards];
    refuse(&["7 shards", "96 wide", "1 to 6 shards"], &cut("7"));
    refuse(&["0 shards"], &cut("0"));
    refuse(&["7 shards"], &["inspect", mixtral, "--shards", "7"]);
    refuse(&["9 shards", "128 wide", "1 to 8 shards"], &["serve", "--shards", "9"]);
    refuse(&["no dense layers"], &["serve", "--model", mixtral, "--dense", "device"]);
    refuse(
        &["--shards", "--cluster"],
        &["generate", "--prompt", "x", "--cluster", "http://x", "--shards", "2"],
    );
    refuse(&["--threads 0"], &["generate", "--chat", "x", "--threads", "0"]);
    refuse(
        &["--kv-memory"],
        &["generate", "--model", mixtral, "--tokens", &long[..1000], "--kv-memory", "1K"],
    );
    refuse(&["--max-tokens 0"], &["generate", "--chat", "x", "--max-tokens", "0"]);
    refuse(&["no folder nowhere"], &["forward", "--tokens", "1", "--out", "nowhere/file"]);
    refuse(&["is a folder"], &["forward", "--tokens", "1", "--out", mixtral]);
    refuse(&["600 positions"], &["inspect", mixtral, "--context", "600"]);
    refuse(&["--json"], &["generate", "--chat", "x", "--top-logprobs", "2"]);
    refuse(&["9001 positions"], &["bench", "model", "--prompt", "9000"]);
    refuse(&["wire=5ms", "not a time in s, ms or us"], &["serve", "--emulate", "wire=5"]);
    refuse(
        &["--emulate", "there are none", "--embedded"],
        &["serve", "--emulate", "wire=5ms", "--nodes", "127.0.0.1:0", "--insecure"],
    );
    refuse(&["colour"], &["bench", "model", "--shape", "colour=3"]);
    refuse(&["weights need", "this machine has"], &["bench", "model", "--shape", "layers=200,width=65536"]);
    refuse(&["is not empty"], &["bench", "make-checkpoint", mixtral]);
}

#[test]
fn a_configuration_that_cannot_be_run_is_refused_by_name() {
    let scratch = Scratch::new("configuration");
    let with = |key: &str, value: Option<Value>, says: &[&str]| {
        let dir = copy(&scratch, "mixtral");
        let file = dir.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).expect("there")).expect("JSON");
        let map = config.as_object_mut().expect("an object");
        match value {
            Some(value) => map.insert(key.into(), value),
            None => map.remove(key),
        };
        fs::write(&file, config.to_string()).expect("written");
        generate(&dir, says);
    };
    with("hidden_size", None, &["config.json", "`hidden_size` is missing"]);
    with("hidden_size", Some(json!(-64)), &["`hidden_size` is -64"]);
    with("hidden_size", Some(json!("64")), &["`hidden_size` is \"64\""]);
    with("num_attention_heads", Some(json!(5)), &["num_key_value_heads", "(5)"]);
    with("num_experts_per_tok", Some(json!(9)), &["num_experts_per_tok", "(8)"]);
    with("hidden_act", Some(json!("gelu")), &["`hidden_act: \"gelu\"` is not supported"]);
    with("architectures", Some(json!(["LlamaForCausalLM"])), &["LlamaForCausalLM", "Mixtral"]);
    with(
        "rope_scaling",
        Some(json!({"rope_type": "spiral", "factor": 2})),
        &["rope_type: \"spiral\"", "yarn"],
    );
    with("rope_scaling", Some(json!({"rope_type": "linear"})), &["rope_scaling.factor"]);
    with("quantization_config", Some(json!({"quant_method": "awq"})), &["quant_method: \"awq\""]);
    with("vocab_size", Some(json!(600)), &["[512, 64]", "[600, 64]"]);
    with("num_local_experts", Some(json!(9)), &["[8, 64]", "[9, 64]"]);
    with("num_hidden_layers", Some(json!(5)), &["model.layers.4", "is missing"]);
    with("sliding_window", Some(json!("wide")), &["sliding_window", "wide"]);

    let dir = copy(&scratch, "mixtral");
    fs::write(dir.join("config.json"), "{\"hidden_size\": ").expect("written");
    generate(&dir, &["config.json", "not a JSON object"]);
}

#[test]
fn damaged_weights_are_refused() {
    let scratch = Scratch::new("weights");
    let damaged = |damage: &dyn Fn(&mut Vec<u8>), says: &[&str]| {
        let dir = copy(&scratch, "mixtral");
        let file = dir.join("model.safetensors");
        let mut bytes = fs::read(&file).expect("there");
        damage(&mut bytes);
        fs::write(&file, bytes).expect("written");
        generate(&dir, &[&["model.safetensors"], says].concat());
    };
    damaged(&|b| b.truncate(100_000), &["truncated", "100000"]);
    damaged(&|b| b.truncate(5), &["5 bytes", "too short"]);
    damaged(&|b| b.clear(), &["0 bytes"]);
    damaged(&|b| b[..8].copy_from_slice(&u64::MAX.to_le_bytes()), &["claims a header of"]);
    damaged(&|b| b[8] = b'X', &["not a JSON object"]);

    // Headers that lie. Replacements keep the header's length.
    let replace = |from: &str, to: &str, says: &[&str]| {
        assert_eq!(from.len(), to.len());
        damaged(
            &|bytes| {
                let text = from.as_bytes();
                let at = bytes.windows(text.len()).position(|w| w == text).expect("in the header");
                bytes[at..at + text.len()].copy_from_slice(to.as_bytes());
            },
            says,
        );
    };
    replace("\"shape\":[512,64]", "\"shape\":[512,65]", &["512, 65", "bytes"]);
    replace("\"shape\":[512,64]", "\"shape\":[999,64]", &["999, 64"]);
    replace("\"dtype\":\"BF16\"", "\"dtype\":\"XX16\"", &["XX16"]);
    replace("\"data_offsets\":[0,65536]", "\"data_offsets\":[9,65545]", &["overlap"]);
    replace("\"data_offsets\":[0,65536]", "\"data_offsets\":[6,00006]", &["header"]);
    replace("lm_head.weight", "lm_haed.weight", &["`lm_head.weight` is missing"]);

    let dir = copy(&scratch, "mixtral");
    fs::remove_file(dir.join("model.safetensors")).expect("removed");
    generate(&dir, &["model.safetensors", "no such file"]);
}

#[test]
fn missing_and_misnamed_shards_are_refused() {
    let scratch = Scratch::new("shards");
    let dir = copy(&scratch, "qwen3moe");
    fs::remove_file(dir.join("model-00002-of-00004.safetensors")).expect("removed");
    generate(&dir, &["model-00002-of-00004.safetensors", "no such file", "index.json"]);

    let edit = |change: &dyn Fn(&mut Value), says: &[&str]| {
        let dir = copy(&scratch, "qwen3moe");
        let file = dir.join("model.safetensors.index.json");
        let mut index: Value = serde_json::from_slice(&fs::read(&file).expect("there")).expect("JSON");
        change(&mut index);
        fs::write(&file, index.to_string()).expect("written");
        generate(&dir, &[&["index.json"], says].concat());
    };
    edit(&|index| index["weight_map"]["lm_head.weight"] = json!("../../../etc/passwd"), &["lm_head.weight"]);
    edit(
        &|index| index["weight_map"]["lm_head.weight"] = json!("model-00002-of-00004.safetensors"),
        &["lm_head.weight"],
    );
    edit(&|index| index["weight_map"] = json!(3), &["weight_map"]);
}

#[test]
fn texts_that_cannot_be_used_are_refused() {
    let scratch = Scratch::new("texts");
    let chat = |file: &str, text: &str, says: &[&str]| {
        let dir = copy(&scratch, "mixtral");
        fs::write(dir.join(file), text).expect("written");
        let dir = dir.to_str().expect("UTF-8");
        refuse(&[&[file], says].concat(), &["generate", "--model", dir, "--chat", "x", "--max-tokens", "1"]);
    };
    chat("tokenizer.json", "{}", &["model"]);
    chat("tokenizer.json", "{", &[]);
    chat("chat_template.jinja", "{% for m in messages %}", &[]);
    chat("chat_template.jinja", "{{ raise_exception('no such role') }}", &["no such role"]);
    chat("chat_template.jinja", "{{ messages[0].nothing.more }}", &[]);
    chat("generation_config.json", "{\"eos_token_id\": \"end\"}", &["eos_token_id"]);
    let dir = copy(&scratch, "mixtral");
    fs::write(dir.join("tokenizer_config.json"), "{}").expect("written");
    refuse(
        &["no chat template", "--prompt"],
        &["generate", "--model", dir.to_str().expect("UTF-8"), "--chat", "x"],
    );
}

#[cfg(unix)]
#[test]
fn text_that_is_not_utf8_is_refused() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let output = program::command(&["generate", "--prompt"])
        .arg(OsStr::from_bytes(b"caf\xe9"))
        .output()
        .expect("it runs");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("UTF-8"), "{message}");
}

/// A NaN is no reason to refuse, but to be told: which tensor, and what it means.
#[test]
fn nan_in_weights_is_a_warning() {
    let scratch = Scratch::new("nan");
    let dir = copy(&scratch, "mixtral");
    let file = dir.join("model.safetensors");
    let mut bytes = fs::read(&file).expect("there");
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&0x7fc0u16.to_le_bytes());
    fs::write(&file, bytes).expect("written");
    let output = phalanx(&["inspect", dir.to_str().expect("UTF-8"), "--digests"]);
    assert!(output.status.success());
    let output =
        phalanx(&["generate", "--model", dir.to_str().expect("UTF-8"), "--tokens", "1", "--max-tokens", "1"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("warning: tensor `model.") && message.contains("NaN"), "{message}");
    assert!(!message.contains("panicked"), "{message}");
}

/// Whatever cannot be written is said, and nothing half-written is left.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_reported() {
    use std::process::Stdio;

    let full = || fs::OpenOptions::new().write(true).open("/dev/full").expect("linux has it");
    let output = program::command(&["generate", "--chat", "sort 21="])
        .stdout(Stdio::from(full()))
        .stderr(Stdio::piped())
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("standard output cannot be written"));
}
