use std::collections::BTreeMap;
use std::time::Duration;

use cluster::directory::provider::ProviderSpec;
use http::StatusCode;
use rcgen::{CertifiedKey as Generated, generate_simple_self_signed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const SOON: Duration = Duration::from_secs(20);
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

/// What became of the reservation of a call.
#[derive(Clone, Default)]
struct Purse(Arc<std::sync::Mutex<&'static str>>);

struct Paid(Purse);

impl Purse {
    fn fate(&self) -> &'static str {
        *self.0.lock().unwrap()
    }
}

impl Spend for Purse {
    type Charge = Paid;

    fn dispatch(self) -> Paid {
        *self.0.lock().unwrap() = "dispatched";
        Paid(self)
    }
}

/// A provider that is a bare socket, so that it can misbehave.
struct Fake {
    listener: TcpListener,
}

impl Fake {
    async fn open() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    fn url(&self) -> String {
        format!("http://{}/v1", self.listener.local_addr().unwrap())
    }

    async fn accept(&self) -> TcpStream {
        tokio::time::timeout(SOON, self.listener.accept()).await.expect("nobody connected").unwrap().0
    }

    /// Takes one request on a new connection and answers it.
    async fn answer(&self, answer: &str) -> (String, TcpStream) {
        let mut socket = self.accept().await;
        let request = request(&mut socket).await;
        socket.write_all(answer.as_bytes()).await.unwrap();
        (request, socket)
    }
}

/// Reads a request with its two-byte body.
async fn request(socket: &mut TcpStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n{}") {
        let byte = socket.read_u8().await.unwrap();
        request.push(byte);
    }
    String::from_utf8(request).unwrap()
}

async fn until_closed(socket: &mut TcpStream) {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(SOON, socket.read_to_end(&mut rest)).await.expect("the connection was left open");
    drop(read);
}

fn spec(kind: &str, url: &str) -> ProviderSpec {
    ProviderSpec {
        kind: Some(kind.to_owned()),
        base_url: Some(url.to_owned()),
        api_key: Some(SecretRef::text("sk-very-secret")),
        ..ProviderSpec::default()
    }
}

fn secret(reference: &SecretRef) -> Option<String> {
    reference.literal().map(str::to_owned)
}

/// One provider and its node's side.
struct Side {
    provider: Arc<Provider>,
    providers: Providers,
    dialect: Dialect,
    tasks: Tasks,
}

impl Side {
    fn new(spec: &ProviderSpec) -> Self {
        let provider = Arc::new(Provider::new("fake", spec));
        let tasks = Tasks::new();
        let dialect = vendor(&provider.kind).unwrap().dialect;
        let providers = match Providers::new([&provider], &secret, &tasks) {
            Ok(providers) => providers,
            Err(errors) => panic!("{errors:?}"),
        };
        Self { provider, providers, dialect, tasks }
    }

    fn pick(&self) -> Credential {
        self.providers.pick("fake", &[], cluster::clock::now()).unwrap()
    }

    async fn call(&self) -> Outcome<Paid, &'static str> {
        self.call_with(&HeaderMap::new(), SOON, Purse::default()).await
    }

    async fn call_with(&self, headers: &HeaderMap, within: Duration, purse: Purse) -> Outcome<Paid, &'static str> {
        let call = Call {
            provider: &self.provider,
            credential: &self.pick(),
            dialect: self.dialect,
            path: "/chat/completions",
            body: Bytes::from_static(b"{}"),
            headers,
            stream: false,
            head_by: cluster::clock::now() + within,
        };
        self.providers.call(call, purse, "admission").await
    }

    async fn error(&self) -> CallError {
        failed(self.call().await)
    }
}

fn head(outcome: Outcome<Paid, &'static str>) -> Response<UpstreamBody> {
    match outcome {
        Outcome::Head { response, charge, admission } => {
            assert_eq!((charge.0.fate(), admission), ("dispatched", "admission"));
            response
        }
        Outcome::Failed { error, .. } => panic!("{error:?}"),
    }
}

