//! What is said to get a certificate with a join token.
//!
//! Pure. One question and one answer on a TLS connection of its own protocol (`security::tls::ALPN_ENROLMENT`),
//! each a little-endian 32-bit length and the bytes of `codec.rs`. Nothing else is ever said there.

use bincode::{Decode, Encode};

/// The version of these messages. Both ends must speak the same.
pub const ENROLMENT: u32 = 1;
/// Longest message. A request for a certificate and a chain of two are below 2 KiB.
pub const ENROLMENT_BYTES_MAX: usize = 16 << 10;

/// A certificate, please.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct EnrolmentRequest {
    /// [`ENROLMENT`].
    pub protocol: u32,
    /// Which token.
    pub token: [u8; 8],
    /// The name wanted.
    pub name: String,
    /// PKCS #10, DER: the key that the certificate is for.
    pub request: Vec<u8>,
    /// HMAC by the token's key over this connection, the name and the request.
    pub proof: [u8; 32],
}

/// The answer. The connection ends with it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum EnrolmentAnswer {
    /// Here it is.
    Enrolled {
        /// The certificate and the authority's, DER.
        chain: Vec<Vec<u8>>,
    },
    /// There is none.
    Refused(EnrolmentRefusal),
}

/// Why there is no certificate.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum EnrolmentRefusal {
    /// Another version of these messages.
    #[error("enrolment protocol {theirs}, this end speaks {ours}; run the same version on both")]
    Protocol {
        /// Of the end that was refused.
        theirs: u32,
        /// Of the end that refuses.
        ours: u32,
    },
    /// The token or its proof; in words.
    #[error("{0}")]
    Token(String),
    /// The name cannot be one.
    #[error("{0}")]
    Name(String),
    /// Another key has the name.
    #[error(
        "the name {name} has a certificate for another key until {until}; choose another name, or let a token replace it (`phalanx certs token --replace`)"
    )]
    NameHeld {
        /// The name.
        name: String,
        /// Until when.
        until: String,
    },
    /// The request for a certificate is none.
    #[error("{0}")]
    Request(String),
    /// The authority cannot sign; in words.
    #[error("the authority cannot issue a certificate now: {0}")]
    Authority(String),
}
