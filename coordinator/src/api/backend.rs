//! What the API needs of whoever computes.
//!
//! No code: the seam between clients and the data plane.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use model::bias::Bias;
use model::kernel::NumericClass;
use model::spec::Spec;
use model::weights::Digest;
use serde_json::Value;

use super::resume::{Same, beginning, digest};
use crate::data::request::{RequestId, Submission};
use crate::texts::Texts;

/// Something that comes soon.
pub type Soon<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Whoever computes answers.
pub trait Backend: Send + Sync + 'static {
    /// Takes a request. Whatever becomes of it is said by its events, a refusal too.
    fn submit(&self, submission: Submission) -> Soon<'_, RequestId>;

    /// Nobody waits for this request any more. It may have ended long ago.
    fn cancel(&self, id: RequestId);

    /// The bias that answers begin with now, or the one whose digest begins so, as long as it is known. Nothing: rows choose
    /// experts as the model has it, or it is not known here.
    fn bias(&self, beginning: Option<[u8; 4]>) -> Soon<'_, Option<Arc<Bias>>>;

    /// Whether requests can be answered now.
    fn health(&self) -> Soon<'_, Health>;

    /// All that is known of the cluster, as `docs/api.md` describes it.
    fn cluster(&self) -> Soon<'_, Value>;

    /// What changes of it from second to second, likewise.
    fn pulse(&self) -> Soon<'_, Value>;

    /// What a live request waits for, or each of them, likewise.
    fn why(&self, request: Option<RequestId>) -> Soon<'_, Value>;

    /// Has a node of this name hold nothing from now on; by force also where what it holds has no room elsewhere. What
    /// follows from it, likewise.
    fn drain(&self, node: String, by_force: bool) -> Soon<'_, Result<Value, DrainRefused>>;

    /// Has a drained node hold experts again.
    fn undrain(&self, node: String) -> Soon<'_, Result<Value, DrainRefused>>;
}

/// Why a node is not drained, or not used again, in words for people. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DrainRefused {
    /// No node has this name.
    #[error("{0}")]
    Unknown(String),
    /// There is nobody else.
    #[error("{0}")]
    OnlyOne(String),
    /// What it holds has no room elsewhere.
    #[error("{0}")]
    NoRoom(String),
    /// Another coordinator says what nodes hold.
    #[error("{0}")]
    Superseded(String),
    /// It cannot be remembered.
    #[error("{0}")]
    NotStored(String),
    /// The program is ending.
    #[error("the coordinator is stopping")]
    Stopping,
}

/// How far the cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has not served yet: nodes are still to join, or to load. Requests are refused.
    Loading,
    /// Every expert has a holder.
    Serving,
    /// It has served, and now an expert has no holder. Requests are taken: a row that needs this expert waits for
    /// it up to the request's deadline, and no other does.
    Waiting,
    /// It is about to end. Requests are refused.
    Stopping,
}

impl State {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            State::Loading => "loading",
            State::Serving => "serving",
            State::Waiting => "waiting",
            State::Stopping => "stopping",
        }
    }

    /// Whether requests are taken.
    pub fn takes_requests(self) -> bool {
        matches!(self, State::Serving | State::Waiting)
    }
}

/// Whether requests can be answered now, and if not, what is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// How far it is.
    pub state: State,
    /// What is missing, in words for people: "12 of 64 experts have no holder; nodes: 2".
    pub missing: Vec<String>,
}

/// The model that is served.
#[derive(Debug, Clone)]
pub struct Served {
    /// Its name for clients.
    pub name: String,
    /// What it is.
    pub spec: Arc<Spec>,
    /// Its tokenizer, template and defaults.
    pub texts: Arc<Texts>,
    /// What it is computed in.
    pub numeric_class: NumericClass,
    /// Of its `config.json`.
    pub config_digest: Digest,
}

impl Served {
    /// All that a stream of this prompt and these parameters depends on, but for its seed.
    pub(super) fn same(&self, prompts: &[Vec<u32>], parameters: [u8; 6], bias: Option<&Bias>) -> Same {
        let bytes = |prompt: &Vec<u32>| prompt.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
        let ids: Vec<Vec<u8>> = prompts.iter().map(bytes).collect();
        Same {
            model: digest(&[self.name.as_bytes(), self.config_digest.to_string().as_bytes()]),
            numeric: digest(&[self.numeric_class.to_string().as_bytes(), &self.spec.shards.to_le_bytes()]),
            prompt: digest(&ids.iter().map(Vec::as_slice).collect::<Vec<_>>()),
            parameters,
            bias: bias.map(beginning),
        }
    }

    /// What the bits of an answer depend on, in one word: OpenAI's `system_fingerprint`.
    pub(super) fn fingerprint(&self, bias: Option<&Bias>) -> String {
        let shards = match self.spec.shards {
            1 => String::new(),
            shards => format!("-{shards}-shards"),
        };
        let bias = bias.map(|bias| format!("-bias-{:.12}", bias.digest().to_string())).unwrap_or_default();
        format!("{}-{:.12}{shards}{bias}", self.numeric_class, self.config_digest.to_string())
    }
}