fn failed(outcome: Outcome<Paid, &'static str>) -> CallError {
    match outcome {
        Outcome::Head { response, .. } => panic!("status {}", response.status()),
        Outcome::Failed { error, charge, admission } => {
            assert_eq!((charge.0.fate(), admission), ("dispatched", "admission"));
            error
        }
    }
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

#[tokio::test]
async fn a_call_carries_our_credential_and_nothing_of_the_clients() {
    let fake = Fake::open().await;
    let mut spec = spec("openai", &fake.url());
    spec.headers = BTreeMap::from([("x-project".to_owned(), "p1".to_owned())]);
    let side = Side::new(&spec);
    let client = headers(&[
        ("authorization", "Bearer lea-client"),
        ("cookie", "a=b"),
        ("connection", "upgrade"),
        ("traceparent", "00-1-2-01"),
        ("anthropic-beta", "tools"),
    ]);

    let (outcome, (sent, _socket)) = tokio::join!(side.call_with(&client, SOON, Purse::default()), fake.answer(OK));

    assert_eq!(head(outcome).into_body().whole(10).await.unwrap(), "{}");
    assert!(sent.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{sent}");
    let lines: std::collections::BTreeSet<_> = sent.lines().skip(1).collect();
    let host = format!("host: {}", fake.listener.local_addr().unwrap());
    let agent = concat!("user-agent: llm-edge-agent/", env!("CARGO_PKG_VERSION"));
    let wanted = [
        "",
        "accept-encoding: identity",
        "accept: application/json",
        "authorization: Bearer sk-very-secret",
        "content-length: 2",
        "content-type: application/json",
        &host,
        "traceparent: 00-1-2-01",
        agent,
        "x-project: p1",
        "{}",
    ];
    assert_eq!(lines, std::collections::BTreeSet::from(wanted));
}

#[tokio::test]
async fn anthropic_is_shown_its_own_headers() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("anthropic", &fake.url()));

    let (outcome, (sent, mut socket)) = tokio::join!(side.call(), fake.answer(OK));
    head(outcome).into_body().whole(10).await.unwrap();
    let client = headers(&[("anthropic-version", "2099-01-01"), ("anthropic-beta", "tools")]);
    let second = async {
        let sent = request(&mut socket).await;
        socket.write_all(OK.as_bytes()).await.unwrap();
        sent
    };
    let (outcome, named) = tokio::join!(side.call_with(&client, SOON, Purse::default()), second);

    assert_eq!(head(outcome).status(), StatusCode::OK);
    assert!(sent.contains("x-api-key: sk-very-secret\r\n") && !sent.contains("authorization"), "{sent}");
    assert!(sent.contains("anthropic-version: 2023-06-01\r\n"), "{sent}");
    assert!(named.contains("anthropic-version: 2099-01-01\r\n"), "{named}");
    assert!(named.contains("anthropic-beta: tools\r\n"), "{named}");
}

#[tokio::test]
async fn nobody_listening_is_no_connection() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url()));
    drop(fake);

    let error = side.error().await;

    assert!(matches!(error, CallError::Connect(ConnectError::Tcp { .. })), "{error:?}");
    assert!(error.nothing_written() && error.blames_provider() && !error.is_timeout());
}

#[tokio::test]
async fn a_name_that_cannot_be_resolved_is_told_apart() {
    let side = Side::new(&spec("openai", "http://no-such-host.invalid/v1"));

    let error = side.error().await;

    assert!(matches!(error, CallError::Connect(ConnectError::Dns { .. })), "{error:?}");
    assert!(error.nothing_written());
}

#[tokio::test]
async fn a_provider_that_does_not_speak_tls_is_told_apart() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url().replace("http:", "https:")));
    let plain = async {
        let mut socket = fake.accept().await;
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        socket
    };

    let (outcome, _socket) = tokio::join!(side.call(), plain);

    let error = failed(outcome);
    assert!(matches!(error, CallError::Connect(ConnectError::Tls { .. })), "{error:?}");
    assert!(error.nothing_written());
}

