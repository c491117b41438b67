//! Spans as OpenTelemetry has them: OTLP in JSON, the body of a POST to a collector.
//!
//! Pure. Written by hand after opentelemetry-proto's `trace.proto` and OTLP's rules for JSON: ids are hexadecimal, numbers of 64 bits are
//! text, enumerations are numbers, keys are lowerCamelCase.

use serde_json::{Value as Json, json};

use super::tracer::{Kind, Span, Value};

/// `SpanFlags`: it is sampled; it is known whether the parent is remote; it is.
const SAMPLED: u32 = 0x1;
const KNOWS_REMOTE: u32 = 0x100;
const REMOTE: u32 = 0x200;
/// `STATUS_CODE_ERROR`.
const ERROR: u32 = 2;

/// `ExportTraceServiceRequest`. `resource` says whose spans these are.
pub(super) fn request(resource: &[(&'static str, Value)], spans: &[Span]) -> Json {
    json!({"resourceSpans": [{
        "resource": {"attributes": attributes(resource)},
        "scopeSpans": [{
            "scope": {"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")},
            "spans": spans.iter().map(span).collect::<Vec<_>>(),
        }],
    }]})
}

/// How many spans of a request a collector refused, by its `ExportTraceServiceResponse`.
pub(super) fn rejected(response: &[u8]) -> u64 {
    let Ok(response) = serde_json::from_slice::<Json>(response) else { return 0 };
    let rejected = &response["partialSuccess"]["rejectedSpans"];
    // A number of 64 bits may come as either.
    rejected.as_u64().or_else(|| rejected.as_str()?.parse().ok()).unwrap_or(0)
}

fn span(span: &Span) -> Json {
    let mut flags = SAMPLED;
    if span.parent.is_some() {
        flags |= KNOWS_REMOTE | if span.is_parent_remote { REMOTE } else { 0 };
    }
    let kind = match span.kind {
        Kind::Internal => 1,
        Kind::Server => 2,
        Kind::Client => 3,
    };
    let mut json = json!({
        "traceId": span.trace.to_string(),
        "spanId": span.id.to_string(),
        "flags": flags,
        "name": span.name,
        "kind": kind,
        "startTimeUnixNano": span.start_ns.to_string(),
        "endTimeUnixNano": span.end_ns.to_string(),
        "attributes": attributes(&span.attributes),
        "status": match &span.error {
            Some(error) => json!({"code": ERROR, "message": error}),
            None => json!({}),
        },
    });
    if let Some(parent) = span.parent {
        json["parentSpanId"] = parent.to_string().into();
    }
    if let Some(state) = &span.state {
        json["traceState"] = state.as_ref().into();
    }
    json
}

fn attributes(attributes: &[(&'static str, Value)]) -> Vec<Json> {
    attributes.iter().map(|(key, value)| json!({"key": key, "value": any(value)})).collect()
}

/// `AnyValue`.
fn any(value: &Value) -> Json {
    match value {
        Value::Text(text) => json!({"stringValue": text}),
        Value::Number(number) => json!({"intValue": number.to_string()}),
        Value::Flag(flag) => json!({"boolValue": flag}),
        Value::Texts(texts) => {
            let values: Vec<Json> = texts.iter().map(|text| json!({"stringValue": text})).collect();
            json!({"arrayValue": {"values": values}})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::context::{SpanId, TraceId};
    use super::*;

    /// To the letter what the specification's example has.
    #[test]
    fn a_span_is_written_as_the_specification_has_it() {
        let span = Span {
            trace: TraceId(0x5b8efff798038103d269b633813fc60c),
            id: SpanId(0xeee19b7ec3c1b174),
            parent: Some(SpanId(0xeee19b7ec3c1b173)),
            is_parent_remote: false,
            state: None,
            name: "dispatch".into(),
            kind: Kind::Client,
            start_ns: 1_544_712_660_000_000_000,
            end_ns: 1_544_712_661_000_000_000,
            attributes: vec![
                ("my.text", "x".into()),
                ("my.number", (1_u64 << 53).into()),
                ("my.flag", Value::Flag(true)),
                ("my.list", Value::Texts(vec!["stop".into()])),
            ],
            error: None,
        };
        let remote = Span {
            parent: None,
            is_parent_remote: false,
            state: Some("a=b".into()),
            error: Some("busy".into()),
            attributes: Vec::new(),
            kind: Kind::Server,
            ..span.clone()
        };
        let found = request(&[("service.name", "my.service".into())], &[span, remote]);
        let expected = json!({"resourceSpans": [{
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "my.service"}}]},
            "scopeSpans": [{
                "scope": {"name": "phalanx-coordinator", "version": env!("CARGO_PKG_VERSION")},
                "spans": [
                    {
                        "traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174",
                        "parentSpanId": "eee19b7ec3c1b173", "flags": 257, "name": "dispatch", "kind": 3,
                        "startTimeUnixNano": "1544712660000000000", "endTimeUnixNano": "1544712661000000000",
                        "attributes": [
                            {"key": "my.text", "value": {"stringValue": "x"}},
                            {"key": "my.number", "value": {"intValue": "9007199254740992"}},
                            {"key": "my.flag", "value": {"boolValue": true}},
                            {"key": "my.list", "value": {"arrayValue": {"values": [{"stringValue": "stop"}]}}},
                        ],
                        "status": {},
                    },
                    {
                        "traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174", "flags": 1,
                        "traceState": "a=b", "name": "dispatch", "kind": 2,
                        "startTimeUnixNano": "1544712660000000000", "endTimeUnixNano": "1544712661000000000",
                        "attributes": [], "status": {"code": 2, "message": "busy"},
                    },
                ],
            }],
        }]});
        assert_eq!(found, expected);
    }

    #[test]
    fn what_a_collector_refuses_is_heard() {
        assert_eq!(rejected(br#"{"partialSuccess": {"rejectedSpans": "12", "errorMessage": "x"}}"#), 12);
        assert_eq!(rejected(br#"{"partialSuccess": {"rejectedSpans": 3}}"#), 3);
        assert_eq!((rejected(b"{}"), rejected(b""), rejected(b"ok")), (0, 0, 0));
    }
}
