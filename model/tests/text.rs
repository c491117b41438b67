//! The text side of a model and its sampler, compared with what transformers 5.23 does.
//!
//! Expected values come from elsewhere: the fixtures' `expected.json` and the records at the end of this
//! file were written by transformers, the rest is compared with a naive version written here.
#![allow(clippy::unwrap_used)] // As in all tests; clippy's own exception ends at helper functions.

use std::path::{Path, PathBuf};

use phalanx_model::sampler::{Sampling, SamplingError, SamplingFields, choose, distribution, logprobs};
use phalanx_model::text::{
    ChatError, ChatInput, ChatTemplate, GenerationConfig, StopStream, TextError, Tokenizer, WallTime,
};
use serde_json::{Map, Value, json};

/// The moment at which the recorded templates were rendered: 2025-08-05 14:07:09.
const NOW_UNIX: i64 = 1_754_402_829;

fn fixtures() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).to_owned()
}

fn models() -> Vec<PathBuf> {
    let names = ["deepseekv2", "deepseekv3-seed", "gptoss", "mixtral", "olmoe", "qwen2moe", "qwen3moe"];
    names.iter().map(|name| fixtures().join(name)).collect()
}

fn expected(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Small, fixed and good enough to mix test cases.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// A prompt that differs by one token is another prompt.
#[test]
fn fixtures_encode_and_decode_as_in_transformers() {
    for dir in models() {
        let tokenizer = Tokenizer::open(&dir).unwrap();
        let cases = &expected(&dir)["tokenizer"]["encode"];
        assert!(cases.as_array().unwrap().len() > 5);
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let encoded = tokenizer.encode(text, true).unwrap();
            assert_eq!(encoded, ids(&case["ids"]), "{dir:?} {text:?}");
            assert_eq!(tokenizer.decode(&encoded, false).unwrap(), case["decoded"], "{text:?}");
            let plain = tokenizer.decode(&encoded, true).unwrap();
            assert_eq!(plain, case["decoded_skip_special"], "{text:?}");
        }
    }
}

/// The way of every chat request: messages, prompt, ids.
#[test]
fn fixtures_render_chats_as_in_transformers() {
    for dir in models() {
        let tokenizer = Tokenizer::open(&dir).unwrap();
        let template = ChatTemplate::open(&dir).unwrap().unwrap();
        let cases = &expected(&dir)["tokenizer"]["chat"];
        assert!(!cases.as_array().unwrap().is_empty());
        for case in cases.as_array().unwrap() {
            let messages = case["messages"].as_array().unwrap();
            let mut input = ChatInput::new(messages, WallTime::from_unix(NOW_UNIX, 0));
            if let Some(wanted) = case["add_generation_prompt"].as_bool() {
                input.add_generation_prompt = wanted;
            }
            let prompt = template.render(&input).unwrap();
            assert_eq!(prompt, case["rendered"].as_str().unwrap(), "{dir:?}");
            assert_eq!(tokenizer.encode(&prompt, false).unwrap(), ids(&case["ids"]), "{dir:?}");
        }
    }
}

/// The model that is built into the program, by its own record of prompts and answers.
#[test]
fn the_demo_model_reads_its_prompts() {
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../demo-model"));
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let (json, config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    let tokenizer = Tokenizer::from_bytes("demo", &json, Some(&config), None).unwrap();
    let template = ChatTemplate::from_bytes("demo", Some(&config), None, &[]).unwrap().unwrap();
    let generation = GenerationConfig::from_bytes("demo", &read("generation_config.json")).unwrap();
    assert_eq!((tokenizer.bos_id(), generation.eos_ids), (Some(256), vec![257]));
    assert_eq!(tokenizer.vocabulary_size(), 259);
    for line in String::from_utf8(read("eval.jsonl")).unwrap().lines().step_by(25) {
        let case: Value = serde_json::from_str(line).unwrap();
        let messages = [json!({"role": "user", "content": case["prompt"]})];
        let prompt = template.render(&ChatInput::new(&messages, WallTime::from_unix(0, 0))).unwrap();
        assert_eq!(tokenizer.encode(&prompt, false).unwrap(), ids(&case["prompt_ids"]));
        let answer = tokenizer.decode(&ids(&case["greedy_ids_f32"]), true).unwrap();
        assert_eq!(answer, case["greedy_text"].as_str().unwrap());
    }
}

/// A tokenizer laid out as Mixtral's, small, and asking for truncation and padding.
fn sentencepiece() -> Value {
    let mut pieces: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    pieces.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    let rest = "▁ a b c h e l o é 日 ▁h he ll llo hello ▁hello ▁a ▁▁";
    pieces.extend(rest.split(' ').map(str::to_owned));
    let vocabulary: Map<String, Value> =
        pieces.iter().cloned().zip((0..).map(|id: u32| Value::from(id))).collect();
    let added: Vec<Value> = ["<unk>", "<s>", "</s>"]
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0",
        "truncation":
            {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>",
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "vocab": vocabulary,
            "merges": [["▁", "h"], ["h", "e"], ["l", "l"], ["ll", "o"], ["he", "llo"],
                ["▁", "hello"], ["▁", "a"], ["▁", "▁"]]}
    })
}