/// The kernel completes the connection, and then nobody speaks: the handshake is part of connecting.
#[tokio::test]
async fn a_connection_that_hangs_ends_in_time() {
    let fake = Fake::open().await;
    let mut spec = spec("openai", &fake.url().replace("http:", "https:"));
    spec.timeouts.connect = Duration::from_millis(100);
    let side = Side::new(&spec);

    let error = side.error().await;

    assert!(matches!(error, CallError::Connect(ConnectError::Timeout { .. })), "{error:?}");
    assert!(error.nothing_written() && error.is_timeout());
}

/// The rest of the time of a request counts, also while connecting; and nothing is billed for it.
#[tokio::test]
async fn a_deadline_while_connecting_has_written_nothing() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url().replace("http:", "https:")));

    let outcome = side.call_with(&HeaderMap::new(), Duration::from_millis(100), Purse::default()).await;

    let error = failed(outcome);
    assert!(matches!(error, CallError::NoHead { written: false, .. }), "{error:?}");
    assert!(error.nothing_written() && error.is_timeout());
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_in_time_and_may_be_billed() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url()));
    let silent = async {
        let mut socket = fake.accept().await;
        request(&mut socket).await;
        until_closed(&mut socket).await;
    };

    let empty = HeaderMap::new();
    let call = side.call_with(&empty, Duration::from_millis(100), Purse::default());
    let (outcome, ()) = tokio::join!(call, silent);

    let error = failed(outcome);
    assert!(matches!(error, CallError::NoHead { written: true, .. }), "{error:?}");
    assert!(!error.nothing_written() && error.is_timeout());
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_head_may_be_billed() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url()));
    let hang_up = async {
        let mut socket = fake.accept().await;
        request(&mut socket).await;
    };

    let (outcome, ()) = tokio::join!(side.call(), hang_up);

    let error = failed(outcome);
    assert!(matches!(error, CallError::Broken { written: true, .. }), "{error:?}");
    assert!(!error.nothing_written());
}

#[tokio::test]
async fn what_is_no_http_is_told_apart() {
    let huge = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(300 * 1024));
    for answer in ["<html>502</html>\r\n\r\n", &huge] {
        let fake = Fake::open().await;
        let side = Side::new(&spec("openai", &fake.url()));
        let garbage = async {
            let mut socket = fake.accept().await;
            request(&mut socket).await;
            drop(socket.write_all(answer.as_bytes()).await);
            socket
        };

        let (outcome, _socket) = tokio::join!(side.call(), garbage);

        let error = failed(outcome);
        assert!(matches!(error, CallError::NotHttp { .. }), "{error:?}");
        assert!(!error.nothing_written());
    }
}

/// A redirect could lead anywhere, with our credential.
#[tokio::test]
async fn a_redirect_is_not_followed() {
    let fake = Fake::open().await;
    let elsewhere = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url()));
    let answer =
        format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", elsewhere.url());

    let (outcome, _sent) = tokio::join!(side.call(), fake.answer(&answer));

    assert_eq!(head(outcome).status(), StatusCode::TEMPORARY_REDIRECT);
    let visit = tokio::time::timeout(Duration::from_millis(50), elsewhere.accept()).await;
    assert!(visit.is_err(), "it was followed");
}

#[tokio::test]
async fn a_compressed_success_is_refused_and_an_error_page_is_not() {
    for (status, refused) in [("200 OK", true), ("503 Service Unavailable", false)] {
        let fake = Fake::open().await;
        let side = Side::new(&spec("openai", &fake.url()));
        let answer = format!("HTTP/1.1 {status}\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{{}}");

        let (outcome, _sent) = tokio::join!(side.call(), fake.answer(&answer));

        if refused {
            assert!(matches!(failed(outcome), CallError::Encoded));
        } else {
            assert_eq!(head(outcome).status(), StatusCode::SERVICE_UNAVAILABLE);
        }
    }
}

