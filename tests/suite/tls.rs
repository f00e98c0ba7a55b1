//! The API over TLS, in either version of HTTP.

#![expect(clippy::expect_used, reason = "helpers end the test where something failed")]

use std::sync::Arc;

use harness::{FakeProvider, TestNode, binary};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const CONFIG: &str = r#"
providers: { openai: { base_url: "{provider}/v1", api_key: key-openai } }
tls: { certificate: "{folder}/tls.crt", key: "{folder}/tls.key" }
auth: none
"#;

struct World {
    node: TestNode,
    trusted: CertificateDer<'static>,
    _provider: FakeProvider,
    _folder: TempDir,
}

/// A new pair in `folder`; gives what a client must trust to accept it.
fn certificate(folder: &TempDir) -> CertificateDer<'static> {
    let made = generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let CertifiedKey { cert, signing_key } = made;
    std::fs::write(folder.path().join("tls.crt"), cert.pem()).expect("a folder to write to");
    std::fs::write(folder.path().join("tls.key"), signing_key.serialize_pem()).expect("a folder to write to");
    cert.der().clone()
}

async fn gateway() -> World {
    let folder = tempfile::tempdir().expect("a folder");
    let trusted = certificate(&folder);
    let provider = FakeProvider::start(binary!()).await;
    let builder = TestNode::builder(binary!()).provider("provider", &provider).config(CONFIG);
    let node = builder.place("folder", &folder.path().display().to_string()).start().await;
    World { node, trusted, _provider: provider, _folder: folder }
}

async fn connect(
    world: &World,
    trusted: &CertificateDer<'static>,
    alpn: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = versions.expect("versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let socket = TcpStream::connect(world.node.api_address()).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, socket).await
}

#[tokio::test]
async fn http1_is_spoken_over_tls() {
    let world = gateway().await;
    let mut stream = connect(&world, &world.trusted, &["http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));

    stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();

    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn http2_is_preferred_and_spoken_over_tls() {
    let world = gateway().await;
    let stream = connect(&world, &world.trusted, &["http/1.1", "h2"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));

    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let request = http::Request::get("https://localhost/v1/models").body(()).unwrap();
    let (answer, _body) = client.send_request(request, true).unwrap();
    let answer = tokio::select! {
        answer = answer => answer.unwrap(),
        ended = connection => panic!("the connection ended first: {ended:?}"),
    };

    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn who_trusts_another_certificate_or_speaks_plainly_is_not_served() {
    let world = gateway().await;
    let another = certificate(&tempfile::tempdir().unwrap());

    assert!(connect(&world, &another, &["h2"]).await.is_err());
    assert!(world.node.client().try_send(http::Method::GET, "/v1/models", "").await.is_err());
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_named_at_the_start() {
    let config = CONFIG.replace("{folder}", "/nowhere");

    let error = TestNode::builder(binary!()).place("provider", "http://127.0.0.1:1").config(&config).try_start().await;

    let error = error.unwrap_err();
    assert!(error.contains("exit status: 1") && error.contains("/nowhere/tls.crt"), "{error}");
}
