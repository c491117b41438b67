//! Where spans go, and how much is told: what a person says, and below it OpenTelemetry's own variables.
//!
//! Pure: variables are an argument.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use axum::http::{HeaderName, HeaderValue, Uri};

use super::context::TraceId;

/// Where a collector takes traces, behind the URL that it is known by.
const TRACES: &str = "/v1/traces";
/// Requests whose dispatches are told where nobody says how many: one of a hundred.
const SHARE: Share = Share(0.01);
/// Whose spans these are, where nobody says.
const SERVICE: &str = "phalanx-coordinator";

/// A collector of traces.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct Collector {
    pub(super) is_https: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) path: String,
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}{}", self.host, self.port, self.path)
    }
}

impl Collector {
    /// At exactly this URL.
    fn at(url: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{url}` is not the URL of a collector; write for example http://127.0.0.1:4318");
        let uri: Uri = url.trim().parse().map_err(|_| wrong())?;
        let is_https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().ok_or_else(wrong)?.as_str();
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        // A port that is no port is not passed over, and a name before it would be sent nowhere.
        let rest = authority.strip_prefix(host).ok_or_else(wrong)?;
        if (!rest.is_empty() && uri.port_u16().is_none()) || uri.query().is_some() {
            return Err(wrong());
        }
        let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        Ok(Self { is_https, host: host.to_owned(), port, path: uri.path().to_owned() })
    }
}

impl FromStr for Collector {
    type Err = String;

    /// Reads the URL that a collector is known by; where it takes traces follows from that.
    fn from_str(url: &str) -> Result<Self, String> {
        let base = Self::at(url)?;
        let path = format!("{}{TRACES}", base.path.trim_end_matches('/'));
        Ok(Self { path, ..base })
    }
}

impl TryFrom<String> for Collector {
    type Error = String;

    fn try_from(url: String) -> Result<Self, String> {
        url.parse()
    }
}

/// A part of all traces.
#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize)]
#[serde(try_from = "f64")]
pub struct Share(f64);

impl Eq for Share {}

impl Share {
    /// All of them.
    pub const ALL: Self = Self(1.0);

    /// Whether a trace is among them: everybody who is asked about a trace says the same.
    pub fn takes(self, trace: TraceId) -> bool {
        // Of a trace's id the last 56 bits are random, as W3C has it; an f64 holds their beginning.
        let part = (trace.0 & ((1 << 56) - 1)) as f64 / (1_u64 << 56) as f64;
        part < self.0
    }
}

impl TryFrom<f64> for Share {
    type Error = String;

    fn try_from(share: f64) -> Result<Self, String> {
        match (0.0..=1.0).contains(&share) {
            true => Ok(Self(share)),
            false => {
                Err(format!("{share} is no part of all; from 0 to 1 are supported, 0.01 is one of a hundred"))
            }
        }
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share: f64 =
            text.parse().map_err(|_| format!("`{text}` is not a number; write for example 0.01"))?;
        share.try_into()
    }
}

/// How spans are sent.
#[derive(Debug, Clone, PartialEq)]
pub struct OtlpSettings {
    /// To whom.
    pub collector: Collector,
    /// Of how many requests the dispatches are told.
    pub share: Share,
    /// File of the certificates that vouch for the collector's; the system's, where there is none.
    pub ca: Option<PathBuf>,
    /// What is sent along, such as a key.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Whose spans these are.
    pub service: String,
}

/// What was said on the command line or in a file.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// To whom.
    pub collector: Option<Collector>,
    /// Of how many requests the dispatches are told.
    pub share: Option<Share>,
    /// A file of certificates.
    pub ca: Option<PathBuf>,
}

impl OtlpSettings {
    /// What was said, else what OpenTelemetry's variables say; none, where nobody wants spans. The text is a warning.
    pub fn find(said: Said, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, String> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        // Those of traces go before those of all signals.
        let of_traces = |name: &str| {
            let names = [format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), format!("OTEL_EXPORTER_OTLP_{name}")];
            names.into_iter().find_map(|name| variable(&name).map(|value| (name, value)))
        };
        let collector = match said.collector {
            Some(collector) => collector,
            None => {
                let Some((name, url)) = of_traces("ENDPOINT") else { return Ok(None) };
                if variable("OTEL_SDK_DISABLED")
                    .is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
                {
                    return Ok(None);
                }
                if let Some((protocol, _)) = of_traces("PROTOCOL").filter(|(_, value)| value.trim() == "grpc")
                {
                    return Err(format!(
                        "{protocol} says grpc, and traces are sent as http/json: none are; give the URL of the collector's \
                         HTTP port with --otlp"
                    ));
                }
                let read = if name.contains("_TRACES_") { Collector::at(&url) } else { url.parse() };
                read.map_err(|why| format!("{name}: {why}; no traces are sent"))?
            }
        };
        let headers = of_traces("HEADERS").map_or(Ok(Vec::new()), |(name, value)| {
            headers(&value).ok_or_else(|| format!("{name} is not a list of NAME=VALUE; no traces are sent"))
        })?;
        Ok(Some(Self {
            collector,
            share: said.share.unwrap_or(SHARE),
            ca: said.ca.or_else(|| of_traces("CERTIFICATE").map(|(_, file)| file.into())),
            headers,
            service: variable("OTEL_SERVICE_NAME").unwrap_or_else(|| SERVICE.to_owned()),
        }))
    }
}

/// Reads `name=value,name=value`, with values as they stand in URLs.
fn headers(text: &str) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let header = |header: &str| {
        let (name, value) = header.split_once('=')?;
        let mut value = HeaderValue::from_bytes(&unescaped(value.trim())?).ok()?;
        // It may be a key, which is shown to nobody.
        value.set_sensitive(true);
        Some((name.trim().parse().ok()?, value))
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(header).collect()
}

/// `%20` and its like as the bytes that they stand for.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(said: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<OtlpSettings>, String> {
        let said = Said { collector: said.map(|url| url.parse().unwrap()), ..Said::default() };
        let value = |name: &str| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| value.to_string())
        };
        OtlpSettings::find(said, value)
    }

    fn url(said: Option<&str>, variables: &[(&str, &str)]) -> Option<String> {
        found(said, variables).unwrap().map(|settings| settings.collector.to_string())
    }

    const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const TRACES_ONLY: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

    /// Where a collector is, as OpenTelemetry's specification of exporters has it; what is said to us goes before.
    #[test]
    fn a_collector_is_found() {
        let is = |expected: &str| Some(expected.to_owned());
        assert_eq!(url(None, &[]), None);
        assert_eq!(url(Some("http://c:4318"), &[]), is("http://c:4318/v1/traces"));
        assert_eq!(url(Some("https://c/otlp/"), &[(ALL, "http://d")]), is("https://c:443/otlp/v1/traces"));
        assert_eq!(url(None, &[(ALL, "http://c:4318/x/")]), is("http://c:4318/x/v1/traces"));
        assert_eq!(url(None, &[(ALL, "http://c"), (TRACES_ONLY, "http://t:1/in")]), is("http://t:1/in"));
        assert_eq!(url(None, &[(ALL, " ")]), None, "an empty variable is none");
        assert_eq!(url(None, &[(ALL, "http://c"), ("OTEL_SDK_DISABLED", "true")]), None);
        assert_eq!(url(Some("http://[::1]:4318"), &[]), is("http://[::1]:4318/v1/traces"));
        let grpc =
            found(None, &[(ALL, "http://c:4317"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).unwrap_err();
        assert!(grpc.contains("--otlp"), "{grpc}");
        assert!(found(None, &[(ALL, "c:4318")]).unwrap_err().starts_with(ALL));
        for wrong in ["", "c", "c:4318", "ftp://c", "http://", "http://c:x", "http://me@c", "http://c?a=b"] {
            assert!(wrong.parse::<Collector>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_names_and_certificates_come_by_variables() {
        let variables = [
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b%3D, X-Two = 2"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_SERVICE_NAME", "front"),
        ];
        let settings = found(Some("https://c"), &variables).unwrap().unwrap();
        let told: Vec<(&str, &[u8])> =
            settings.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(told, [("api-key", b"a b=".as_slice()), ("x-two", b"2")]);
        assert!(!format!("{settings:?}").contains("a b="), "a key is not shown");
        assert_eq!((settings.ca, settings.service.as_str()), (Some("/ca.pem".into()), "front"));
        assert_eq!(settings.share, SHARE);
        for wrong in ["x", "a b=1", "a=%4", "a=%zz"] {
            assert!(found(Some("http://c"), &[("OTEL_EXPORTER_OTLP_HEADERS", wrong)]).is_err(), "{wrong}");
        }
    }

    /// A share is one of the traces' ids, so that several programs follow the same.
    #[test]
    fn a_share_is_a_part_of_all_traces() {
        let taken = |share: &str| {
            let share: Share = share.parse().unwrap();
            // Ids as a hash would spread them.
            let id = |n: u64| TraceId(u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 4));
            (1..=10_000_u64).filter(|n| share.takes(id(*n))).count()
        };
        assert_eq!((taken("0"), taken("1")), (0, 10_000));
        assert!((80..120).contains(&taken("0.01")), "{}", taken("0.01"));
        assert!((4_900..5_100).contains(&taken("0.5")), "{}", taken("0.5"));
        for wrong in ["-0.1", "1.1", "NaN", "x", ""] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
    }
}
