//! The bias under which answers are computed, as a file that `phalanx generate --bias` takes.
//!
//! A shell.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, State as Shared};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use model::bias::Bias;

use super::refusal::{Refusal, quote};
use super::routes::App;
use super::stream::soon;

/// Letters of a digest.
const LETTERS: usize = 64;
/// So many of them are enough to find a bias.
const LETTERS_MIN: usize = 8;

/// The one that answers begin with now; one of no layers, where rows choose as the model has it.
pub(super) async fn current(Shared(app): Shared<Arc<App>>) -> Result<Response, Refusal> {
    let bias = soon(app.backend.bias(None)).await?;
    let none = || Bias::new(BTreeMap::new()).expect("there is no value that is wrong");
    Ok(file(&bias.map_or_else(none, |bias| (*bias).clone())))
}

/// The one whose digest begins so.
pub(super) async fn known(
    Shared(app): Shared<Arc<App>>,
    Path(digest): Path<String>,
) -> Result<Response, Refusal> {
    let Some(beginning) = beginning(&digest) else {
        let message = format!(
            "`{}` is no digest of a bias: give {LETTERS_MIN} to {LETTERS} hexadecimal letters, as `phalanx.bias` of an answer",
            quote(&digest)
        );
        return Err(Refusal::value("digest", message));
    };
    let bias = soon(app.backend.bias(Some(beginning))).await?;
    match bias.filter(|bias| bias.digest().to_string().starts_with(&digest)) {
        Some(bias) => Ok(file(&bias)),
        None => {
            let message = format!("no bias {} is known here any more", quote(&digest));
            Err(Refusal::new(StatusCode::NOT_FOUND, "bias_not_found", message).of("digest"))
        }
    }
}

fn beginning(digest: &str) -> Option<[u8; 4]> {
    let is_hex = digest.bytes().all(|letter| matches!(letter, b'0'..=b'9' | b'a'..=b'f'));
    if !is_hex || !(LETTERS_MIN..=LETTERS).contains(&digest.len()) {
        return None;
    }
    Some(u32::from_str_radix(&digest[..LETTERS_MIN], 16).ok()?.to_be_bytes())
}

fn file(bias: &Bias) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], bias.text()).into_response()
}