/// A word-piece tokenizer, as encoders had it.
fn word_pieces() -> Value {
    let words = ["[UNK]", "do", "n't", "it", "'s", "##ing", ".", "'", ",", "we", "'re", "!", "é"];
    let vocabulary: Map<String, Value> =
        words.iter().zip(0u32..).map(|(word, id)| ((*word).to_owned(), id.into())).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary}
    })
}

fn build(tokenizer: &Value, config: &Value) -> Result<Tokenizer, TextError> {
    let (json, config) = (tokenizer.to_string(), config.to_string());
    Tokenizer::from_bytes("model", json.as_bytes(), Some(config.as_bytes()), None)
}

fn sentencepiece_config() -> Value {
    json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": {"content": "<s>"},
        "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
        "additional_special_tokens": ["<tool>"], "clean_up_tokenization_spaces": true})
}

/// Recorded from transformers: nothing is cut, padded or cleaned up, and missing tokens are added.
#[test]
fn a_sentencepiece_tokenizer_agrees_with_transformers() {
    let tokenizer = build(&sentencepiece(), &sentencepiece_config()).unwrap();
    let cases: [(&str, &[u32], &str, &str); 6] = [
        ("hello", &[1, 269, 264, 272], "<s> hello", "hello"),
        ("  hello a", &[1, 276, 269, 264, 272, 275], "<s>   hello a", "  hello a"),
        (
            "héllo 日本 😀",
            &[1, 269, 267, 272, 259, 268, 233, 159, 175, 259, 243, 162, 155, 131],
            "<s> héllo 日本 😀",
            "héllo 日本 😀",
        ),
        (
            "hello<tool>a</s> <pad>b",
            &[1, 269, 264, 272, 278, 275, 2, 276, 277, 259, 261],
            "<s> hello<tool> a</s>  <pad> b",
            "hello a   b",
        ),
        ("a ,b .", &[1, 275, 259, 47, 261, 259, 49], "<s> a ,b .", "a ,b ."),
        ("", &[1], "<s>", ""),
    ];
    for (text, expected, decoded, plain) in cases {
        assert_eq!(tokenizer.encode(text, true).unwrap(), expected, "{text}");
        assert_eq!(tokenizer.encode(text, false).unwrap(), expected[1..], "{text}");
        assert_eq!(tokenizer.decode(expected, false).unwrap(), decoded);
        assert_eq!(tokenizer.decode(expected, true).unwrap(), plain);
    }
    assert_eq!(tokenizer.vocabulary_size(), 279);
    let named = (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id());
    assert_eq!(named, (Some(1), Some(2), Some(277)));
    assert_eq!(tokenizer.id("<tool>"), Some(278));
    assert!(tokenizer.is_special(278) && !tokenizer.is_special(269));
    assert_eq!(tokenizer.token(269).as_deref(), Some("▁h"));
    assert_eq!(tokenizer.decode(&[269, 1_000_000, u32::MAX, 264], false).unwrap(), "he");
}

/// Recorded from transformers' `update_post_processor`. The other classes ignore both flags.
#[test]
fn the_llama_classes_obey_add_bos_token() {
    let cases: [(bool, bool, &[u32]); 4] = [
        (true, false, &[1, 269, 264, 272]),
        (true, true, &[1, 269, 264, 272, 2]),
        (false, true, &[269, 264, 272, 2]),
        (false, false, &[269, 264, 272]),
    ];
    for class in ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", "Qwen2Tokenizer"] {
        for (bos, eos, expected) in cases {
            let mut config = sentencepiece_config();
            config["tokenizer_class"] = class.into();
            config["add_bos_token"] = bos.into();
            config["add_eos_token"] = eos.into();
            let tokenizer = build(&sentencepiece(), &config).unwrap();
            let expected = if class.starts_with("Llama") { expected } else { cases[0].2 };
            assert_eq!(tokenizer.encode("hello", true).unwrap(), expected, "{class} {bos} {eos}");
            assert_eq!(tokenizer.encode("hello", false).unwrap(), cases[3].2);
        }
    }
    // A token that the model lacks cannot be added.
    let config = json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": true});
    let tokenizer = build(&sentencepiece(), &config).unwrap();
    assert_eq!(tokenizer.encode("hello", true).unwrap(), cases[3].2);
}

