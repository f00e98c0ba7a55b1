//! A whole gateway on loopback, with a provider that is a bare socket.

use std::num::NonZeroU32;

use cluster::directory::key::{KeyHash, KeySpec};
use cluster::directory::provider::{BreakerConfig, ProviderSpec};
use cluster::directory::resources::Resources;
use cluster::directory::secret::SecretRef;
use http::header::{AUTHORIZATION, HeaderValue};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::ingress::Ingress;
use crate::supervisor::{RestartPolicy, Supervisor};

const SOON: Duration = Duration::from_secs(20);
const WEB: &str = "a-key-of-the-web-0123456789-abcdef";
const APP: &str = "a-key-of-the-app-0123456789-abcdef";
const CHUNK: &str = "data: {\"id\":\"1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":\
     [{\"index\":0,\"delta\":{\"content\":\"hello\"},\"finish_reason\":null}]}\n\n";
const LAST: &str = "data: {\"id\":\"1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":\
     [{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

struct House {
    gateway: Arc<Gateway>,
    ingress: Ingress,
    provider: TcpListener,
    tasks: Tasks,
}

impl House {
    async fn open(gate: Gate) -> Self {
        let provider = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let resources = resources(&format!("http://{}/v1", provider.local_addr().unwrap()));
        let secret = |reference: &SecretRef| reference.literal().map(str::to_owned);
        let directory = Arc::new(Directory::build(&resources, &secret).unwrap());
        let tasks = Tasks::new();
        let supervisor = Supervisor::start(RestartPolicy::default(), &tasks).await.unwrap();
        let policies = [("fake".into(), resources.providers["fake"].breaker)];
        let providers: Vec<_> = directory.providers().cloned().collect();
        let now = clock::now();
        let gateway = Arc::new(Gateway {
            node: HeaderValue::from_static("test"),
            gate,
            published: Arc::new(ArcSwap::from_pointee(Published { directory, identity: Identity::Keys })),
            cuts: Cuts::default(),
            limits: LimitsConfig::default(),
            breakers: Breakers::start(&supervisor, policies).await.unwrap(),
            providers: Providers::new(&providers, &secret, &tasks).unwrap_or_else(|errors| panic!("{errors:?}")),
            queue: Queue::new(&crate::queue::QueueConfig::default(), now),
            quota: Quota::new(),
            cache: Cache::start(&crate::cache::CacheConfig::default(), &supervisor).await.unwrap(),
            fingerprint_key: [7; 32],
            routing: Routing::new(1, now),
            tasks: tasks.clone(),
        });
        let path = Arc::clone(&gateway);
        let handler = move |request, info| Arc::clone(&path).serve(request, info);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ingress = Ingress::start(vec![listener], handler, LimitsConfig::default(), None, &tasks).unwrap();
        Self { gateway, ingress, provider, tasks }
    }

    /// Sends a request on a connection of its own.
    async fn send(&self, request: http::Request<Full<Bytes>>) -> http::Response<Incoming> {
        let socket = TcpStream::connect(self.ingress.addresses()[0]).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.unwrap();
        self.tasks.spawn("client", async move { drop(connection.await) });
        sender.send_request(request).await.unwrap()
    }

    /// Takes a call and begins to answer it with a stream.
    async fn begin_stream(&self) -> TcpStream {
        let mut socket = self.take_call().await;
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        socket.write_all(format!("{head}{CHUNK}").as_bytes()).await.unwrap();
        socket
    }

    /// Takes a call, whose body is the last thing that ends in `}`.
    async fn take_call(&self) -> TcpStream {
        let (mut socket, _peer) =
            tokio::time::timeout(SOON, self.provider.accept()).await.expect("nobody called").unwrap();
        let mut call = Vec::new();
        while !call.ends_with(b"]}") {
            call.push(socket.read_u8().await.unwrap());
        }
        socket
    }
}

fn resources(base_url: &str) -> Resources {
    let mut resources = Resources::default();
    let key = |text| KeySpec { hash: Some(KeyHash::of(text).to_text()), ..KeySpec::default() };
    resources.keys.insert("web".to_owned(), key(WEB));
    resources.keys.insert("app".to_owned(), key(APP));
    let provider = ProviderSpec {
        kind: Some("compatible".to_owned()),
        base_url: Some(base_url.to_owned()),
        api_key: Some(SecretRef::text("sk-very-secret")),
        breaker: BreakerConfig { failures_max: NonZeroU32::MIN, ..BreakerConfig::default() },
        ..ProviderSpec::default()
    };
    resources.providers.insert("fake".to_owned(), provider);
    resources
}

/// Told as exceeded, it sent its reader to wait for a next window that never came.
#[tokio::test]
async fn a_budget_that_is_not_known_is_no_budget_that_is_exceeded() {
    let house = House::open(Gate::always_open()).await;
    let mut resources = resources("http://127.0.0.1:9/v1");
    let secret = |reference: &SecretRef| reference.literal().map(str::to_owned);
    let without = Directory::build(&resources, &secret).unwrap();
    let spec = r#"{ "limit": "$1", "window": "day" }"#;
    resources.budgets.insert("gone".to_owned(), serde_json::from_str(spec).unwrap());
    resources.keys.get_mut("web").unwrap().budgets.push("gone".to_owned());
    let with = Directory::build(&resources, &secret).unwrap();
    let directory = Arc::new(Directory::new(with.keys().clone(), Arc::clone(without.shape())));
    house.gateway.published.store(Arc::new(Published { directory, identity: Identity::Keys }));

    let answer = house.send(chat(WEB, false)).await;

    assert_eq!((answer.status().as_u16(), answer.headers().get("retry-after")), (403, None));
    let error = serde_json::from_str::<serde_json::Value>(&text(answer).await).unwrap()["error"].clone();
    assert_eq!((error["code"].as_str(), error["type"].as_str()), (Some("budget_unknown"), Some("permission_denied")));
    assert!(error["message"].as_str().unwrap().contains("`gone`, which this node does not know"), "{error}");
}

/// Fields in an order in which the provider sees `]}` last.
fn chat(key: &str, stream: bool) -> http::Request<Full<Bytes>> {
    let body = format!(
        "{{\"model\":\"fake/m\",\"stream\":{stream},\"stream_options\":{{\"include_usage\":true}},\
         \"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}]}}"
    );
    let body = if stream { body } else { body.replace("\"stream_options\":{\"include_usage\":true},", "") };
    let request = http::Request::post("/v1/chat/completions").header("host", "gateway");
    request.header(AUTHORIZATION, format!("Bearer {key}")).body(Full::new(Bytes::from(body))).unwrap()
}

async fn text(response: http::Response<Incoming>) -> String {
    let body = tokio::time::timeout(SOON, response.into_body().collect()).await.expect("the answer never ended");
    String::from_utf8(body.unwrap().to_bytes().to_vec()).unwrap()
}

/// The next part of a stream that says something.
async fn chunk(response: &mut http::Response<Incoming>) -> String {
    let frame = tokio::time::timeout(SOON, response.body_mut().frame()).await.expect("the stream stood still");
    let data = frame.expect("it goes on").unwrap().into_data().unwrap();
    String::from_utf8(data.to_vec()).unwrap()
}

/// P-REVOKE: a node that does not know whether its keys are current lets nobody in, whatever is asked.
#[tokio::test]
async fn a_closed_gate_lets_nobody_in_and_says_when_to_try_again() {
    let gate = Gate::closed();
    let house = House::open(gate.clone()).await;
    let models = || {
        let request = http::Request::get("/v1/models").header("host", "gateway");
        request.header("x-api-key", WEB).body(Full::default()).unwrap()
    };
    let messages = http::Request::post("/v1/messages").header("host", "gateway").header("x-api-key", WEB);

    for request in [chat(WEB, false), models(), messages.body(Full::default()).unwrap()] {
        let refused = house.send(request).await;

        assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (503, &HeaderValue::from(1)));
        assert!(text(refused).await.contains("cluster"));
    }
    gate.fresh_until(clock::since_boot() + SOON);
    assert_eq!(house.send(models()).await.status().as_u16(), 200);
    gate.fresh_until(clock::since_boot());
    assert_eq!(house.send(models()).await.status().as_u16(), 503);
}

/// P-STREAM: a stream that is cut ends with a typed error, and only those of the key that was revoked.
#[tokio::test]
async fn a_cut_ends_the_running_streams_of_its_key_alone() {
    let house = House::open(Gate::always_open()).await;
    let (mut web, _web_upstream) = tokio::join!(house.send(chat(WEB, true)), house.begin_stream());
    let (mut app, mut app_upstream) = tokio::join!(house.send(chat(APP, true)), house.begin_stream());
    assert!(chunk(&mut web).await.contains("hello") && chunk(&mut app).await.contains("hello"));

    house.gateway.cuts.cut(KeyHash::of(WEB));
    let cut = text(web).await;
    app_upstream.write_all(LAST.as_bytes()).await.unwrap();
    drop(app_upstream);
    let whole = text(app).await;

    assert!(cut.contains("api_key_revoked"), "{cut}");
    assert!(whole.contains("[DONE]") && !whole.contains("error"), "{whole}");
}

#[tokio::test]
async fn a_cut_ends_a_request_that_still_waits_for_its_answer() {
    let house = House::open(Gate::always_open()).await;
    let waits = house.send(chat(WEB, false));

    let (answer, mut upstream) = tokio::join!(waits, async {
        let upstream = house.take_call().await;
        house.gateway.cuts.cut(KeyHash::of(WEB));
        upstream
    });

    assert_eq!(answer.status().as_u16(), 401);
    assert!(text(answer).await.contains("api_key_revoked"));
    let told = tokio::time::timeout(SOON, upstream.read(&mut [0; 1])).await.expect("the provider was not told to stop");
    assert_eq!(told.unwrap_or_default(), 0);
}

/// All its targets are switched off.
#[tokio::test]
async fn a_route_without_targets_has_no_healthy_upstream() {
    let house = House::open(Gate::always_open()).await;
    let request = Dialect::OpenAiChat
        .decode_request(b"{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}")
        .unwrap();
    let mut route = Route::implicit("support".into(), "fake".into(), "m");
    route.targets.clear();
    let attempts = Attempts {
        gateway: Arc::clone(&house.gateway),
        published: house.gateway.published.load_full(),
        route: Arc::new(route),
        request: Arc::new(request),
        raw: Bytes::new(),
        from: Dialect::OpenAiChat,
        headers: Arc::default(),
        key: Arc::new(cluster::directory::key::Key::anonymous()),
        request_id: "r".into(),
        started: clock::now(),
        deadline: clock::now() + SOON,
        head: Head::default(),
        made: 0,
        waits: Waits::new(clock::now() + SOON),
    };

    let Err(failure) = attempts.run().await else { panic!("nobody was there to answer") };

    assert_eq!((failure.row().status, failure.row().code), (503, "no_healthy_upstream"));
}

/// What a provider said to one node the others know, for the provider as a whole and for each credential.
#[tokio::test]
async fn what_a_provider_said_to_one_node_the_others_know() {
    let (here, there) = (House::open(Gate::always_open()).await, House::open(Gate::always_open()).await);
    let (here, there, now) = (&here.gateway, &there.gateway, clock::now());
    let credential = here.providers.pick("fake", &[], now).unwrap();
    let provider = here.published.load().directory.provider("fake").cloned().unwrap();
    let until = now + Duration::from_mins(1);
    here.providers.flag(&provider, &credential, provider::Flag::Dead, until);

    let told = here.marks(now);
    there.hear(1, &[(2, &told)], now);

    assert!(!told.contains("sk-very-secret"), "{told}");
    assert_eq!(there.providers.standing("fake", now), Some(provider::Standing::Dead { until }));
    assert_eq!(there.marks(now), "1", "what was only heard is not told on");
    assert_eq!(there.providers.standing("fake", until), Some(provider::Standing::Usable));
}

/// One node's breaker follows those of two others, and closes when one of them succeeds.
#[tokio::test]
async fn breakers_follow_and_close_by_what_is_told() {
    let houses = [
        House::open(Gate::always_open()).await,
        House::open(Gate::always_open()).await,
        House::open(Gate::always_open()).await,
    ];
    let now = clock::now();
    let breakers: Vec<_> = houses.iter().map(|house| house.gateway.breakers.get("fake").unwrap()).collect();
    for breaker in &breakers[..2] {
        breaker.admit(now).unwrap().finish(breaker::Verdict::Failure, now);
        until(|| breaker.standing(now) != breaker::Standing::Closed).await;
    }
    let hear = |now| {
        let told: Vec<_> = houses.iter().map(|house| house.gateway.marks(now)).collect();
        let told: Vec<_> = told.iter().enumerate().map(|(node, text)| (node as u64, text.as_str())).collect();
        for (node, house) in houses.iter().enumerate() {
            house.gateway.hear(node as u64, &told, now);
        }
    };

    hear(now);
    until(|| matches!(breakers[2].standing(now), breaker::Standing::Open { .. })).await;
    breaker::Admission::last_resort(&breakers[0]).finish(breaker::Verdict::Success, now + Duration::from_secs(1));
    until(|| breakers[0].standing(now) == breaker::Standing::Closed).await;
    let later = now + Duration::from_secs(1);
    hear(later);

    for breaker in &breakers {
        until(|| breaker.standing(later) == breaker::Standing::Closed).await;
    }
}

async fn until(condition: impl Fn() -> bool) {
    let waits = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, waits).await.expect("it never happened");
}
