use rcgen::{CertifiedKey as Generated, generate_simple_self_signed};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::ingress::Ingress;
use crate::ingress::body::Body;
use crate::ingress::connection::LimitsConfig;
use crate::supervisor::Tasks;

/// A folder with a certificate and its key, which can be exchanged.
struct Folder {
    place: tempfile::TempDir,
    config: TlsConfig,
}

impl Folder {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let config = TlsConfig { certificate: place.path().join("tls.crt"), key: place.path().join("tls.key") };
        Self { place, config }
    }

    /// Writes a new pair; gives what a client must trust to accept it.
    fn renew(&self) -> CertificateDer<'static> {
        let Generated { cert, signing_key } = generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(&self.config.certificate, cert.pem()).unwrap();
        std::fs::write(&self.config.key, signing_key.serialize_pem()).unwrap();
        cert.der().clone()
    }

    fn error(&self) -> TlsError {
        match Tls::load(&self.config) {
            Ok(_loaded) => panic!("it was accepted"),
            Err(error) => error,
        }
    }
}

async fn connect(
    address: std::net::SocketAddr,
    trusted: &CertificateDer<'static>,
    alpn: &[u8],
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let socket = TcpStream::connect(address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), socket).await
}

async fn ask(stream: &mut TlsStream<TcpStream>) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn serve(tls: Arc<Tls>) -> (Ingress, Tasks) {
    let tasks = Tasks::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let limits = LimitsConfig { header_timeout: std::time::Duration::from_millis(150), ..LimitsConfig::default() };
    let handler = async |_request, info: crate::ingress::connection::ConnectionInfo| {
        assert!(info.secure);
        http::Response::new(Body::Empty)
    };
    let handler = move |request: http::Request<hyper::body::Incoming>, info| Box::pin(handler(request, info));
    (Ingress::start(vec![listener], handler, limits, Some(tls), &tasks).unwrap(), tasks)
}

/// A renewed certificate is shown to whoever comes next; who is connected notices nothing.
#[tokio::test]
async fn a_reload_keeps_the_connections() {
    let folder = Folder::new();
    let first = folder.renew();
    let tls = Arc::new(Tls::load(&folder.config).unwrap());
    let (ingress, _tasks) = serve(Arc::clone(&tls)).await;
    let mut before = connect(ingress.addresses()[0], &first, b"http/1.1").await.unwrap();
    assert_eq!(ask(&mut before).await, "HTTP/1.1 200");

    assert!(!tls.reload().unwrap(), "nothing had changed");
    let second = folder.renew();
    assert!(tls.reload().unwrap());

    assert!(connect(ingress.addresses()[0], &second, b"http/1.1").await.is_ok());
    assert!(connect(ingress.addresses()[0], &first, b"http/1.1").await.is_err());
    let mut rest = vec![0; 4096];
    assert!(before.read(&mut rest).await.unwrap() > 0);
    assert_eq!(ask(&mut before).await, "HTTP/1.1 200");
}

#[tokio::test]
async fn a_pair_that_cannot_be_used_leaves_the_old_one() {
    let folder = Folder::new();
    let trusted = folder.renew();
    let tls = Arc::new(Tls::load(&folder.config).unwrap());
    let (ingress, _tasks) = serve(Arc::clone(&tls)).await;

    std::fs::write(&folder.config.certificate, "").unwrap();

    assert!(matches!(tls.reload(), Err(TlsError::NoCertificate { .. })));
    assert!(connect(ingress.addresses()[0], &trusted, b"http/1.1").await.is_ok());
}

#[tokio::test]
async fn the_protocol_is_agreed_on_in_the_handshake() {
    let folder = Folder::new();
    let trusted = folder.renew();
    let (ingress, _tasks) = serve(Arc::new(Tls::load(&folder.config).unwrap())).await;

    let stream = connect(ingress.addresses()[0], &trusted, b"h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));

    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let request = http::Request::get("https://localhost/").body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    let answer = tokio::select! {
        answer = sender.send_request(request) => answer.unwrap(),
        _ = connection => panic!("the connection ended"),
    };
    assert_eq!(answer.status(), 200);
}

/// A handshake is bounded as a head is.
#[tokio::test]
async fn a_handshake_that_dawdles_is_cut() {
    let folder = Folder::new();
    folder.renew();
    let (ingress, _tasks) = serve(Arc::new(Tls::load(&folder.config).unwrap())).await;
    let mut socket = TcpStream::connect(ingress.addresses()[0]).await.unwrap();

    socket.write_all(&[0x16, 0x03, 0x01]).await.unwrap();

    let mut answer = Vec::new();
    let read = tokio::time::timeout(std::time::Duration::from_secs(20), socket.read_to_end(&mut answer)).await;
    drop(read.expect("the connection was left open"));
}

/// Each error names the file and what is wrong with it.
#[test]
fn what_is_wrong_is_said_with_the_file() {
    let folder = Folder::new();
    let named = |error: &TlsError, file: &str| {
        assert!(error.to_string().contains(folder.place.path().join(file).to_str().unwrap()), "{error}");
    };

    let error = folder.error();
    assert!(matches!(error, TlsError::Unreadable { .. }), "{error:?}");
    named(&error, "tls.crt");

    folder.renew();
    let key = std::fs::read(&folder.config.key).unwrap();
    std::fs::write(&folder.config.key, "no key").unwrap();
    let error = folder.error();
    assert!(matches!(error, TlsError::NoKey { .. }), "{error:?}");
    named(&error, "tls.key");

    std::fs::write(&folder.config.key, "-----BEGIN PRIVATE KEY-----\n!!!\n-----END PRIVATE KEY-----\n").unwrap();
    let error = folder.error();
    assert!(matches!(error, TlsError::Malformed { .. }), "{error:?}");
    named(&error, "tls.key");

    folder.renew();
    std::fs::write(&folder.config.key, &key).unwrap();
    let error = folder.error();
    assert!(matches!(error, TlsError::Mismatch { .. }), "{error:?}");
    named(&error, "tls.key");

    std::fs::write(&folder.config.certificate, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    let error = folder.error();
    assert!(matches!(error, TlsError::Unusable { .. }), "{error:?}");
    named(&error, "tls.crt");
}
