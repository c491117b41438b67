//! Answers that keep to a form: whatever the model would like to say, what it says parses and is what the schema describes.
//!
//! The logits are random, and the validator is a naive one of its own. `GRAMMAR_CASES` is how many schemas each tokenizer
//! has to do with; a failure prints the seed that repeats it.

#![allow(clippy::unwrap_used, reason = "a panic is a test's answer")]

// The name under which others know it.
extern crate phalanx_coordinator as coordinator;

use std::path::Path;
use std::time::{Duration, Instant};

use coordinator::generation::{FinishReason, Generation, Request};
use coordinator::grammar::{Form, GrammarError, Grammars, Guide};
use model::sampler::{self, Sampling, SamplingFields};
use model::text::{StopStream, Tokenizer};
use serde_json::{Map, Value, json};

const TOKENS_MAX: usize = 6000;

/// Random numbers that a seed repeats.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// A vocabulary, and which of its tokens help an answer to its end.
struct Vocabulary {
    tokenizer: Tokenizer,
    count: usize,
    end_ids: Vec<u32>,
    closing: Vec<bool>,
}

impl Vocabulary {
    fn new(tokenizer: Tokenizer, count: usize, end_ids: Vec<u32>) -> Self {
        let closes = |id: u32| {
            let text = tokenizer.decode(&[id], false).unwrap_or_default();
            end_ids.contains(&id) || matches!(text.trim(), "\"" | "}" | "]" | "," | ":")
        };
        let closing = (0..count as u32).map(closes).collect();
        Self { tokenizer, count, end_ids, closing }
    }

    fn of(folder: &str, count: usize, end: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
        let tokenizer = Tokenizer::open(&dir).unwrap();
        let end_ids = vec![tokenizer.id(end).unwrap()];
        Self::new(tokenizer, count, end_ids)
    }

    fn logits(&self, random: &mut Random) -> Vec<f32> {
        let one = |closes: &bool| random.below(8000) as f32 / 1000.0 + if *closes { 6.0 } else { 0.0 };
        self.closing.iter().map(one).collect()
    }

    fn grammars(&self) -> Grammars {
        Grammars::new(&self.tokenizer, self.count, &self.end_ids).unwrap()
    }
}

/// A tokenizer laid out as Mixtral's: pieces with a sign for a space, and bytes for all that is no piece.
fn sentencepiece() -> Vocabulary {
    let mut pieces: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    pieces.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    let rest = "▁ a b c e l o é 日 ▁h he ll \" { } [ ] , : ▁\" \": ▁{ {\" \"} 1 0 17 - . true ▁false null \\ name ▁▁ ▁▁▁▁";
    pieces.extend(rest.split(' ').map(str::to_owned));
    let count = pieces.len();
    let vocabulary: Map<String, Value> = pieces.into_iter().zip((0u32..).map(Value::from)).collect();
    let added = |(id, content): (u32, &str)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let added: Vec<Value> = (0..).zip(["<unk>", "<s>", "</s>"]).map(added).collect();
    let json = json!({
        "version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": vocabulary, "merges": []}
    });
    let tokenizer = Tokenizer::from_bytes("m", json.to_string().as_bytes(), None, None).unwrap();
    Vocabulary::new(tokenizer, count, vec![2])
}

fn vocabularies() -> Vec<(&'static str, Vocabulary)> {
    vec![
        ("bytes", Vocabulary::of("demo-model", 264, "<|end|>")),
        ("byte-level pairs", Vocabulary::of("tests/fixtures/qwen3moe", 512, "<|im_end|>")),
        ("pieces", sentencepiece()),
    ]
}

const KEYS: [&str; 5] = ["name", "é日", "a \"b\"", "n1", "x\\y"];

/// A random schema; `depth` more may lie inside.
fn schema(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth == 0 { 7 } else { 11 }) {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": "null"}),
        2 => json!({"type": "integer", "minimum": -20, "maximum": random.below(2000)}),
        3 => json!({"type": "number"}),
        4 => {
            let least = random.below(3);
            json!({"type": "string", "minLength": least, "maxLength": least + random.below(20)})
        }
        5 => json!({"enum": ["one", 2, null, "zw\u{f6}lf \"x\"", [1], {"a": "b"}]}),
        6 => json!({"const": KEYS[random.below(5)]}),
        7 => json!({"anyOf": [schema(random, depth - 1), schema(random, depth - 1)]}),
        8 => {
            let least = random.below(3);
            json!({"type": "array", "items": schema(random, depth - 1), "minItems": least,
                "maxItems": least + random.below(4)})
        }
        _ => {
            let mut properties = Map::new();
            let mut required = Vec::new();
            for key in KEYS.into_iter().filter(|_| random.below(2) == 0).collect::<Vec<_>>() {
                properties.insert(key.into(), schema(random, depth - 1));
                if random.below(2) == 0 {
                    required.push(key);
                }
            }
            json!({"type": "object", "properties": properties, "required": required,
                "additionalProperties": random.below(3) == 0})
        }
    }
}

