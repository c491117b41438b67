//! What clients speak to: OpenAI's completions and chats over HTTP, the state of the cluster, and whether it serves.
//!
//! In the order a request meets it: [`serve`] bounds connections, headers and writes; the router reads the body
//! within its bounds; `ask` (and `chat`, for messages) makes parameters of it and refuses by name what it cannot do;
//! `prompt` makes ids; [`Backend`] computes;
//! `answer` and `stream` tell the client, with ids by which `resume` goes on where a stream was cut. It knows neither actors nor experts: whoever implements [`Backend`] may be
//! a cluster or a thread.
//!
//! Nothing that a client sends is logged, and whoever goes away has his request cancelled.

mod admin;
mod answer;
mod ask;
mod backend;
mod bias;
mod chat;
mod exposition;
mod fields;
mod form;
mod keys;
mod listen;
mod metrics;
mod openapi;
mod paced;
mod page;
mod prepare;
mod prompt;
mod refusal;
mod resume;
mod routes;
mod said;
mod span;
mod stream;
mod tls;
mod tokens;
mod tools;
mod watch;

pub use backend::{Backend, DrainRefused, Health, Served, Soon, State};
pub use keys::{Keys, KeysError, is_shown};
pub use listen::{Exposed, Limits, check_address, is_local, serve};
pub use routes::App;
pub use tls::{TlsError, server_config};
