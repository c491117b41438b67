//! What operators ask of a cluster: that a node is drained, and that it is used again.
//!
//! A shell. Whoever may ask for answers may ask for this: it stands behind the same keys.

use std::sync::Arc;

use axum::extract::{Request, State as Shared};
use axum::http::StatusCode;
use axum::response::Response;

use super::ask::{flag, utf8};
use super::backend::DrainRefused;
use super::fields::Fields;
use super::refusal::{Refusal, json_response};
use super::routes::{App, body_of};
use super::stream::soon;

pub(super) const DRAIN: &[&str] = &["node", "force"];
pub(super) const UNDRAIN: &[&str] = &["node"];

/// Has a node hold nothing from now on. What it holds moves, while it serves on.
pub(super) async fn drain(Shared(app): Shared<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    let body = body_of(request, app.limits()).await?;
    let fields = Fields::read(utf8(&body)?, "", DRAIN)?;
    let (node, force) = (node(&fields)?, flag(&fields, "force")?);
    Ok(json_response(StatusCode::OK, &soon(app.backend.drain(node, force)).await??))
}

/// Has it hold experts again.
pub(super) async fn undrain(Shared(app): Shared<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    let body = body_of(request, app.limits()).await?;
    let fields = Fields::read(utf8(&body)?, "", UNDRAIN)?;
    Ok(json_response(StatusCode::OK, &soon(app.backend.undrain(node(&fields)?)).await??))
}

fn node(fields: &Fields<'_>) -> Result<String, Refusal> {
    const EXPECTED: &str = "the name of a node";
    fields.take("node", EXPECTED)?.ok_or_else(|| fields.wrong("node", EXPECTED))
}

impl From<DrainRefused> for Refusal {
    fn from(why: DrainRefused) -> Self {
        let (status, code) = match why {
            DrainRefused::Unknown(_) => (StatusCode::NOT_FOUND, "node_not_found"),
            DrainRefused::OnlyOne(_) => (StatusCode::CONFLICT, "only_node"),
            DrainRefused::NoRoom(_) => (StatusCode::CONFLICT, "no_room"),
            DrainRefused::Superseded(_) => (StatusCode::CONFLICT, "superseded"),
            DrainRefused::NotStored(_) => (StatusCode::INTERNAL_SERVER_ERROR, "not_stored"),
            DrainRefused::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        };
        Self::new(status, code, why.to_string())
    }
}
