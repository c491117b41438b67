//! The bits themselves, pinned: the same class gives the same bits on any host, today and tomorrow.
//!
//! Computed once and written down; every path and every processor must come to them again. When a change
//! of the numbers is meant, these lines change with it, and every node of a cluster must be of one
//! version.

mod support;

use phalanx_model::kernel::{Kernels, NumericClass, Path};
use support::{Loop, root};

/// Digest of the logits of every position, as bits.
fn digest(fixture: &str, kernels: Kernels) -> String {
    let mut model = Loop::with(&root().join("tests/fixtures").join(fixture), kernels, 2);
    let tokens: Vec<u32> = (0..90).map(|i| i * 37 % 500).collect();
    let logits = model.forward(&tokens, &mut phalanx_model::plain::Unobserved);
    let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect();
    blake3::hash(&bytes).to_hex()[..16].to_string()
}

#[test]
fn bits_are_what_they_were() {
    let pinned = [
        (NumericClass::F32, "deepseekv3-seed", "7efd7d90743649a6"),
        (NumericClass::F32, "gptoss", "b30df62a5b8a01de"),
        (NumericClass::Portable, "deepseekv3-seed", "ff4eb2b46e615d7a"),
        (NumericClass::Portable, "gptoss", "69e8461e24d458a0"),
        (NumericClass::Portable, "qwen3moe", "fa630a8d251c35c8"),
    ];
    let mut wrong = Vec::new();
    for (class, fixture, expected) in pinned {
        for path in [Path::Plain, Path::Avx2, Path::Avx512f] {
            let kernels = match Kernels::new(class, path) {
                Ok(kernels) => kernels,
                Err(error) => {
                    println!("SKIPPED: {error}");
                    continue;
                }
            };
            let found = digest(fixture, kernels);
            if found != expected {
                wrong.push(format!("{class} on {path}, {fixture}: {found}, pinned {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
