//! An expert as a file of its own: the same block and the same digest, from whatever checkpoint it came; and what is
//! made of bytes that are no such file.

mod support;

use std::path::Path;
use std::sync::Arc;

use phalanx_model::checkpoint::{Checkpoint, Reader};
use phalanx_model::kernel::Region;
use phalanx_model::load::Opened;
use phalanx_model::weights::{ArrivalError, ArrivingExpert, Block, Digest, ExpertFile, ExpertId, ExpertPlan};
use safetensors::SafeTensors;
use support::blocks::assert_same_block;
use support::{Random, TempDir, fixture, fixtures, name_of};

fn open(dir: &Path) -> Opened {
    Opened::open(dir).unwrap_or_else(|e| panic!("{e}"))
}

fn file_of(opened: &Opened, id: ExpertId) -> ExpertFile {
    ExpertFile::open(&opened.checkpoint, &opened.spec, id).unwrap_or_else(|e| panic!("{e}"))
}

/// All of it, in pieces of any size.
fn bytes_of(file: &ExpertFile, random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; file.length() as usize];
    let mut at = 0;
    while at < bytes.len() {
        let end = (at + 1 + random.below(5000)).min(bytes.len());
        file.read_at(at as u64, &mut bytes[at..end]).unwrap_or_else(|e| panic!("{e}"));
        at = end;
    }
    bytes
}

/// Every expert, the dense layers' feed-forwards too.
fn experts(opened: &Opened) -> Vec<ExpertId> {
    let layers = opened.spec.experts_out(true);
    layers
        .flat_map(|l| (0..l.experts).map(move |e| ExpertId { layer: l.layer as u32, expert: e as u32 }))
        .collect()
}

fn load(checkpoint: &Checkpoint, opened: &Opened, id: ExpertId, exact: bool) -> (Block, Digest) {
    let plan = ExpertPlan::new(checkpoint, &opened.spec, id).unwrap_or_else(|e| panic!("{e}"));
    let region = Arc::new(Region::new(plan.bytes(exact)));
    let (block, digest) = plan.load(&region, &mut Reader::new(exact, true)).unwrap_or_else(|e| panic!("{e}"));
    (block, digest.expect("the reader hashes"))
}

/// Of every checkpoint in the repository: written beside its `config.json` the file is a checkpoint of one expert, which
/// packs to the same block and has the same digest; and that digest is of all that follows the header.
#[test]
fn an_experts_file_is_that_expert() {
    let mut random = Random::seeded("EXPERT_FILE_SEED");
    for dir in fixtures() {
        let opened = open(&dir);
        let all = experts(&opened);
        let mut some: Vec<ExpertId> = (0..6).map(|_| all[random.below(all.len())]).collect();
        some.extend([all[0], all[all.len() - 1]]);
        for id in some {
            let what = format!("{}, expert {id}", name_of(&dir));
            let file = file_of(&opened, id);
            let bytes = bytes_of(&file, &mut random);
            let folder = TempDir::new("expert-file");
            std::fs::copy(dir.join("config.json"), folder.0.join("config.json")).expect("copied");
            std::fs::write(folder.0.join("model.safetensors"), &bytes).expect("written");

            let alone = open(&folder.0);
            assert_eq!(alone.config_digest, opened.config_digest);
            for exact in [false, true] {
                let (block, digest) = load(&alone.checkpoint, &opened, id, exact);
                let (wanted, wanted_digest) = load(&opened.checkpoint, &opened, id, exact);
                assert_same_block(&block, &wanted, &what);
                assert_eq!(digest, wanted_digest, "{what}");
                assert_eq!(digest, Digest::of(&bytes[file.header().len()..]), "{what}");
            }
            let again = file_of(&alone, id);
            assert!(again.is_in_place().unwrap_or_else(|e| panic!("{e}")), "{what}");
            let digest = file.digest().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(digest, Digest::of(&bytes[file.header().len()..]), "{what}");
            assert_eq!(bytes_of(&again, &mut random), bytes, "{what}: a holder can serve it on");
            let tensors = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(tensors.len() >= 2 && bytes.len() as u64 == file.length(), "{what}");
            assert!(file.length() <= ExpertFile::bytes_max(&opened.spec, id.layer as usize), "{what}");

            let other = all.iter().find(|other| **other != id).expect("a model has more than one");
            let found = ExpertPlan::new(&alone.checkpoint, &opened.spec, *other);
            assert!(found.is_err(), "{what}: taken for expert {other}");
        }
    }
}

