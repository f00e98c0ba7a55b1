use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use bytesize::ByteSize;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};

use super::*;
use crate::ingress::connection::{ReadError, read_body};

const SOON: Duration = Duration::from_secs(20);

/// An ingress whose handler says what it was given, or waits where it is told to.
struct House {
    ingress: Ingress,
    tasks: Tasks,
    seen: Arc<AtomicU32>,
    /// Lets `/wait` answer.
    go: Arc<Notify>,
    /// Told when a handler of `/wait` or `/stream` has begun, and with `false` when it was dropped unfinished.
    told: mpsc::Receiver<bool>,
}

/// Says `false` when dropped before it was disarmed.
struct Alarm(Option<mpsc::Sender<bool>>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            let _full_or_gone = tell.try_send(false);
        }
    }
}

impl House {
    async fn open(limits: LimitsConfig) -> Self {
        Self::with_tls(limits, None).await
    }

    async fn with_tls(limits: LimitsConfig, tls: Option<Arc<Tls>>) -> Self {
        let (tell, told) = mpsc::channel(16);
        let seen = Arc::new(AtomicU32::new(0));
        let go = Arc::new(Notify::new());
        let tasks = Tasks::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (count, waits, bounds) = (Arc::clone(&seen), Arc::clone(&go), limits.clone());
        let handler = move |request: Request<Incoming>, info: ConnectionInfo| {
            count.fetch_add(1, Ordering::SeqCst);
            answer(request, info, bounds.clone(), Arc::clone(&waits), tell.clone())
        };
        let ingress = Ingress::start(vec![listener], handler, limits, tls, &tasks).unwrap();
        Self { ingress, tasks, seen, go, told }
    }

    fn address(&self) -> SocketAddr {
        self.ingress.addresses()[0]
    }

    async fn socket(&self) -> TcpStream {
        TcpStream::connect(self.address()).await.unwrap()
    }

    async fn http1(&self) -> http1::SendRequest<Full<Bytes>> {
        let (sender, connection) = http1::handshake(TokioIo::new(self.socket().await)).await.unwrap();
        self.tasks.spawn("client", async move { drop(connection.await) });
        sender
    }

    async fn http2(&self) -> http2::SendRequest<Full<Bytes>> {
        let io = TokioIo::new(self.socket().await);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        self.tasks.spawn("client", async move { drop(connection.await) });
        sender
    }
}

async fn answer(
    request: Request<Incoming>,
    info: ConnectionInfo,
    limits: LimitsConfig,
    go: Arc<Notify>,
    tell: mpsc::Sender<bool>,
) -> Response<Body> {
    if let Some(what) = info.bad_http {
        return reply(StatusCode::BAD_REQUEST, what);
    }
    match request.uri().path() {
        "/wait" => {
            tell.send(true).await.unwrap();
            let mut alarm = Alarm(Some(tell));
            go.notified().await;
            alarm.0 = None;
            reply(StatusCode::OK, "waited")
        }
        "/stream" => {
            tell.send(true).await.unwrap();
            let alarm = Alarm(Some(tell));
            let endless = stream::once(async { Ok(Bytes::from_static(b"first")) }).chain(stream::pending());
            Response::new(Body::stream(endless.map(move |chunk| {
                let _held = &alarm;
                chunk
            })))
        }
        "/flood" => {
            tell.send(true).await.unwrap();
            let alarm = Alarm(Some(tell));
            let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
            Response::new(Body::stream(stream::repeat_with(move || {
                let _held = &alarm;
                Ok(chunk.clone())
            })))
        }
        "/unread" => reply(StatusCode::PAYLOAD_TOO_LARGE, "not read"),
        _ => match read_body(request.into_body(), &limits).await {
            Ok(body) => Response::new(Body::from(body)),
            Err(ReadError::TooLarge { .. }) => reply(StatusCode::PAYLOAD_TOO_LARGE, "too large"),
            Err(ReadError::TooSlow { .. }) => reply(StatusCode::REQUEST_TIMEOUT, "too slow"),
            Err(ReadError::Broken { .. }) => reply(StatusCode::BAD_REQUEST, "broken"),
        },
    }
}

fn reply(status: StatusCode, words: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(Bytes::from_static(words.as_bytes())));
    *response.status_mut() = status;
    response
}

fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(path).header("host", "gateway").body(Full::new(body.into())).unwrap()
}

/// For HTTP/2, where the authority is part of the URL.
fn post2(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(format!("http://gateway{path}")).body(Full::new(body.into())).unwrap()
}

