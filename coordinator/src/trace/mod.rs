//! Traces: what became of a request, from its arrival to the experts of single rows, told to a collector.
//!
//! In the order of a span's life: [`context`] says of which trace it is, [`tracer`] takes it and never waits, `otlp` writes it
//! as OpenTelemetry has it, and [`Exporter`] sends what has gathered. Where nobody asked for traces there is no [`Tracer`], and
//! then all of it is a look at an absent value. Text of prompts and answers is in no span.
//!
//! *Why no SDK:* OpenTelemetry's own crates bring a runtime of metrics and logs, protocol buffers and another HTTP client. What is
//! needed of them is a page of JSON and a POST, and both hyper and serde_json are here already.

pub mod context;
mod export;
mod otlp;
pub mod settings;
pub mod tracer;

pub use context::{Parent, SpanId, TraceId};
pub use export::{Exporter, ExporterError};
pub use settings::{Collector, OtlpSettings, Share};
pub use tracer::{Counts, Kind, Span, Trace, Tracer, Value};