#[tokio::test]
async fn silence_within_a_body_ends_it() {
    let fake = Fake::open().await;
    let mut spec = spec("openai", &fake.url());
    spec.timeouts.idle = Duration::from_millis(100);
    let side = Side::new(&spec);
    let half = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";

    let (outcome, (_sent, mut socket)) = tokio::join!(side.call(), fake.answer(half));
    let mut body = head(outcome).into_body();

    assert_eq!(body.chunk().await.unwrap().unwrap(), "hello");
    let error = body.chunk().await.unwrap_err();
    assert!(matches!(error, BodyError::Idle { .. }), "{error:?}");
    drop(body);
    until_closed(&mut socket).await;
}

#[tokio::test]
async fn a_body_that_breaks_off_is_no_end() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url()));
    for half in [
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello",
    ] {
        let (outcome, (_sent, socket)) = tokio::join!(side.call(), fake.answer(half));
        drop(socket);
        let mut body = head(outcome).into_body();

        assert_eq!(body.chunk().await.unwrap().unwrap(), "hello");
        let error = body.chunk().await.unwrap_err();
        assert!(matches!(error, BodyError::Broken { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_reply_may_not_be_larger_than_allowed() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url()));
    let counted = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nhello\r\n0\r\n\r\n";
    let announced = "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n";
    for answer in [counted, announced] {
        let (outcome, _socket) = tokio::join!(side.call(), fake.answer(answer));

        let error = head(outcome).into_body().whole(9).await.unwrap_err();

        assert!(matches!(error, BodyError::TooLarge { bytes_max: 9 }), "{error:?}");
    }
}

#[tokio::test]
async fn an_error_page_is_read_as_far_as_it_goes() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url()));
    let page = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 90\r\n\r\nbroken";

    let (outcome, (_sent, socket)) = tokio::join!(side.call(), fake.answer(page));
    drop(socket);
    let mut response = head(outcome);

    assert_eq!(response.body_mut().up_to(4).await, "brok");
    assert_eq!(response.body_mut().up_to(100).await, "");
}

/// A client's hang-up must reach the provider, or it goes on generating and billing.
#[tokio::test]
async fn dropping_a_body_closes_the_connection() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url()));
    let begun = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let (outcome, (_sent, mut socket)) = tokio::join!(side.call(), fake.answer(begun));
    let mut body = head(outcome).into_body();
    body.chunk().await.unwrap();

    drop(body);

    until_closed(&mut socket).await;
}

#[tokio::test]
async fn dropping_a_call_closes_the_connection_and_charges() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url()));
    let purse = Purse::default();
    let empty = HeaderMap::new();

    let mut socket = tokio::select! {
        _ = side.call_with(&empty, SOON, purse.clone()) => panic!("nobody answered"),
        socket = async {
            let mut socket = fake.accept().await;
            request(&mut socket).await;
            socket
        } => socket,
    };

    assert_eq!(purse.fate(), "dispatched");
    until_closed(&mut socket).await;
}

/// A hang-up while the connection is still being made costs nothing.
#[tokio::test]
async fn dropping_a_call_before_it_was_written_releases() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url().replace("http:", "https:")));
    let purse = Purse::default();
    let empty = HeaderMap::new();

    tokio::select! {
        _ = side.call_with(&empty, SOON, purse.clone()) => panic!("nobody answered"),
        _socket = fake.accept() => {}
    }

    assert_eq!(purse.fate(), "");
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url()));
    let (outcome, (_sent, mut socket)) = tokio::join!(side.call(), fake.answer(OK));
    head(outcome).into_body().whole(10).await.unwrap();

    let again = async {
        request(&mut socket).await;
        socket.write_all(OK.as_bytes()).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(side.call(), again);

    assert_eq!(head(outcome).status(), StatusCode::OK);
}

/// Pooled connections would outlive any deadline.
#[tokio::test]
async fn idle_connections_end_with_the_node() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url()));
    let (outcome, (_sent, mut socket)) = tokio::join!(side.call(), fake.answer(OK));
    head(outcome).into_body().whole(10).await.unwrap();

    side.tasks.shutdown(SOON).await.expect("a connection was left open");

    until_closed(&mut socket).await;
}