async fn text(response: Response<Incoming>) -> (StatusCode, HeaderMap, Bytes) {
    let (parts, body) = response.into_parts();
    (parts.status, parts.headers, body.collect().await.unwrap().to_bytes())
}

/// Sends raw bytes and reads until the other side closes.
async fn raw(house: &House, bytes: impl AsRef<[u8]>) -> String {
    let mut socket = house.socket().await;
    socket.write_all(bytes.as_ref()).await.unwrap();
    until_closed(&mut socket).await
}

async fn until_closed(socket: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(SOON, socket.read_to_end(&mut answer)).await.expect("the connection was left open");
    // A reset after the answer is as good as a close.
    drop(read);
    String::from_utf8_lossy(&answer).into_owned()
}

fn quick() -> LimitsConfig {
    let soon = Duration::from_millis(150);
    LimitsConfig { header_timeout: soon, body_timeout: soon, idle_timeout: soon, ..LimitsConfig::default() }
}

#[tokio::test]
async fn both_protocols_are_served_on_one_port() {
    let house = House::open(LimitsConfig::default()).await;

    let one = house.http1().await.send_request(post("/", "hello")).await.unwrap();
    let two = house.http2().await.send_request(post2("/", "hello")).await.unwrap();

    assert_eq!((one.version(), two.version()), (Version::HTTP_11, Version::HTTP_2));
    assert_eq!(text(one).await.2, "hello");
    assert_eq!(text(two).await.2, "hello");
}

#[tokio::test]
async fn a_connection_is_kept_for_the_next_request() {
    let house = House::open(LimitsConfig::default()).await;
    let mut client = house.http1().await;

    for words in ["one", "two", "three"] {
        let response = client.send_request(post("/", words)).await.unwrap();
        assert_eq!(text(response).await.2, words);
        client.ready().await.unwrap();
    }
}

#[tokio::test]
async fn every_reply_names_its_request() {
    let house = House::open(LimitsConfig::default()).await;
    let mut client = house.http1().await;
    let mut named = post("/", "");
    named.headers_mut().insert("x-request-id", "mine".parse().unwrap());

    let given = text(client.send_request(named).await.unwrap()).await.1;
    client.ready().await.unwrap();
    let made = text(client.send_request(post("/", "")).await.unwrap()).await.1;

    assert_eq!(given["x-request-id"], "mine");
    assert_eq!(made["x-request-id"].len(), 32);
}