/// Recorded from transformers. For BPE the flag is ignored (see above).
#[test]
fn spaces_are_cleaned_up_for_word_pieces() {
    let ids = [1, 2, 5, 3, 4, 6, 7, 1, 8, 9, 10, 11, 12];
    for (cleans_up, expected) in
        [(true, "don'ting it's.'do, we're! é"), (false, "do n'ting it 's . ' do , we 're ! é")]
    {
        let config = json!({"clean_up_tokenization_spaces": cleans_up, "unk_token": "[UNK]"});
        let tokenizer = build(&word_pieces(), &config).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), expected);
    }
}

/// Whatever the ids and the decoder, the pieces together are the text of the whole.
#[test]
fn streamed_pieces_are_the_text_of_the_whole() {
    let plain = json!({});
    let fixture = |name: &str| fixtures().join(name).join("tokenizer.json");
    let byte_level: Value = serde_json::from_slice(&std::fs::read(fixture("mixtral")).unwrap()).unwrap();
    let with_decoder = |decoder: Value| {
        let mut tokenizer = sentencepiece();
        tokenizer["decoder"] = decoder;
        tokenizer
    };
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let fallback = json!({"type": "ByteFallback"});
    let sequence = |steps: &[&Value]| json!({"type": "Sequence", "decoders": steps});
    let strip = json!({"type": "Strip", "content": " ", "start": 3, "stop": 0});
    let fuse = json!({"type": "Fuse"});
    let cases = [
        ("byte level", build(&byte_level, &plain)),
        ("sentencepiece", build(&sentencepiece(), &sentencepiece_config())),
        ("strips three", build(&with_decoder(sequence(&[&replace, &fallback, &fuse, &strip])), &plain)),
        ("strips each", build(&with_decoder(sequence(&[&replace, &fallback, &strip])), &plain)),
        ("no strip", build(&with_decoder(sequence(&[&replace, &fallback, &fuse])), &plain)),
        ("metaspace", build(&with_decoder(metaspace("always")), &plain)),
        ("metaspace, never", build(&with_decoder(metaspace("never")), &plain)),
        ("no decoder", build(&with_decoder(Value::Null), &plain)),
        ("word pieces", build(&word_pieces(), &plain)),
        ("word pieces, clean", build(&word_pieces(), &json!({"clean_up_tokenization_spaces": true}))),
    ];
    for (name, tokenizer) in cases {
        let tokenizer = tokenizer.unwrap();
        for seed in 0..300u64 {
            let mut random = Random(seed);
            let size = tokenizer.vocabulary_size();
            // Some ids stand for nothing, and bytes come in runs.
            let mut ids: Vec<u32> = Vec::new();
            for _ in 0..random.below(60) {
                match random.below(4) {
                    0 => ids.extend("é日😀".bytes().take(random.below(9)).map(|b| u32::from(b) + 3)),
                    _ => ids.push(random.below(size + 3) as u32),
                }
            }
            for skip_special in [false, true] {
                let whole = tokenizer.decode(&ids, skip_special).unwrap();
                let mut stream = tokenizer.stream(skip_special);
                // Twice, since a finished stream is as new.
                for _ in 0..2 {
                    let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
                    text.push_str(&stream.finish());
                    assert_eq!(text, whole, "{name}, seed {seed}, ids {ids:?}");
                }
            }
        }
    }
}

/// Holding back everything would pass the test above, and no client would see a stream.
#[test]
fn a_stream_gives_text_out_as_soon_as_it_is_settled() {
    let tokenizer = build(&sentencepiece(), &sentencepiece_config()).unwrap();
    let mut stream = tokenizer.stream(true);
    let pieces: Vec<String> = [1, 274, 275, 233, 162, 275].map(|id| stream.push(id)).to_vec();
    assert_eq!(pieces, ["", "hello", " a", "", "", "\u{FFFD}\u{FFFD} a"]);

    let tokenizer = Tokenizer::open(&fixtures().join("mixtral")).unwrap();
    let mut stream = tokenizer.stream(false);
    let ids = tokenizer.encode("né", false).unwrap();
    let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id)).collect();
    assert_eq!(pieces, ["n", "", "é"]);
}

