//! `/`: the page that shows the formation at work and talks to the model.
//!
//! One response with all that it needs, so that it works without a network behind it and nothing else learns of it. It is
//! put together from the files of `page/`; there is nothing to be built. It is served to everybody: what it shows it asks
//! for itself, with the key of whoever looks at it.

use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};

const MARKUP: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
/// In the order in which they need one another.
const SCRIPTS: [&str; 6] = [
    include_str!("page/words.js"),
    include_str!("page/server.js"),
    include_str!("page/formation.js"),
    include_str!("page/charts.js"),
    include_str!("page/chat.js"),
    include_str!("page/main.js"),
];

/// The page. Only what carries `nonce` in it is run or styles it, and it reaches nobody but its own server.
pub(super) fn response(nonce: &str) -> Response {
    let page =
        MARKUP.replace("{nonce}", nonce).replace("{style}", STYLE).replace("{script}", &SCRIPTS.join("\n"));
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let policy = HeaderValue::from_str(&policy).expect("a nonce is of letters and digits");
    let fixed = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (fixed, [(header::CONTENT_SECURITY_POLICY, policy)], Html(page)).into_response()
}
