//! `phalanx` without a command: the embedded demo model answers some questions.

use clap::Parser;

use crate::Failure;
use crate::arguments::ModelArguments;
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

#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    model: ModelArguments,
}

pub(crate) fn run() -> Result<(), Failure> {
    let arguments = Defaults::parse_from(["phalanx"]).model;
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