/// The stream against a search over the whole text, however it is cut.
#[test]
fn stop_strings_agree_with_a_naive_search() {
    let alphabet = ['a', 'b', 'é'];
    for seed in 0..5000u64 {
        let mut random = Random(seed);
        let mut word = |length: usize| -> String { (0..length).map(|_| alphabet[random.below(3)]).collect() };
        let text = word(30);
        let stops: Vec<String> = [1, 2, 3, 4, 6].iter().map(|length| word(*length + 1)).collect();
        let count = 1 + random.below(4);
        let stops: Vec<String> = stops.into_iter().skip(random.below(2)).take(count).collect();

        // The first end of a match, and of those the first beginning.
        let naive = (0..=text.len()).filter(|end| text.is_char_boundary(*end)).find_map(|end| {
            let ending = stops.iter().enumerate().filter(|(_, stop)| text[..end].ends_with(*stop));
            ending.map(|(index, stop)| (end - stop.len(), index)).min()
        });

        let mut stream = StopStream::new(stops.clone()).unwrap();
        let (mut out, mut stopped_by, mut rest) = (String::new(), None, text.as_str());
        while !rest.is_empty() {
            let mut cut = (1 + random.below(5)).min(rest.len());
            while !rest.is_char_boundary(cut) {
                cut += 1;
            }
            let step = stream.push(&rest[..cut]);
            out.push_str(&step.text);
            stopped_by = stopped_by.or(step.stopped_by);
            rest = &rest[cut..];
            // What is out is never part of a match, and what is held could become one.
            let seen = text.len() - rest.len();
            assert!(stopped_by.is_some() || seen - out.len() < stops.iter().map(String::len).max().unwrap());
        }
        out.push_str(&stream.finish());
        let expected = match naive {
            Some((start, index)) => (&text[..start], Some(index)),
            None => (text.as_str(), None),
        };
        assert_eq!((out.as_str(), stopped_by), expected, "seed {seed}: {text} {stops:?}");
    }
}

