//! TLS towards clients: one certificate, exchanged without dropping a connection.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsAcceptor;

/// TLS for the API listener. Both files are read again when they change; a pair that cannot be used is refused and
/// the old one stays.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file with the certificate, followed by its intermediates.
    pub certificate: PathBuf,

    /// PEM file with the certificate's private key (PKCS#8, PKCS#1 or SEC1), unencrypted.
    pub key: PathBuf,
}

/// What a listener needs to speak TLS.
pub struct Tls {
    config: TlsConfig,
    current: Arc<Current>,
    acceptor: TlsAcceptor,
}

/// Why a certificate cannot be used. Nothing of the key is in the message.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read `{}`", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("`{}` is not well-formed PEM", path.display())]
    Malformed {
        path: PathBuf,
        #[source]
        cause: pem::Error,
    },
    #[error("`{}` holds no certificate", path.display())]
    NoCertificate { path: PathBuf },
    #[error("`{}` holds no unencrypted private key", path.display())]
    NoKey { path: PathBuf },
    #[error("the key in `{}` does not belong to the certificate in `{}`", key.display(), certificate.display())]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("`{}` and `{}` cannot be used for TLS", certificate.display(), key.display())]
    Unusable {
        certificate: PathBuf,
        key: PathBuf,
        #[source]
        cause: rustls::Error,
    },
}

impl Tls {
    pub fn load(config: &TlsConfig) -> Result<Self, TlsError> {
        let files = Files::read(config)?;
        let current = Arc::new(Current(ArcSwap::from_pointee(files.loaded(config)?)));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|cause| unusable(config, cause))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { config: config.clone(), current, acceptor: TlsAcceptor::from(Arc::new(server)) })
    }

    /// Reads the files again; new handshakes use them from here on. True when they had changed. Blocks on the disk.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let files = Files::read(&self.config)?;
        if files.fingerprint() == self.current.0.load().fingerprint {
            return Ok(false);
        }
        self.current.0.store(Arc::new(files.loaded(&self.config)?));
        Ok(true)
    }

    pub(super) fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }
}

struct Loaded {
    key: Arc<CertifiedKey>,
    fingerprint: blake3::Hash,
}

struct Current(ArcSwap<Loaded>);

impl std::fmt::Debug for Current {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Current")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().key))
    }
}

struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Files {
    fn read(config: &TlsConfig) -> Result<Self, TlsError> {
        let read =
            |path: &Path| std::fs::read(path).map_err(|cause| TlsError::Unreadable { path: path.to_owned(), cause });
        Ok(Self { certificate: read(&config.certificate)?, key: read(&config.key)? })
    }

    fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(blake3::hash(&self.certificate).as_bytes());
        hasher.update(blake3::hash(&self.key).as_bytes());
        hasher.finalize()
    }

    fn loaded(&self, config: &TlsConfig) -> Result<Loaded, TlsError> {
        let chain = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|cause| TlsError::Malformed { path: config.certificate.clone(), cause })?;
        if chain.is_empty() {
            return Err(TlsError::NoCertificate { path: config.certificate.clone() });
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|cause| {
            let path = config.key.clone();
            if matches!(cause, pem::Error::NoItemsFound) {
                TlsError::NoKey { path }
            } else {
                TlsError::Malformed { path, cause }
            }
        })?;
        let provider = rustls::crypto::ring::default_provider();
        let key = CertifiedKey::from_der(chain, key, &provider).map_err(|cause| {
            if matches!(cause, rustls::Error::InconsistentKeys(_)) {
                TlsError::Mismatch { certificate: config.certificate.clone(), key: config.key.clone() }
            } else {
                unusable(config, cause)
            }
        })?;
        Ok(Loaded { key: Arc::new(key), fingerprint: self.fingerprint() })
    }
}

fn unusable(config: &TlsConfig, cause: rustls::Error) -> TlsError {
    TlsError::Unusable { certificate: config.certificate.clone(), key: config.key.clone(), cause }
}

#[cfg(test)]
mod tests;