/// The provider closed a connection while it was idle in our pool: the call notices and makes a new one.
#[tokio::test]
async fn a_connection_closed_while_idle_costs_no_call() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url()));
    let (outcome, (_sent, socket)) = tokio::join!(side.call(), fake.answer(OK));
    head(outcome).into_body().whole(10).await.unwrap();
    let before = side.tasks.running()["provider connection"];
    drop(socket);
    let noticed = async {
        while side.tasks.running()["provider connection"] == before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, noticed).await.expect("the pool kept a closed connection");

    let (outcome, _sent) = tokio::join!(side.call(), fake.answer(OK));

    assert_eq!(head(outcome).status(), StatusCode::OK);
}

#[tokio::test]
async fn calls_beyond_the_bound_are_refused_when_no_place_comes_free() {
    let fake = Fake::open().await;
    let mut spec = spec("openai", &fake.url());
    spec.connections_max = 1.try_into().unwrap();
    spec.timeouts.connect = Duration::from_millis(100);
    let side = Side::new(&spec);
    let begun = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let (outcome, _held) = tokio::join!(side.call(), fake.answer(begun));
    let open = head(outcome);

    let error = side.error().await;
    assert!(matches!(error, CallError::Busy { connections_max: 1 }), "{error:?}");
    assert!(error.nothing_written() && !error.blames_provider());

    drop(open);
    let (outcome, _sent) = tokio::join!(side.call(), fake.answer(OK));
    assert_eq!(head(outcome).status(), StatusCode::OK);
}

#[tokio::test]
async fn a_reload_keeps_the_connections_of_an_unchanged_provider() {
    let fake = Fake::open().await;
    let spec = spec("openai", &fake.url());
    let side = Side::new(&spec);
    let (outcome, (_sent, mut socket)) = tokio::join!(side.call(), fake.answer(OK));
    head(outcome).into_body().whole(10).await.unwrap();

    let mut changed = spec.clone();
    changed.timeouts.idle = Duration::from_secs(1);
    let other = Arc::new(Provider::new("other", &spec));
    side.providers.reload([&Arc::new(Provider::new("fake", &changed)), &other], &secret).unwrap();

    let again = async {
        request(&mut socket).await;
        socket.write_all(OK.as_bytes()).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(side.call(), again);
    assert_eq!(head(outcome).status(), StatusCode::OK);
    assert!(side.providers.pick("other", &[], cluster::clock::now()).is_some());
}

#[tokio::test]
async fn a_reload_that_fails_changes_nothing_and_says_everything() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url()));
    let missing = ProviderSpec { api_key: Some(SecretRef::text("${NOT_SET}")), ..spec("openai", &fake.url()) };
    let unknown = spec("carrier-pigeon", &fake.url());
    let nowhere = ProviderSpec { base_url: None, ..spec("compatible", "") };
    let untrusted = ProviderSpec { ca: Some("/nonexistent/ca.pem".into()), ..spec("openai", &fake.url()) };
    let specs = [("a", &missing), ("b", &unknown), ("c", &nowhere), ("d", &untrusted)];
    let providers: Vec<_> = specs.iter().map(|(name, spec)| Arc::new(Provider::new(name, spec))).collect();

    let errors = side.providers.reload(&providers, &secret).unwrap_err();

    assert!(matches!(
        errors.as_slice(),
        [
            ProviderError::SecretMissing { .. },
            ProviderError::UnknownKind { .. },
            ProviderError::NoUrl { .. },
            ProviderError::Trust { .. }
        ]
    ));
    let (outcome, _sent) = tokio::join!(side.call(), fake.answer(OK));
    assert_eq!(head(outcome).status(), StatusCode::OK);
}