/// Whether a schema of this file describes a value.
fn is_valid(schema: &Value, value: &Value) -> bool {
    let within = |count: usize, least: &str, most: &str| {
        schema[least].as_u64().is_none_or(|least| count as u64 >= least)
            && schema[most].as_u64().is_none_or(|most| count as u64 <= most)
    };
    if let Some(one) = schema.get("const") {
        return value == one;
    }
    if let Some(some) = schema["enum"].as_array() {
        return some.contains(value);
    }
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().any(|schema| is_valid(schema, value));
    }
    match schema["type"].as_str().unwrap() {
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| {
            let (least, most) = (schema["minimum"].as_f64().unwrap(), schema["maximum"].as_f64().unwrap());
            number.fract() == 0.0 && (least..=most).contains(&number)
        }),
        "string" => value.as_str().is_some_and(|text| within(text.chars().count(), "minLength", "maxLength")),
        "array" => value.as_array().is_some_and(|items| {
            within(items.len(), "minItems", "maxItems")
                && items.iter().all(|item| is_valid(&schema["items"], item))
        }),
        "object" => value.as_object().is_some_and(|object| {
            let properties = schema["properties"].as_object().unwrap();
            let is_known = |(key, value): (&String, &Value)| match properties.get(key) {
                Some(schema) => is_valid(schema, value),
                None => schema["additionalProperties"] == true,
            };
            let required = schema["required"].as_array().unwrap();
            required.iter().all(|key| object.contains_key(key.as_str().unwrap()))
                && object.iter().all(is_known)
        }),
        other => panic!("no type of this file: {other}"),
    }
}

fn cases() -> u64 {
    std::env::var("GRAMMAR_CASES").ok().and_then(|count| count.parse().ok()).unwrap_or(200)
}

fn request(vocabulary: &Vocabulary, grammars: &Grammars, form: Form, seed: u64) -> Request {
    let fields = SamplingFields { temperature: 1.0, seed, ..SamplingFields::default() };
    Request {
        prompt: vec![65],
        sampling: Sampling::new(fields).unwrap(),
        tokens_max: TOKENS_MAX,
        end_ids: vocabulary.end_ids.clone(),
        logprobs: Some(1),
        prompt_logprobs: false,
        experts: false,
        grammar: Some(grammars.compile(form).unwrap()),
        bias: None,
    }
}

/// Whatever the logits are, the text is JSON that its schema describes, ends by itself, and is told of with the model's own
/// probabilities; and what is allowed at any place follows from the tokens before it alone.
#[test]
fn random_answers_are_what_random_schemas_describe() {
    for (name, vocabulary) in vocabularies() {
        let grammars = vocabulary.grammars();
        for seed in 0..cases() {
            let mut random = Random(seed);
            let schema = schema(&mut random, 3);
            let shown = format!("{name}, seed {seed}: {schema}");
            let request = request(&vocabulary, &grammars, Form::Schema(schema.clone()), seed);
            let grammar = request.grammar.clone().unwrap();
            let text = vocabulary.tokenizer.stream(true);
            let mut answer = Generation::new(request, Some(text), StopStream::new(Vec::new()).unwrap());
            let mut told = String::new();
            while answer.finish_reason().is_none() {
                let logits = vocabulary.logits(&mut random);
                if random.below(20) == 0 {
                    // Somebody else takes the answer up here.
                    let mut guide = Guide::new(&grammar, answer.tokens());
                    let mask = guide.mask().unwrap().clone();
                    let step = answer.handle_logits(&logits).unwrap();
                    let id = step.token.as_ref().map_or(vocabulary.end_ids[0], |token| token.id);
                    assert!(mask.allows(id), "{shown}: {id} after {told}");
                    told += &step.text;
                    continue;
                }
                let step = answer.handle_logits(&logits).unwrap();
                if let Some(token) = step.token {
                    assert_eq!(token.logprobs, Some(sampler::logprobs(&logits, token.id, 1).unwrap()));
                }
                told += &step.text;
            }
            assert_eq!(answer.finish_reason(), Some(FinishReason::Stop), "{shown}: {told}");
            let value: Value =
                serde_json::from_str(&told).unwrap_or_else(|error| panic!("{shown}: {error}: {told}"));
            assert!(is_valid(&schema, &value), "{shown}: {told}");
            assert_eq!(told.trim_end(), told, "nothing follows a form that is complete");
        }
    }
}