/// Slow loris: a byte now and then does not keep a head open.
#[tokio::test]
async fn a_head_that_dawdles_is_cut() {
    let limits = LimitsConfig { idle_timeout: SOON * 2, ..quick() };
    let house = House::open(limits).await;
    let mut socket = house.socket().await;

    socket.write_all(b"POST / HTTP/1.1\r\nhost: a\r\n").await.unwrap();

    assert_eq!(until_closed(&mut socket).await, "");
    assert_eq!(house.seen.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_cut() {
    let house = House::open(quick()).await;
    let mut socket = house.socket().await;

    assert_eq!(until_closed(&mut socket).await, "");
}

#[tokio::test]
async fn half_an_http2_preface_is_cut() {
    let limits = LimitsConfig { idle_timeout: SOON * 2, ..quick() };
    let house = House::open(limits).await;

    assert_eq!(raw(&house, "PRI * HTTP/2.0\r\n").await, "");
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time() {
    let house = House::open(quick()).await;
    let mut socket = house.socket().await;

    socket.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();

    let answer = until_closed(&mut socket).await;
    assert!(answer.ends_with("hi"), "{answer}");
}

#[tokio::test]
async fn an_idle_http2_connection_is_closed_after_its_time() {
    let house = House::open(quick()).await;
    let mut client = house.http2().await;
    client.send_request(post2("/", "x")).await.unwrap();

    let gone = async {
        while client.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };

    tokio::time::timeout(SOON, gone).await.expect("the connection was left open");
}

/// What its stream holds (a place, a slot, a call to a provider) is free when the request's time is over.
#[tokio::test]
async fn a_client_that_reads_no_further_holds_nothing_for_ever() {
    let limits = LimitsConfig { request_timeout: Duration::from_millis(100), ..quick() };
    for http2 in [false, true] {
        let mut house = House::open(limits.clone()).await;
        let mut socket = house.socket().await;
        let mut client = house.http2().await;
        let _unread = if http2 {
            Some(client.send_request(post2("/flood", "")).await.unwrap())
        } else {
            socket.write_all(b"POST /flood HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            None
        };
        assert_eq!(house.told.recv().await, Some(true));

        assert_eq!(tokio::time::timeout(SOON, house.told.recv()).await.unwrap(), Some(false), "http2: {http2}");
    }
}

/// Nor does one that takes nothing at all: not even a whole answer is polled for it.
#[tokio::test]
async fn an_answer_that_nobody_takes_holds_no_connection_for_ever() {
    let house = House::open(LimitsConfig { request_timeout: Duration::from_millis(100), ..quick() }).await;
    let io = TokioIo::new(house.socket().await);
    let handshake = http2::Builder::new(TokioExecutor::new()).initial_stream_window_size(0).handshake(io).await;
    let (mut client, connection) = handshake.unwrap();
    house.tasks.spawn("client", async move { drop(connection.await) });
    let _unread = client.send_request(post2("/unread", "")).await.unwrap();

    let gone = async {
        while client.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };

    tokio::time::timeout(SOON, gone).await.expect("the connection was left open");
}

/// However long it takes: who reads is not cut.
#[tokio::test]
async fn a_client_that_reads_on_is_not_given_up() {
    let limits = LimitsConfig { request_timeout: Duration::from_millis(100), ..quick() };
    let mut house = House::open(limits).await;
    let mut client = house.http1().await;
    let mut body = client.send_request(post("/flood", "")).await.unwrap().into_body();
    assert_eq!(house.told.recv().await, Some(true));

    let until = tokio::time::Instant::now() + quick().header_timeout * 8;
    while tokio::time::Instant::now() < until {
        assert!(body.frame().await.unwrap().is_ok());
    }

    assert!(house.told.try_recv().is_err());
}

/// The limits are on what a client does, not on what we do: a slow answer is not cut.
#[tokio::test]
async fn a_slow_handler_outlives_the_clients_limits() {
    let mut house = House::open(quick()).await;
    let mut client = house.http1().await;
    let answer = client.send_request(post("/wait", ""));
    let go = Arc::clone(&house.go);
    let pass_the_limits = async {
        assert_eq!(house.told.recv().await, Some(true));
        tokio::time::timeout(quick().idle_timeout * 3, house.told.recv()).await.expect_err("the handler was dropped");
        go.notify_one();
    };

    let (answer, ()) = tokio::join!(answer, pass_the_limits);

    assert_eq!(answer.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_body_that_dawdles_is_answered() {
    let house = House::open(quick()).await;

    let answer = raw(&house, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhi").await;

    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

/// 100 MiB announced: refused before a byte of it is read, and the client gets to read why even if it sends on.
#[tokio::test]
async fn an_oversized_body_is_refused_by_its_length() {
    let house = House::open(LimitsConfig::default()).await;
    let mut socket = house.socket().await;
    socket.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 104857600\r\n\r\n").await.unwrap();
    let (mut read, mut write) = socket.into_split();
    let sending = async {
        let piece = vec![b'a'; 1024 * 1024];
        for _ in 0..100 {
            if write.write_all(&piece).await.is_err() {
                break;
            }
        }
        drop(write);
    };
    let reading = async {
        let mut answer = Vec::new();
        drop(read.read_to_end(&mut answer).await);
        String::from_utf8_lossy(&answer).into_owned()
    };

    let ((), answer) = tokio::join!(sending, reading);

    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn an_oversized_body_of_unknown_length_is_counted() {
    let limits = LimitsConfig { body_max: ByteSize::b(10), ..LimitsConfig::default() };
    let house = House::open(limits).await;
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";

    let fits = raw(&house, format!("{head}a\r\n0123456789\r\n0\r\n\r\n")).await;
    let over = raw(&house, format!("{head}a\r\n0123456789\r\n1\r\nX\r\n0\r\n\r\n")).await;

    assert!(fits.starts_with("HTTP/1.1 200"), "{fits}");
    assert!(over.starts_with("HTTP/1.1 413"), "{over}");
}

#[tokio::test]
async fn a_large_body_in_many_pieces_arrives_whole() {
    let house = House::open(LimitsConfig::default()).await;
    let large: Vec<u8> = (0..3_000_000u32).map(|number| number.to_le_bytes()[1]).collect();

    let one = house.http1().await.send_request(post("/", large.clone())).await.unwrap();
    let two = house.http2().await.send_request(post2("/", large.clone())).await.unwrap();

    assert!(text(one).await.2 == large);
    assert!(text(two).await.2 == large);
}

#[tokio::test]
async fn oversized_heads_are_refused() {
    let house = House::open(LimitsConfig::default()).await;
    let long = format!("POST / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "a".repeat(33 * 1024));
    let many = format!("POST / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(200));
    let endless = format!("POST / HTTP/1.1\r\nhost: a\r\nx: {}", "a".repeat(100 * 1024));

    for head in [long, many, endless] {
        let answer = raw(&house, head).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }

    assert_eq!(house.seen.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn oversized_heads_are_refused_over_http2() {
    let house = House::open(LimitsConfig::default()).await;
    let mut many = post2("/", "");
    for number in 0..200 {
        many.headers_mut().append("x", number.into());
    }
    let mut long = post2("/", "");
    for _ in 0..40 {
        long.headers_mut().append("x", "a".repeat(1024).parse().unwrap());
    }
    let mut client = house.http2().await;

    let answer = client.send_request(many).await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert_eq!(text(answer).await.2, "it has too many headers");
    let refused = client.send_request(long).await.unwrap();
    assert_eq!(refused.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

/// Two framings of one body are how a request is smuggled past a proxy. Refused, and nothing after it is served.
#[tokio::test]
async fn smuggling_pairs_are_refused() {
    let pairs = [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5\r\ncontent-length: 5",
        "content-length: 5, 6",
        "content-length: +5",
        "transfer-encoding: identity",
        "transfer-encoding: chunked, identity",
        "transfer-encoding : chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
    ];
    for pair in pairs {
        let house = House::open(LimitsConfig::default()).await;

        let answer = raw(
            &house,
            format!("POST / HTTP/1.1\r\nhost: a\r\n{pair}\r\n\r\n0\r\n\r\nPOST /second HTTP/1.1\r\nhost: a\r\n\r\n"),
        )
        .await;

        assert!(answer.starts_with("HTTP/1.1 400"), "{pair}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{pair}: {answer}");
    }
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    for garbage in
        ["\0\0\0\0\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "POST / HTTP/1.1\r\nbad header\r\n\r\n"]
    {
        let house = House::open(LimitsConfig::default()).await;

        let answer = raw(&house, garbage).await;

        assert!(answer.starts_with("HTTP/1.1 400"), "{garbage:?}: {answer}");
        assert_eq!(house.seen.load(Ordering::SeqCst), 0);
    }
}

/// CVE-2023-44487: opening and resetting streams without end costs the client its connection.
#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let limits = LimitsConfig { reset_streams_max: 5.try_into().unwrap(), ..LimitsConfig::default() };
    let house = House::open(limits).await;
    let mut socket = house.socket().await;
    let mut attack = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for stream in (1..4000u32).step_by(2) {
        // HEADERS with END_HEADERS: POST, http, `/`, all from the static table; then RST_STREAM (CANCEL).
        attack.extend_from_slice(b"\0\0\x03\x01\x04");
        attack.extend_from_slice(&stream.to_be_bytes());
        attack.extend_from_slice(b"\x83\x86\x84");
        attack.extend_from_slice(b"\0\0\x04\x03\0");
        attack.extend_from_slice(&stream.to_be_bytes());
        attack.extend_from_slice(b"\0\0\0\x08");
    }

    drop(socket.write_all(&attack).await);
    let mut answer = Vec::new();
    let read = tokio::time::timeout(SOON, socket.read_to_end(&mut answer)).await;

    drop(read.expect("the connection was left open"));
    // GOAWAY with ENHANCE_YOUR_CALM, unless the reset of the connection overtook it.
    let goaway = answer.windows(4).any(|bytes| bytes == b"\0\0\0\x0b");
    assert!(goaway || answer.is_empty(), "{answer:?}");
}

#[tokio::test]
async fn streams_beyond_the_bound_wait() {
    let limits = LimitsConfig { streams_max: 2.try_into().unwrap(), ..LimitsConfig::default() };
    let mut house = House::open(limits).await;
    let mut client = house.http2().await;
    // The server's settings have arrived once something was answered.
    client.send_request(post2("/", "")).await.unwrap();

    let three: Vec<_> = (0..3).map(|_| client.send_request(post2("/wait", ""))).collect();
    let all = futures_util::future::join_all(three);
    let release = async {
        for _ in 0..2 {
            assert_eq!(house.told.recv().await, Some(true));
        }
        let third = tokio::time::timeout(Duration::from_millis(100), house.told.recv()).await;
        assert!(third.is_err(), "a third stream was served");
        house.go.notify_one();
        assert_eq!(house.told.recv().await, Some(true));
        house.go.notify_one();
        house.go.notify_one();
    };

    let (answers, ()) = tokio::time::timeout(SOON, async { tokio::join!(all, release) }).await.unwrap();

    assert!(answers.iter().all(Result::is_ok));
}

#[tokio::test]
async fn newcomers_beyond_the_bound_wait_until_a_connection_ends() {
    let limits = LimitsConfig { connections_max: 1.try_into().unwrap(), ..LimitsConfig::default() };
    let mut house = House::open(limits).await;
    let mut first = house.http1().await;
    first.send_request(post("/", "x")).await.unwrap();

    let mut second = house.http1().await;
    let waiting = second.send_request(post("/wait", ""));
    let release = async {
        let early = tokio::time::timeout(Duration::from_millis(100), house.told.recv()).await;
        assert!(early.is_err(), "served beyond the bound");
        drop(first);
        assert_eq!(house.told.recv().await, Some(true));
        house.go.notify_one();
    };

    let (answer, ()) = tokio::time::timeout(SOON, async { tokio::join!(waiting, release) }).await.unwrap();

    assert_eq!(answer.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_hang_up_drops_the_handler() {
    for http2 in [false, true] {
        let mut house = House::open(LimitsConfig::default()).await;
        if http2 {
            let mut client = house.http2().await;
            let waiting = client.send_request(post2("/wait", ""));
            tokio::select! {
                _ = waiting => panic!("it was not let go"),
                begun = house.told.recv() => assert_eq!(begun, Some(true)),
            }
        } else {
            let mut socket = house.socket().await;
            socket.write_all(b"POST /wait HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            assert_eq!(house.told.recv().await, Some(true));
        }

        let dropped = tokio::time::timeout(SOON, house.told.recv()).await.unwrap();

        assert_eq!(dropped, Some(false), "http2: {http2}");
    }
}

#[tokio::test]
async fn a_hang_up_drops_the_stream() {
    for http2 in [false, true] {
        let mut house = House::open(LimitsConfig::default()).await;
        let response = if http2 {
            house.http2().await.send_request(post2("/stream", "")).await.unwrap()
        } else {
            house.http1().await.send_request(post("/stream", "")).await.unwrap()
        };
        assert_eq!(house.told.recv().await, Some(true));
        let mut body = response.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");

        drop(body);

        assert_eq!(tokio::time::timeout(SOON, house.told.recv()).await.unwrap(), Some(false), "http2: {http2}");
    }
}

#[tokio::test]
async fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    for http2 in [false, true] {
        let mut house = House::open(LimitsConfig::default()).await;
        let (mut one, mut two) = (house.http1().await, house.http2().await);
        let waiting = async {
            if http2 { two.send_request(post2("/wait", "")).await } else { one.send_request(post("/wait", "")).await }
        };
        let draining = async {
            assert_eq!(house.told.recv().await, Some(true));
            let release = async { house.go.notify_one() };
            tokio::join!(house.ingress.drain(SOON), release).0
        };

        let (answer, drained) = tokio::join!(waiting, draining);

        assert_eq!(text(answer.unwrap()).await.2, "waited", "http2: {http2}");
        assert_eq!(drained, Drained::Whole);
        assert!(TcpStream::connect(house.address()).await.is_err(), "it still accepts");
    }
}

#[tokio::test]
async fn a_drain_closes_idle_connections_at_once() {
    let house = House::open(LimitsConfig::default()).await;
    let mut used = house.http1().await;
    used.send_request(post("/", "x")).await.unwrap();
    let mut fresh = house.socket().await;
    let mut multiplexed = house.http2().await;
    multiplexed.send_request(post2("/", "x")).await.unwrap();

    let drained = house.ingress.drain(SOON).await;

    assert_eq!(drained, Drained::Whole);
    assert_eq!(until_closed(&mut fresh).await, "");
}

#[tokio::test]
async fn a_drain_cuts_what_does_not_finish() {
    let mut house = House::open(LimitsConfig::default()).await;
    let mut client = house.http1().await;
    let response = client.send_request(post("/stream", "")).await.unwrap();
    assert_eq!(house.told.recv().await, Some(true));

    let drained = house.ingress.drain(Duration::from_millis(50)).await;

    assert_eq!(drained, Drained::Cut { connections: 1 });
    assert!(response.into_body().collect().await.is_err());
    house.tasks.shutdown(SOON).await.expect("every task ended");
}

#[test]
fn running_out_of_descriptors_is_told_from_losing_one_client() {
    assert!(concerns_everyone(&io::Error::from_raw_os_error(24)));
    assert!(!concerns_everyone(&io::ErrorKind::ConnectionAborted.into()));
}
