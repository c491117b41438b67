//! `phalanx demo`: the embedded demo model answers some questions.

use clap::Args;

use crate::Failure;
use crate::arguments::{ComputeArguments, ModelArguments};
use crate::generate::answer;
use crate::output::show;
use crate::session::{Session, texts};

/// One of each family that the demo model was trained on; anybody can check the answers.
const QUESTIONS: [&str; 10] = [
    "add 417+385=",
    "sub 931-74=",
    "max 12 85 81=",
    "sort 7315=",
    "rev abcde=",
    "count a banana=",
    "upper hello=",
    "shift 1 chtpe=",
    "day Fri+3=",
    "seq 10+6=",
];

/// Memory for keys and values; the longest answer takes little of it.
const KV_MEMORY: u64 = 64 << 20;

/// Ask the embedded demo model ten questions whose answers can be checked, in one process.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    #[command(flatten)]
    compute: ComputeArguments,
}

impl Demo {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let arguments =
            ModelArguments { model: None, compute: self.compute, shards: 1, kv_memory: KV_MEMORY };
        let texts = texts(None)?;
        let mut session = Session::load(&arguments)?;
        let spec = session.trunk.spec();
        let moe: Vec<_> = spec.moe_layers().collect();
        show(&format!(
            "The embedded demo model ({} style: {} layers, {} of them with {} experts of which a row takes {}), \
             numeric class {}:\n\n",
            spec.family.name(),
            spec.layers.len(),
            moe.len(),
            moe[0].1.experts,
            moe[0].1.top_k,
            session.kernels().class(),
        ))?;
        for question in QUESTIONS {
            let text = answer(&mut session, &texts, question, 64)?;
            show(&format!("  {question}{text}\n"))?;
        }
        show(
            "\nAsk it yourself:  phalanx generate --chat 'sort 4921='\n\
             Run a real model: phalanx generate --model DIR --chat 'Hello'\n\
             All commands:     phalanx --help\n",
        )
    }
}
