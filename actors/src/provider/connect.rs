//! A connection to a provider: name, TCP, TLS, each with an error of its own, all within one time.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Uri;
use hyper_rustls::MaybeHttpsStream;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower_service::Service;

/// How long one address may keep silent before the next is tried beside it (RFC 8305, §5).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// Why there is no connection. Nothing was sent.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the provider's name cannot be resolved")]
    Dns {
        #[source]
        cause: Arc<io::Error>,
    },
    #[error("the provider cannot be reached")]
    Tcp {
        #[source]
        cause: Arc<io::Error>,
    },
    #[error("no secure connection to the provider")]
    Tls {
        #[source]
        cause: Arc<io::Error>,
    },
    #[error("no connection to the provider within {within:?}")]
    Timeout { within: Duration },
}

/// Why a provider's authority cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
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
    Empty { path: PathBuf },
    #[error("`{}` holds a certificate that cannot be used", path.display())]
    Unusable {
        path: PathBuf,
        #[source]
        cause: rustls::Error,
    },
    #[error("TLS cannot be used")]
    Tls {
        #[source]
        cause: rustls::Error,
    },
}

/// A file of certificates to trust.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Authority {
    path: PathBuf,
    pem: Vec<u8>,
}

impl Authority {
    pub fn read(path: &Path) -> Result<Self, TrustError> {
        let path = path.to_owned();
        match std::fs::read(&path) {
            Ok(pem) => Ok(Self { path, pem }),
            Err(cause) => Err(TrustError::Unreadable { path, cause }),
        }
    }

    fn add_to(&self, roots: &mut RootCertStore) -> Result<(), TrustError> {
        let path = || self.path.clone();
        let mut found = false;
        for certificate in CertificateDer::pem_slice_iter(&self.pem) {
            let certificate = certificate.map_err(|cause| TrustError::Malformed { path: path(), cause })?;
            roots.add(certificate).map_err(|cause| TrustError::Unusable { path: path(), cause })?;
            found = true;
        }
        if found { Ok(()) } else { Err(TrustError::Empty { path: path() }) }
    }
}

/// Makes the connections of one provider. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connector {
    tls: TlsConnector,
    within: Duration,
}

impl Connector {
    /// Trusts the usual authorities and those of `ca`.
    pub fn new(within: Duration, ca: Option<&Authority>, http2: bool) -> Result<Self, TrustError> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(authority) = ca {
            authority.add_to(&mut roots)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|cause| TrustError::Tls { cause })?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols =
            if http2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { vec![b"http/1.1".to_vec()] };
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), within })
    }

    async fn connect(self, uri: Uri) -> Result<MaybeHttpsStream<TokioIo<TcpStream>>, ConnectError> {
        let host = uri.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });

        let addresses =
            tokio::net::lookup_host((host, port)).await.map_err(|cause| ConnectError::Dns { cause: cause.into() })?;
        let stream = first_reachable(addresses).await.map_err(|cause| ConnectError::Tcp { cause: cause.into() })?;
        stream.set_nodelay(true).map_err(|cause| ConnectError::Tcp { cause: cause.into() })?;
        let stream = TokioIo::new(stream);
        if !secure {
            return Ok(MaybeHttpsStream::Http(stream));
        }
        let name = ServerName::try_from(host.to_owned())
            .map_err(|cause| ConnectError::Tls { cause: io::Error::other(cause).into() })?;
        let stream = self.tls.connect(name, TokioIo::new(stream)).await;
        let stream = stream.map_err(|cause| ConnectError::Tls { cause: cause.into() })?;
        Ok(MaybeHttpsStream::Https(TokioIo::new(stream)))
    }
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let within = connector.within;
            let connected = tokio::time::timeout(within, connector.connect(uri)).await;
            connected.map_err(|_elapsed| ConnectError::Timeout { within })?
        })
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connector").field("within", &self.within).finish_non_exhaustive()
    }
}

/// The addresses in turn, each given a short lead before the next joins it; the first to answer wins. The error is
/// the last one.
async fn first_reachable(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = alternating(addresses);
    let mut trying = FuturesUnordered::new();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        if let Some(address) = waiting.pop_front() {
            trying.push(TcpStream::connect(address));
        }
        tokio::select! {
            tried = trying.next() => match tried {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(cause)) => failure = cause,
                None => return Err(failure),
            },
            () = tokio::time::sleep(NEXT_ADDRESS_AFTER), if !waiting.is_empty() => {}
        }
    }
}

/// The two families by turns, the resolver's first choice first: a family that does not work costs one lead.
fn alternating(addresses: impl Iterator<Item = SocketAddr>) -> VecDeque<SocketAddr> {
    let mut addresses = addresses.peekable();
    let first_is_v6 = addresses.peek().is_some_and(SocketAddr::is_ipv6);
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) =
        addresses.partition(|address| address.is_ipv6() == first_is_v6);
    let mut order = VecDeque::with_capacity(first.len() + second.len());
    while !first.is_empty() || !second.is_empty() {
        order.extend(first.pop_front());
        order.extend(second.pop_front());
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_families_alternate_and_none_is_lost() {
        let parse = |text: &&str| text.parse::<SocketAddr>().unwrap();
        let given = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"];

        let order = alternating(given.iter().map(parse));

        let wanted: Vec<_> = ["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"].iter().map(parse).collect();
        assert_eq!(order, wanted);
    }

    #[tokio::test]
    async fn an_address_that_refuses_is_passed_over() {
        let closed = {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();

        let stream = first_reachable([closed, open.local_addr().unwrap()].into_iter()).await.unwrap();

        assert_eq!(stream.peer_addr().unwrap(), open.local_addr().unwrap());
    }

    #[test]
    fn a_file_without_certificates_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();

        let authority = Authority::read(file.path()).unwrap();

        let error = Connector::new(Duration::from_secs(1), Some(&authority), false).unwrap_err();

        assert!(matches!(&error, TrustError::Empty { .. }), "{error:?}");
        assert!(error.to_string().contains(file.path().to_str().unwrap()));
    }
}