/// The same tensors in another order have another digest behind the header, but not the expert's; who compares headers
/// is not misled.
#[test]
fn another_order_of_the_tensors_is_noticed() {
    let opened = open(&fixture("qwen3moe"));
    let id = opened.experts()[2];
    let file = file_of(&opened, id);
    assert!(!file.is_in_place().unwrap_or_else(|e| panic!("{e}")), "a whole checkpoint is no expert's file");
    let bytes = bytes_of(&file, &mut Random::new(3));
    let tensors = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{e}"));
    let mut sorted = tensors.tensors();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let folder = TempDir::new("expert-order");
    let other = safetensors::serialize(sorted, None).unwrap_or_else(|e| panic!("{e}"));
    std::fs::write(folder.0.join("model.safetensors"), other).expect("written");
    let checkpoint = Checkpoint::open(&folder.0).unwrap_or_else(|e| panic!("{e}"));
    let found = ExpertFile::open(&checkpoint, &opened.spec, id).unwrap_or_else(|e| panic!("{e}"));
    assert!(!found.is_in_place().unwrap_or_else(|e| panic!("{e}")));
    assert_eq!(
        found.digest().expect("readable"),
        file.digest().expect("readable"),
        "it is the expert's all the same"
    );
}

/// However it is cut, the receiver knows the length as soon as the header is whole, and the digest at the end.
#[test]
fn an_arriving_expert_is_measured_and_hashed() {
    let mut random = Random::seeded("EXPERT_FILE_SEED");
    for name in ["qwen3moe", "gptoss-mxfp4", "deepseekv3-fp8", "mixtral-v5-fused", "gptoss"] {
        let opened = open(&fixture(name));
        let id = opened.experts()[1];
        let file = file_of(&opened, id);
        let bytes = bytes_of(&file, &mut random);
        let max = ExpertFile::bytes_max(&opened.spec, id.layer as usize);
        let base = file.header().len();
        for end in [0, 1, 7, 8, 9, base - 1] {
            assert_eq!(ExpertFile::length_of(&bytes[..end], max), Ok(None), "{name}, {end} bytes");
        }
        for end in [base, base + 1, bytes.len()] {
            assert_eq!(ExpertFile::length_of(&bytes[..end], max), Ok(Some(file.length())), "{name}");
        }
        for piece in [1, 3, base - 1, base, base + 1, 4096, bytes.len()] {
            let mut arriving = ArrivingExpert::new(max);
            for (count, piece_bytes) in bytes.chunks(piece).enumerate() {
                assert!(!arriving.is_whole());
                arriving.handle_bytes(piece_bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
                let come = (count * piece + piece_bytes.len()) as u64;
                assert_eq!(arriving.received(), come);
                assert_eq!(arriving.length(), (come >= base as u64).then_some(file.length()));
            }
            assert!(arriving.is_whole());
            assert_eq!(arriving.finish(), Ok(load(&opened.checkpoint, &opened, id, false).1), "{name}");
        }
    }
}

/// A file that ends early, goes on, or was changed on the way is not the expert's.
#[test]
fn a_damaged_arrival_is_noticed() {
    let opened = open(&fixture("qwen3moe"));
    let id = opened.experts()[3];
    let file = file_of(&opened, id);
    let bytes = bytes_of(&file, &mut Random::new(1));
    let max = ExpertFile::bytes_max(&opened.spec, id.layer as usize);
    let arrive = |bytes: &[u8]| {
        let mut arriving = ArrivingExpert::new(max);
        arriving.handle_bytes(bytes)?;
        arriving.finish()
    };
    let wanted = arrive(&bytes).unwrap_or_else(|e| panic!("{e}"));
    let length = file.length();
    for received in [0, 5, 100, length - 1] {
        let known = (received >= file.header().len() as u64).then_some(length);
        let found = arrive(&bytes[..received as usize]);
        assert_eq!(found, Err(ArrivalError::Short { received, length: known }));
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(arrive(&longer), Err(ArrivalError::Excess { received: length + 1, length }));
    for at in (file.header().len()..bytes.len()).step_by(997) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 16;
        assert_ne!(arrive(&damaged), Ok(wanted), "byte {at}");
    }
}

fn header(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Whatever a header says, it is understood whole or refused; sizes neither wrap around nor are believed.
#[test]
fn a_lying_header_is_refused() {
    let max = 1 << 20;
    let entry = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"dtype":"BF16","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let good = header(&format!(r#"{{"a":{},"b":{}}}"#, entry("[4,4]", 0, 32), entry("[2]", 32, 36)));
    assert_eq!(ExpertFile::length_of(&good, max), Ok(Some(good.len() as u64 + 36)));
    let refused = [
        ("not JSON", "{".to_string()),
        ("not an object", "[1]".into()),
        ("nothing", "{}".into()),
        ("only metadata", r#"{"__metadata__":{"a":"b"}}"#.into()),
        ("a hole", format!(r#"{{"a":{}}}"#, entry("[4]", 8, 16))),
        ("a hole between", format!(r#"{{"a":{},"b":{}}}"#, entry("[4]", 0, 8), entry("[4]", 16, 24))),
        ("an overlap", format!(r#"{{"a":{},"b":{}}}"#, entry("[4]", 0, 8), entry("[4]", 4, 12))),
        ("one twice", format!(r#"{{"a":{},"a":{}}}"#, entry("[4]", 0, 8), entry("[4]", 8, 16))),
        ("backwards", format!(r#"{{"a":{}}}"#, entry("[4]", 8, 0))),
        ("another size", format!(r#"{{"a":{}}}"#, entry("[4]", 0, 10))),
        ("an empty shape that has bytes", format!(r#"{{"a":{}}}"#, entry("[0]", 0, 8))),
        ("overflow", format!(r#"{{"a":{}}}"#, entry("[4294967296,4294967296,2]", 0, 8))),
        ("the end of numbers", format!(r#"{{"a":{}}}"#, entry("[9223372036854775807]", 0, u64::MAX - 1))),
        ("an unknown type", good_type("F9")),
        ("deep nesting", format!(r#"{{"a":{}}}"#, "[".repeat(30_000))),
    ];
    for (what, text) in refused {
        let found = ExpertFile::length_of(&header(&text), max);
        assert!(matches!(found, Err(ArrivalError::Malformed(_))), "{what}: {found:?}");
        assert!(ArrivingExpert::new(max).handle_bytes(&header(&text)).is_err(), "{what}");
    }
    for length in [64 * 1024 + 1, 1 << 40, u64::MAX] {
        let found = ExpertFile::length_of(&length.to_le_bytes(), max);
        assert!(matches!(found, Err(ArrivalError::Malformed(_))), "{length}: {found:?}");
    }
    let huge = header(&format!(r#"{{"a":{}}}"#, entry("[1048576]", 0, 2 << 20)));
    let length = huge.len() as u64 + (2 << 20);
    assert_eq!(ExpertFile::length_of(&huge, max), Err(ArrivalError::TooLong { length, max }));
}

fn good_type(dtype: &str) -> String {
    format!(r#"{{"a":{{"dtype":"{dtype}","shape":[4],"data_offsets":[0,8]}}}}"#)
}

/// Every bit of a header may come wrong: it is refused, or it says a length within the bound.
#[test]
fn a_damaged_header_is_refused_or_bounded() {
    let opened = open(&fixture("deepseekv3-fp8"));
    let id = opened.experts()[0];
    let max = ExpertFile::bytes_max(&opened.spec, id.layer as usize);
    let header = file_of(&opened, id).header().to_vec();
    let mut refused = 0;
    for bit in 0..8 * header.len() {
        let mut damaged = header.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        match ExpertFile::length_of(&damaged, max) {
            Ok(length) => assert!(length.is_none_or(|length| length <= max), "bit {bit}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 2 * header.len(), "{refused} of {} refused", 8 * header.len());
}

/// What the demo model, which is compiled in, gives is the same as from its folder.
#[test]
fn an_embedded_model_gives_the_same_file() {
    let dir = support::root().join("demo-model");
    let folder = open(&dir);
    let embedded = Opened::embedded(
        "demo",
        include_bytes!("../../demo-model/config.json"),
        include_bytes!("../../demo-model/model.safetensors"),
    );
    let embedded = embedded.unwrap_or_else(|e| panic!("{e}"));
    let mut random = Random::new(2);
    let id = folder.experts()[5];
    assert_eq!(bytes_of(&file_of(&embedded, id), &mut random), bytes_of(&file_of(&folder, id), &mut random));
    let file = file_of(&embedded, id);
    let bytes = bytes_of(&file, &mut random);
    let (_, digest) = load(&embedded.checkpoint, &embedded, id, false);
    assert_eq!(digest, Digest::of(&bytes[file.header().len()..]));
}