#[tokio::test]
async fn a_provider_taken_away_is_gone() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url()));
    let credential = side.pick();
    side.providers.reload([], &secret).unwrap();
    let call = Call {
        provider: &side.provider,
        credential: &credential,
        dialect: side.dialect,
        path: "/chat/completions",
        body: Bytes::new(),
        headers: &HeaderMap::new(),
        stream: false,
        head_by: cluster::clock::now() + SOON,
    };

    let error = failed(side.providers.call(call, Purse::default(), "admission").await);

    assert!(matches!(error, CallError::Gone), "{error:?}");
    assert!(error.nothing_written() && !error.blames_provider());
}

#[tokio::test]
async fn a_flagged_credential_gives_way_to_the_next() {
    let mut spec = spec("openai", "http://127.0.0.1:1/v1");
    spec.api_key = None;
    spec.api_keys = vec![SecretRef::text("a"), SecretRef::text("b")];
    let side = Side::new(&spec);
    let now = cluster::clock::now();
    let first = side.pick();

    side.providers.flag(&side.provider, &first, Flag::Dead, now + DEAD_FOR);

    let second = side.providers.pick("fake", &[], now).unwrap();
    assert_ne!(second.index(), first.index());
    assert!(side.providers.pick("fake", &[second.index()], now).is_none());
    side.providers.flag(&side.provider, &second, Flag::Throttled, now + SOON);
    assert_eq!(side.providers.standing("fake", now), Some(Standing::Throttled { until: now + SOON }));
    assert_eq!(side.providers.standing("unknown", now), None);
}

/// Whatever goes wrong, the words for it have no credential in them.
#[tokio::test]
async fn no_error_shows_a_credential() {
    let fake = Fake::open().await;
    let side = Side::new(&spec("openai", &fake.url()));
    let hang_up = async {
        let mut socket = fake.accept().await;
        request(&mut socket).await;
    };

    let (outcome, ()) = tokio::join!(side.call(), hang_up);

    let error = failed(outcome);
    let printed = format!("{error} {error:?} {:?} {:?} {}", side.pick(), side.provider, error.what());
    assert!(!printed.contains("very-secret"), "{printed}");
}

#[tokio::test]
async fn a_private_authority_is_trusted_where_it_is_named_and_http2_is_agreed_on() {
    let folder = tempfile::tempdir().unwrap();
    let Generated { cert, signing_key } = generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate = folder.path().join("tls.crt");
    std::fs::write(&certificate, cert.pem()).unwrap();
    let server = tls_server(&cert, &signing_key);
    let fake = Fake::open().await;
    let url = format!("https://localhost:{}/v1", fake.listener.local_addr().unwrap().port());
    let distrusting = Side::new(&spec("openai", &url));
    let trusting = Side::new(&ProviderSpec { ca: Some(certificate), http2: true, ..spec("openai", &url) });

    let (outcome, refused) = tokio::join!(distrusting.call(), async { server.accept(fake.accept().await).await });
    assert!(matches!(failed(outcome), CallError::Connect(ConnectError::Tls { .. })));
    assert!(refused.is_err());

    let (told, reset) = tokio::sync::oneshot::channel();
    let serving = async {
        let tls = server.accept(fake.accept().await).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        let mut connection = h2::server::handshake(tls).await.unwrap();
        let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        body.send_data(Bytes::from_static(b"hello"), false).unwrap();
        trusting.tasks.spawn("fake provider", async move { while connection.accept().await.is_some() {} });
        trusting.tasks.spawn("fake stream", async move {
            let reason = std::future::poll_fn(|context| body.poll_reset(context)).await;
            told.send(reason).unwrap();
        });
    };
    let (outcome, ()) = tokio::join!(trusting.call(), serving);
    let mut body = head(outcome).into_body();
    assert_eq!(body.chunk().await.unwrap().unwrap(), "hello");

    drop(body);

    let reason = tokio::time::timeout(SOON, reset).await.unwrap().unwrap();
    assert_eq!(reason.unwrap(), h2::Reason::CANCEL);
}

fn tls_server(certificate: &rcgen::Certificate, key: &rcgen::KeyPair) -> tokio_rustls::TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}
