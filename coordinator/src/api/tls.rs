//! TLS for clients: a certificate and its key, from files.
//!
//! A shell that reads them once; whoever renews them starts the program again. TLS 1.3 alone, by the same library as
//! between coordinator and nodes, but with certificates of its own: browsers and clients know other authorities.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Why clients cannot be served over TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("{file}: {why}; give a file in PEM")]
    File {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The two do not fit, or one of them is of a kind that is not known.
    #[error("{cert} and {key}: {why}")]
    Pair {
        /// File of the certificate.
        cert: PathBuf,
        /// File of its key.
        key: PathBuf,
        /// What the library says.
        why: rustls::Error,
    },
}

/// What a server shows its clients: the certificate, then those that vouch for it.
pub fn server_config(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let wrong = |file: &Path, why: String| TlsError::File { file: file.to_owned(), why };
    let certs = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|why| wrong(cert, why.to_string()))?;
    if certs.is_empty() {
        return Err(wrong(cert, "it has no certificate".into()));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|why| wrong(key, why.to_string()))?;
    let pair = |why| TlsError::Pair { cert: cert.to_owned(), key: key.to_owned(), why };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(certs, secret)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
