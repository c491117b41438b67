//! How a coordinator's API lets this command in: a key, and whose certificates are believed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use hyper::header::HeaderValue;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::Failure;

/// Where systems keep the certificates that they believe.
const SYSTEM: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// What a person says of it.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Access {
    /// The API key, where the coordinator wants one. Other users of this machine can see arguments, but not the variable.
    #[arg(long, value_name = "KEY", env = "PHALANX_API_KEY", hide_env_values = true, value_parser = api_key)]
    api_key: Option<ApiKey>,

    /// For https: a file of certificates, in PEM, that are believed to vouch for the coordinator's. Default: the
    /// system's.
    #[arg(long, value_name = "FILE")]
    http_ca: Option<PathBuf>,
}

/// A key, which is never shown.
#[derive(Clone)]
struct ApiKey(HeaderValue);

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey")
    }
}

fn api_key(text: &str) -> Result<ApiKey, String> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", text.trim()))
        .map_err(|_| "a key is letters, digits and signs".to_owned())?;
    value.set_sensitive(true);
    Ok(ApiKey(value))
}

impl Access {
    /// What says who we are.
    pub(crate) fn authorization(&self) -> Option<HeaderValue> {
        self.api_key.as_ref().map(|ApiKey(value)| value.clone())
    }

    /// What checks a coordinator's certificate.
    pub(crate) fn connector(&self) -> Result<TlsConnector, Failure> {
        let mut roots = RootCertStore::empty();
        let file = match &self.http_ca {
            Some(file) => file.as_path(),
            None => SYSTEM.map(Path::new).into_iter().find(|file| file.exists()).ok_or(
                "this system has no certificates to believe in; give those that vouch for the coordinator's with --http-ca",
            )?,
        };
        let wrong = |why: &dyn fmt::Display| format!("{}: {why}; give a file in PEM", file.display());
        for cert in CertificateDer::pem_file_iter(file).map_err(|why| wrong(&why))? {
            let added = roots.add(cert.map_err(|why| wrong(&why))?);
            // Of the system's some may be of a kind that is not known.
            if self.http_ca.is_some() {
                added.map_err(|why| wrong(&why))?;
            }
        }
        if roots.is_empty() {
            return Err(wrong(&"it has no certificate").into());
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}