/// An answer that is cut and taken up by somebody else has the tokens that it would have had.
#[test]
fn an_answer_is_taken_up_at_any_token() {
    let (_, vocabulary) = vocabularies().remove(1);
    let grammars = vocabulary.grammars();
    let form = json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}},
        "b": {"type": "string", "maxLength": 30}}, "required": ["a", "b"], "additionalProperties": false});
    let request = request(&vocabulary, &grammars, Form::Schema(form), 7);
    let run = |tokens: &[u32]| {
        let mut answer = Generation::new(request.clone(), None, StopStream::new(Vec::new()).unwrap());
        for id in tokens {
            answer.handle_token(*id, None);
        }
        while answer.finish_reason().is_none() {
            // The logits are those of the place, as a model's would be.
            let logits = vocabulary.logits(&mut Random(answer.tokens().len() as u64 + 1000));
            answer.handle_logits(&logits).unwrap();
        }
        answer.tokens().to_vec()
    };
    let whole = run(&[]);
    assert!(whole.len() > 20, "{whole:?}");
    for cut in 0..whole.len() {
        assert_eq!(run(&whole[..cut]), whole, "taken up after {cut}");
    }
}

/// A tokenizer whose tokens say nothing alone can keep to no form, and a schema that is none is said to be so.
#[test]
fn what_cannot_be_kept_to_is_refused() {
    let words: Map<String, Value> =
        ["[UNK]", "it", "##s"].into_iter().map(str::to_owned).zip((0u32..).map(Value::from)).collect();
    let pieces = json!({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": words}});
    let tokenizer = Tokenizer::from_bytes("m", pieces.to_string().as_bytes(), None, None).unwrap();
    assert_eq!(Grammars::new(&tokenizer, 3, &[]).err(), Some(GrammarError::NoBytes));

    let grammars = sentencepiece().grammars();
    for (schema, says) in [
        (json!({"not": {"type": "string"}}), "not"),
        (json!({"type": "colour"}), "colour"),
        (json!({"$ref": "#/$defs/none"}), "none"),
        (json!({"$ref": "https://example.com/a.json"}), ""),
        (json!({"type": "string", "pattern": "("}), ""),
        (json!({"type": "object", "uniqueItems": true, "x-guidance": {}}), "x-guidance"),
        (json!({"type": "array", "minItems": 3, "maxItems": 2}), ""),
        (json!([]), "object"),
    ] {
        let start = Instant::now();
        match grammars.compile(Form::Schema(schema.clone())) {
            Err(GrammarError::Form(why)) => assert!(why.contains(says) && why.len() < 500, "{schema}: {why}"),
            other => panic!("{schema}: {other:?}"),
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{schema}");
    }
}

/// Whatever a client writes as a schema is refused or compiled soon, in the stack that a server's threads have, and its
/// first masks are made or refused soon too.
#[test]
fn hostile_schemas_cost_little() {
    let nested = |depth: usize, open: &str, inner: &str, close: &str| {
        let text = format!("{}{inner}{}", open.repeat(depth), close.repeat(depth));
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let many = |count: usize| {
        (0..count).map(|number| format!("key {number} {}", "x".repeat(20))).collect::<Vec<_>>()
    };
    let branching = |depth: usize| {
        let mut definitions = Map::new();
        for level in 0..depth {
            let next = json!({"$ref": format!("#/$defs/a{}", level + 1)});
            definitions.insert(
                format!("a{level}"),
                json!({"allOf": [{"anyOf": [next, next]}, {"anyOf": [next, next]}]}),
            );
        }
        definitions
            .insert(format!("a{depth}"), json!({"type": "object", "properties": {"a": {"type": "string"}}}));
        json!({"$ref": "#/$defs/a0", "$defs": definitions})
    };
    let mut wide = Map::new();
    for key in many(3000) {
        wide.insert(key, json!({"type": "string", "pattern": "^[a-z]{3,9}$"}));
    }
    let schemas = [
        json!({"type": "array", "minItems": 1_000_000_000u64}),
        json!({"type": "array", "items": {"type": "integer"}, "minItems": 100_000, "maxItems": 200_000}),
        json!({"type": "string", "minLength": 1_000_000_000u64}),
        json!({"type": "string", "pattern": "^((a|b){1000}){1000}$"}),
        json!({"type": "string", "pattern": "^(a?){500}(a){500}(.*b.{300}){9}$"}),
        json!({"type": "string", "pattern": "(((((.*a){30}).*){30}).*){30}"}),
        json!({"enum": many(8000)}),
        json!({"type": "object", "properties": wide}),
        json!({"type": "object", "minProperties": 500_000}),
        json!({"type": "integer", "multipleOf": 982_451_653, "minimum": 1, "maximum": 1e15}),
        json!({"$ref": "#"}),
        json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}),
        branching(10),
        branching(30),
        nested(60, r#"{"type": "array", "items": "#, r#"{"type": "null"}"#, "}"),
        nested(40, r#"{"type": "object", "properties": {"a": "#, "true", "}}"),
        nested(60, r#"{"anyOf": ["#, "true", "]}"),
        nested(30, r#"{"allOf": [{"anyOf": [{}, {"type": "string"}]}, "#, "true", "]}"),
    ];
    let (_, vocabulary) = vocabularies().remove(1);
    let grammars = vocabulary.grammars();
    let run = || {
        for schema in schemas {
            let start = Instant::now();
            let compiled = grammars.compile(Form::Schema(schema.clone()));
            let time = start.elapsed();
            let words = compiled.as_ref().err().map(ToString::to_string);
            let mut most = Duration::ZERO;
            if let Ok(grammar) = &compiled {
                let (mut guide, mut random) = (Guide::new(grammar, &[]), Random(3));
                for position in 0..200 {
                    let start = Instant::now();
                    let Ok(mask) = guide.mask().cloned() else { break };
                    most = most.max(start.elapsed());
                    let logits = vocabulary.logits(&mut random);
                    let choice =
                        sampler::choose_among(Some(&mask), &logits, &[], &[], &Sampling::greedy(), position);
                    if guide.handle_token(choice.unwrap().token).unwrap_or(true) {
                        break;
                    }
                }
            }
            println!("{time:?}, masks up to {most:?}, {words:?}: {schema:.80}");
            assert!(time < Duration::from_secs(5) && most < Duration::from_secs(1), "{schema:.200}");
        }
    };
    // The stack of a runtime's threads.
    std::thread::scope(|scope| {
        std::thread::Builder::new().stack_size(2 << 20).spawn_scoped(scope, run).unwrap().join().unwrap();
    });
}

/// What a mask costs over a vocabulary as large as those of the released models. `--ignored`, for its figures.
#[test]
#[ignore = "a measurement"]
fn masks_of_a_large_vocabulary() {
    const COUNT: usize = 150_000;
    let mut random = Random(1);
    let mut words: Map<String, Value> = Map::new();
    // GPT-2's letters for all bytes.
    for letter in ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain('Ā'..='Ń') {
        words.insert(letter.to_string(), words.len().into());
    }
    while words.len() < COUNT {
        let letters = 2 + random.below(9);
        let mut word = String::from(if random.below(2) == 0 { "Ġ" } else { "" });
        let letter = |random: &mut Random| match random.below(12) {
            0 => char::from(b'!' + random.below(94) as u8),
            _ => char::from(b'a' + random.below(26) as u8),
        };
        word.extend((0..letters).map(|_| letter(&mut random)));
        let next = words.len();
        words.entry(word).or_insert(next.into());
    }
    let json = json!({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": words, "merges": []}});
    let tokenizer = Tokenizer::from_bytes("m", json.to_string().as_bytes(), None, None).unwrap();
    let vocabulary = Vocabulary::new(tokenizer, COUNT, Vec::new());
    let start = Instant::now();
    let grammars = vocabulary.grammars();
    println!("vocabulary of {COUNT}: {:?}", start.elapsed());
    for seed in 0..6 {
        let mut random = Random(seed);
        let mut form = json!({"type": "object"});
        if seed > 0 {
            let item = schema(&mut random, 3);
            form = json!({"type": "array", "items": item, "minItems": 1000});
        }
        let start = Instant::now();
        let grammar = grammars.compile(Form::Schema(form.clone())).unwrap();
        let compiled = start.elapsed();
        let (mut guide, mut times) = (Guide::new(&grammar, &[]), Vec::new());
        for position in 0..400 {
            let start = Instant::now();
            let mask = guide.mask().unwrap().clone();
            times.push(start.elapsed());
            let (logits, sampling) = (vocabulary.logits(&mut random), Sampling::greedy());
            let choice = sampler::choose_among(Some(&mask), &logits, &[], &[], &sampling, position).unwrap();
            if guide.handle_token(choice.token).unwrap() {
                break;
            }
        }
        times.sort();
        let at = |part: usize| times[(times.len() - 1) * part / 100];
        let (tokens, sum) = (times.len() as u32, times.iter().sum::<Duration>());
        println!(
            "compiled {compiled:?}; {tokens} masks: mean {:?}, p50 {:?}, p99 {:?}, most {:?}; {form:.120}",
            sum / tokens,
            at(50),
            at(99),
            at(100)
        );
    }
}