/// Files come from strangers, and a folder is often incomplete.
#[test]
fn broken_files_are_errors_that_name_them() {
    let message = |json: &str, config: &str| {
        let config = Some(config.as_bytes());
        Tokenizer::from_bytes("dir", json.as_bytes(), config, None).unwrap_err().to_string()
    };
    let good = sentencepiece().to_string();
    for (json, config, start) in [
        ("{", "{}", "dir/tokenizer.json is not valid JSON: EOF"),
        ("[]", "{}", "dir/tokenizer.json: the whole file should be an object, found a list"),
        ("{}", "{}", "dir/tokenizer.json is not a usable tokenizer: it has no model section"),
        (r#"{"model": {"type": "BPE"}}"#, "{}", "dir/tokenizer.json is not a usable tokenizer: "),
        (r#"{"model": {"type": "Odd"}}"#, "{}", "dir/tokenizer.json is not a usable tokenizer: "),
        (&good, "[", "dir/tokenizer_config.json is not valid JSON"),
        (&good, r#"{"add_bos_token": "yes"}"#, "dir/tokenizer_config.json: add_bos_token should be"),
        (&good, r#"{"added_tokens_decoder": {"x": "y"}}"#, "dir/tokenizer_config.json: added_tokens"),
    ] {
        let message = message(json, config);
        assert!(message.starts_with(start), "{message}");
    }
    let error = Tokenizer::open(Path::new("/nowhere/at/all")).unwrap_err().to_string();
    assert!(error.starts_with("cannot read /nowhere/at/all/tokenizer.json: "), "{error}");
    assert!(ChatTemplate::open(Path::new("/nowhere/at/all")).unwrap().is_none());
    assert_eq!(GenerationConfig::open(Path::new("/nowhere")).unwrap(), GenerationConfig::default());

    // No cut or damage may panic; most are errors, some still make a tokenizer.
    let bytes = good.as_bytes();
    let mut random = Random(7);
    for _ in 0..300 {
        let mut damaged = bytes.to_vec();
        let at = random.below(bytes.len());
        match random.below(3) {
            0 => damaged.truncate(at),
            1 => damaged[at] = b"0\"{}[],:x-"[random.below(10)],
            _ => drop(damaged.drain(at..(at + random.below(40)).min(bytes.len()))),
        }
        if let Ok(tokenizer) = Tokenizer::from_bytes("dir", &damaged, None, None) {
            let ids = tokenizer.encode("hello 日", true).unwrap_or_default();
            let _ = tokenizer.decode(&ids, false);
        }
    }
}

fn template(config: Value, files: &[(&str, &str, &[u8])]) -> Result<ChatTemplate, TextError> {
    let config = config.to_string();
    Ok(ChatTemplate::from_bytes("dir", Some(config.as_bytes()), None, files)?.unwrap())
}

/// Templates in the style of the released families, rendered by transformers.
#[test]
fn recorded_templates_render_as_in_transformers() {
    let tokens = json!({"bos_token": "<|bos|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"});
    let mut count = 0;
    for family in CHAT_CASES.split("=== template ").skip(1) {
        let mut sections = family.split("\n=== ");
        let (name, source) = sections.next().unwrap().split_once('\n').unwrap();
        let sections: Vec<(&str, &str)> = sections.map(|section| section.split_once('\n').unwrap()).collect();
        let files = [("default", "chat_template.jinja", source.as_bytes())];
        let template = template(tokens.clone(), &files).unwrap_or_else(|error| panic!("{name}: {error}"));
        for pair in sections.chunks(2) {
            let [(case, record), (kind, expected)] = pair else { panic!("{name}: odd record") };
            let (expected, _) = expected.rsplit_once("\n===").unwrap();
            let record: Value = serde_json::from_str(record).unwrap();
            let input = ChatInput {
                messages: record["messages"].as_array().unwrap(),
                tools: record["tools"].as_array().map(Vec::as_slice),
                documents: record["documents"].as_array().map(Vec::as_slice),
                add_generation_prompt: record["add_generation_prompt"].as_bool().unwrap_or(false),
                extra: record["extra"].as_object(),
                template: None,
                now: WallTime::from_unix(NOW_UNIX, 0),
            };
            match (template.render(&input), *kind) {
                (Ok(prompt), "expected") => assert_eq!(prompt, expected, "{name}, {case}"),
                (Err(ChatError::Refused { message, .. }), "refused") => {
                    assert_eq!(message, expected, "{name}, {case}");
                }
                (result, _) => panic!("{name}, {case}: {result:?}"),
            }
            count += 1;
        }
    }
    assert_eq!(count, CHAT_CASE_COUNT);
}

/// As in transformers: files before configuration, `tool_use` where tools are given.
#[test]
fn the_right_template_is_chosen() {
    let messages = [json!({"role": "user", "content": "x"})];
    let tools = [json!({})];
    let mut input = ChatInput::new(&messages, WallTime::from_unix(0, 0));
    let config = json!({"chat_template": [{"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "tools"}, {"name": "rag", "template": "rag"}]});

    let listed = template(config.clone(), &[]).unwrap();
    assert_eq!(listed.render(&input).unwrap(), "plain");
    input.tools = Some(&tools);
    assert_eq!(listed.render(&input).unwrap(), "tools");
    input.template = Some("rag");
    assert_eq!(listed.render(&input).unwrap(), "rag");
    input.template = Some("odd");
    let message = listed.render(&input).unwrap_err().to_string();
    assert!(message.contains("\"odd\", only default, rag, tool_use"), "{message}");

    input.template = None;
    let single = template(json!({"chat_template": "single"}), &[]).unwrap();
    assert_eq!(single.render(&input).unwrap(), "single");
    let file = template(config, &[("default", "chat_template.jinja", b"file")]).unwrap();
    assert_eq!(file.render(&input).unwrap(), "file");

    let dir = std::env::temp_dir().join(format!("phalanx-text-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("chat_templates")).unwrap();
    std::fs::write(dir.join("tokenizer_config.json"), r#"{"chat_template": "old"}"#).unwrap();
    std::fs::write(dir.join("chat_template.jinja"), "file").unwrap();
    std::fs::write(dir.join("chat_templates/tool_use.jinja"), "tool file").unwrap();
    let opened = ChatTemplate::open(&dir).unwrap().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(opened.names().collect::<Vec<_>>(), ["default", "tool_use"]);
    assert_eq!(opened.render(&input).unwrap(), "tool file");
    input.tools = None;
    assert_eq!(opened.render(&input).unwrap(), "file");
}

/// One clear message: file, line, reason and what to do.
#[test]
fn failing_templates_say_where_and_why() {
    let messages = [json!({"role": "user", "content": "x"})];
    let input = ChatInput::new(&messages, WallTime::from_unix(0, 0));
    let error = template(json!({"chat_template": "a\n{% if x %}\n{% endfor %}"}), &[]).unwrap_err();
    let start = "dir/tokenizer_config.json (chat_template) line 3: the chat template cannot be parsed: ";
    assert!(error.to_string().starts_with(start), "{error}");

    let render = |source: &str| {
        let file = [("default", "chat_template.jinja", source.as_bytes())];
        template(json!({}), &file).unwrap().render(&input).unwrap_err().to_string()
    };
    let start = "dir/chat_template.jinja line 2: the chat template failed: ";
    for source in [
        "a\n{{ x.y }}",
        "\n{{ nothing() }}",
        "\n{{ messages[0].odd() }}",
        "\n{{ 1 + 'a' }}",
        "\n{{ messages | tojson(odd=1) }}",
        "\n{{ strftime_now(1, 2) }}",
    ] {
        let message = render(source);
        assert!(message.starts_with(start), "{source}: {message}");
        assert!(message.contains("or put a corrected chat_template.jinja beside it"), "{message}");
    }
    let message = render("{% macro m() %}{{ raise_exception('no ' ~ 1) }}{% endmacro %}{{ m() }}");
    assert_eq!(message, "dir/chat_template.jinja: the chat template refuses this conversation: no 1");
    let endless = render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}");
    assert!(endless.contains("recursion"), "{endless}");

    let template = template(json!({"chat_template": "x"}), &[]).unwrap();
    let none = ChatInput::new(&[], input.now);
    assert!(matches!(template.render(&none), Err(ChatError::NoMessages)));
    let odd = [json!("hi")];
    let odd = template.render(&ChatInput::new(&odd, input.now)).unwrap_err().to_string();
    assert!(odd.starts_with("message 0 should be an object"), "{odd}");
}

/// Numbers from -8 to 8 that f32 holds exactly; the recording made the same.
fn logits(seed: u64) -> Vec<f32> {
    (0..400u64)
        .map(|index| {
            let mut random = Random((seed * 100_000 + index).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            ((random.next() >> 40) as f32 - 8_388_608.0) / 1_048_576.0
        })
        .collect()
}

const PROMPT: [u32; 5] = [3, 17, 17, 250, 399];
const GENERATED: [u32; 5] = [5, 9, 5, 5, 120];

fn sampling(fields: SamplingFields) -> Sampling {
    Sampling::new(fields).unwrap()
}

/// The order of the steps decides which tokens are left; transformers' processors in f64 are the judge.
/// 1e-12 is some thousand roundings of an f64, since sums are taken in another order.
#[test]
fn distributions_agree_with_transformers() {
    for (seed, fields, expected) in distributions() {
        let (logits, sampling) = (logits(seed), sampling(fields));
        let kept = distribution(&logits, &PROMPT, &GENERATED, &sampling).unwrap();
        let tokens = |list: &[(u32, f64)]| list.iter().map(|(token, _)| *token).collect::<Vec<_>>();
        assert_eq!(tokens(&kept), tokens(expected), "{sampling:?}");
        for ((token, share), (_, wanted)) in kept.iter().zip(expected) {
            assert!((share - wanted).abs() < 1e-12, "{token}: {share} {wanted}, {sampling:?}");
        }
    }
}

/// 4,000 seeds fill the classes as their probabilities say. Of chi-square with n - 1 degrees of freedom
/// 99.9% lie below n - 1 + 3.1 sqrt(2 (n - 1)) + 5; the seeds are fixed, so the test cannot waver.
#[test]
fn frequencies_follow_the_probabilities() {
    const DRAWS: u64 = 4_000;
    for (seed, fields, _) in distributions() {
        let logits = logits(seed);
        let shares = distribution(&logits, &PROMPT, &GENERATED, &sampling(fields.clone())).unwrap();
        let mut counts = vec![0u64; logits.len()];
        for draw in 0..DRAWS {
            let sampling = sampling(SamplingFields { seed: draw, ..fields.clone() });
            let choice = choose(&logits, &PROMPT, &GENERATED, &sampling, seed).unwrap();
            let (_, share) = shares.iter().find(|(token, _)| *token == choice.token).unwrap();
            assert!((choice.logprob - share.ln()).abs() < 1e-9);
            counts[choice.token as usize] += 1;
        }
        let chi_square: f64 = shares
            .iter()
            .map(|(token, share)| {
                let wanted = share * DRAWS as f64;
                (counts[*token as usize] as f64 - wanted).powi(2) / wanted
            })
            .sum();
        let free = shares.len() as f64 - 1.0;
        assert!(chi_square <= free + 3.1 * (2.0 * free).sqrt() + 5.0, "{chi_square} of {free}");
    }
}

/// A stream is resumed by another coordinator from prompt and tokens: position and seed are all it has.
#[test]
fn a_choice_depends_on_its_arguments_alone() {
    let logits = logits(1);
    let sampling = sampling(SamplingFields { temperature: 1.5, seed: 42, ..Default::default() });
    let run = |position| choose(&logits, &PROMPT, &GENERATED, &sampling, position).unwrap().token;
    let forwards: Vec<u32> = (0..50).map(run).collect();
    let mut backwards: Vec<u32> = (0..50).rev().map(run).collect();
    backwards.reverse();
    assert_eq!(forwards, backwards);
    // Pinned: another version of the program must go on with the same tokens.
    assert_eq!(forwards[..8], [46, 226, 177, 85, 378, 85, 156, 388]);
}

/// Recorded from torch's log_softmax and topk in f64.
#[test]
fn logprobs_agree_with_torch() {
    let found = logprobs(&logits(1), 7, 5).unwrap();
    assert!((found.chosen - -18.664_509_355_338_39).abs() < 1e-12);
    let expected = [
        (321, -3.043_194_352_896_984),
        (263, -3.086_069_642_813_976),
        (285, -3.104_259_073_050_792_4),
        (222, -3.321_772_157_462_413_5),
        (170, -3.424_237_787_040_05),
    ];
    assert_eq!(found.top.len(), 5);
    for ((token, logprob), (wanted_token, wanted)) in found.top.iter().zip(expected) {
        assert!(*token == wanted_token && (logprob - wanted).abs() < 1e-12, "{token} {logprob}");
    }
    assert_eq!(logprobs(&[1.0, 1.0], 5, 9).unwrap().chosen, f64::NEG_INFINITY);
    assert_eq!(logprobs(&[1.0, 1.0], 0, 9).unwrap().top.len(), 2);
}

/// Ids beyond the logits come from tokenizers with more tokens than their model, not from mistakes.
#[test]
fn ids_without_a_logit_are_passed_over() {
    let fields = SamplingFields {
        repetition_penalty: 2.0,
        presence_penalty: 1.0,
        logit_bias: vec![(9, 5.0), (1, 100.0)],
        ..Default::default()
    };
    let choice = choose(&[1.0, 0.0], &[7, u32::MAX], &[8], &sampling(fields), 0).unwrap();
    assert_eq!(choice.token, 1);
    let result = Sampling::new(SamplingFields { top_p: 2.0, ..Default::default() });
    assert!(matches!(result, Err(SamplingError::Field { field: "top_p", .. })));
}

/// (seed of the logits, fields, (token, probability) of what is left), recorded from transformers'
/// processors in f64; the same tokens are left in f32.
#[rustfmt::skip]
#[allow(clippy::type_complexity)] // A name for it would say no more than the line above.
fn distributions() -> Vec<(u64, SamplingFields, &'static [(u32, f64)])> {
    vec![
    (1, SamplingFields { temperature: 1.0, top_k: 8, ..SamplingFields::default() }, &[(321, 0.15754045703662986), (263, 0.15092861933878163), (285, 0.14820813082156664), (222, 0.11923597237677017), (170, 0.10762348233279166), (85, 0.10598687040059891), (203, 0.10528821461703292), (232, 0.10518825307582823)]),
    (2, SamplingFields { temperature: 0.7, top_p: 0.8, ..SamplingFields::default() }, &[(356, 0.0656569483631069), (87, 0.06504210024577342), (247, 0.06377929288682928), (7, 0.06363850903832503), (85, 0.05983672414775374), (22, 0.05935056175106077), (100, 0.0559624644532997), (194, 0.05445537614095121), (179, 0.05169867823211212), (209, 0.04969761332589474), (375, 0.044182946750145856), (17, 0.043362563183824795), (58, 0.0428960797338203), (123, 0.03694441945801186), (210, 0.035095067968762515), (206, 0.027439026146270445), (101, 0.02649563727848179), (5, 0.02342630114669612), (220, 0.021570097069043236), (184, 0.0189043164495772), (42, 0.01776143468324756), (373, 0.017414124776986624), (164, 0.015384846066598581), (341, 0.013471197424415788), (11, 0.013456101329090595), (293, 0.013077571949919818)]),
    (3, SamplingFields { temperature: 1.3, min_p: 0.05, ..SamplingFields::default() }, &[(289, 0.040933468444463134), (109, 0.03815016884225303), (394, 0.03305163900798631), (91, 0.0315829548545813), (290, 0.03131416180534545), (218, 0.029601345118808117), (141, 0.029175621797694635), (32, 0.027974149591292505), (150, 0.02664731017640927), (278, 0.02561868595808816), (392, 0.025331058084996524), (22, 0.024839325248292247), (398, 0.024040268258580258), (308, 0.021875047169121493), (240, 0.02141362851877187), (40, 0.02126497476291439), (358, 0.02120030255137895), (371, 0.021099607053291194), (381, 0.020967248686485022), (120, 0.019403445501803604), (260, 0.018932964264037934), (233, 0.01880744932816933), (255, 0.016834250578983738), (322, 0.01681204842353303), (25, 0.016159166960452654), (104, 0.0156273232057467), (378, 0.014859265107953355), (303, 0.014397037911347898), (315, 0.014370362918692967), (142, 0.014294419178487821), (125, 0.014100439615207253), (389, 0.013526212142252709), (239, 0.012545174908252478), (38, 0.012143791223757694), (368, 0.01135908136760459), (48, 0.010739457997136583), (131, 0.01065354268649743), (129, 0.010624781857820885), (329, 0.010435535159668649), (208, 0.009054617724748045), (70, 0.008896790433128767), (307, 0.008888485890325246), (242, 0.008877590206922815), (216, 0.008856326150940555), (36, 0.008853617332073956), (252, 0.008293063653416954), (194, 0.00806131149929568), (37, 0.007780530456977586), (363, 0.007761057148019844), (246, 0.0069837220601971966), (231, 0.0065707665156971694), (229, 0.0060803903498150335), (236, 0.006001803725204054), (76, 0.005417751658669339), (306, 0.005204562366649654), (284, 0.004758752722447636), (30, 0.004565177909983722), (92, 0.0043471928958201305), (331, 0.004327392470882945), (350, 0.004027188085069964), (43, 0.0039754065766392935), (163, 0.003898329361803477), (56, 0.0038868413573133016), (347, 0.003826638172601737), (4, 0.0036352353071048248), (11, 0.0034001658417632708), (27, 0.00330832013944327), (20, 0.003286452926551824), (293, 0.003211358257100917), (341, 0.0030544907181806573), (121, 0.00260982078548334), (250, 0.002575500338112855), (353, 0.002305790273116544), (132, 0.002180663351694405), (157, 0.0021779726757013363), (105, 0.0021481348342019917), (130, 0.00213674172840035), (85, 0.0020673298303390962)]),
    (4, SamplingFields { temperature: 0.9, top_k: 40, top_p: 0.9, min_p: 0.02, ..SamplingFields::default() }, &[(336, 0.07065082711126923), (397, 0.06914855602060763), (14, 0.062419061497291824), (25, 0.062226358332192866), (54, 0.0548165368389743), (217, 0.05032075717700377), (359, 0.047892354165560806), (128, 0.04383848632615737), (355, 0.04312649436957082), (61, 0.04027673122520265), (389, 0.03655759930130573), (274, 0.03602736502492074), (234, 0.03509029264366282), (93, 0.0337683253587855), (287, 0.027062354940270712), (69, 0.02662237701613906), (63, 0.025092558142434867), (207, 0.022890958651807583), (326, 0.022377884574884863), (291, 0.021789969895898816), (267, 0.02107336050098003), (385, 0.020010560515880467), (179, 0.019565301870995574), (7, 0.018353108979549157), (22, 0.018224140113436205), (71, 0.014468223062147388), (331, 0.014443545759966155), (198, 0.014087111873199358), (67, 0.013904963355473768), (272, 0.013873835354430061)]),
    (5, SamplingFields { temperature: 0.6, top_p: 0.95, top_k: 20, repetition_penalty: 1.3, ..SamplingFields::default() }, &[(275, 0.07646042131422463), (102, 0.0732401269651063), (10, 0.07313949973577283), (239, 0.07291594054828032), (328, 0.06972602228359619), (339, 0.06513728655791932), (67, 0.06440787055422491), (379, 0.06426000838127215), (50, 0.060476231434399445), (34, 0.05600992514107627), (217, 0.05354173484841778), (54, 0.04848643557108953), (261, 0.047479445310932636), (108, 0.04288439678138176), (134, 0.040856964145089665), (72, 0.035967778056414546), (361, 0.032847270668430364), (64, 0.02216264170237134)]),
    (6, SamplingFields { temperature: 1.0, top_k: 6, repetition_penalty: 0.5, ..SamplingFields::default() }, &[(294, 0.18445280341444048), (19, 0.1793115523136731), (174, 0.16373186323660438), (11, 0.1624843422110749), (142, 0.1550575420235679), (219, 0.15496189680063918)]),
    (7, SamplingFields { temperature: 0.8, top_k: 10, presence_penalty: 1.5, frequency_penalty: -0.75, ..SamplingFields::default() }, &[(5, 0.15658739868326094), (290, 0.11254099522920087), (223, 0.10590447503945054), (241, 0.10005320514551314), (145, 0.09345130257777941), (291, 0.09328857377335859), (391, 0.09208566797386918), (361, 0.08594584635219905), (70, 0.08237847662468663), (109, 0.07776405860068157)]),
    (8, SamplingFields { temperature: 2.0, top_p: 0.01, ..SamplingFields::default() }, &[(146, 1.0)]),
    (9, SamplingFields { temperature: 1.5, top_p: 0.5, repetition_penalty: 1.1, frequency_penalty: 0.5, ..SamplingFields::default() }, &[(263, 0.05855180912448241), (390, 0.05621414853087754), (298, 0.055909080721114876), (87, 0.05504026109673925), (320, 0.054790484955041865), (168, 0.05461874019197874), (199, 0.05389640388228585), (349, 0.05190824004033168), (37, 0.051805407639974176), (309, 0.05000231739497275), (41, 0.048984270336383924), (145, 0.04802455287301003), (140, 0.046605714192047294), (130, 0.04523466026094368), (239, 0.04441655204823597), (129, 0.04321942558348413), (290, 0.04151794522107661), (258, 0.03761762126152201), (85, 0.036783328564774), (376, 0.03446191209855885), (28, 0.03039712398216435)]),
    ]
}

const CHAT_CASE_COUNT: usize = 40;

/// Templates, each with cases (arguments as JSON) and what `apply_chat_template` made of them with the
/// special tokens `<|bos|>`, `<|im_end|>` and `<|endoftext|>`. A result ends before the line `===`.
const CHAT_CASES: &str = include_str!("recorded/chat_templates.txt");
