//! The listener for operators: is it alive, is it ready, what does it do; and `/admin/v1`, through which they change it.
//!
//! Plain HTTP. It keeps answering while the node drains, so that whoever watches can see it do so.

pub mod access;
pub mod api;
pub mod budgets;
pub mod control;
pub mod endpoint;
pub mod error;
#[cfg(test)]
mod fake;
pub mod http;
pub mod key_text;
mod keys;
mod members;
pub mod openapi;
pub mod register;
mod resources;
pub mod status;

use self::api::Api;
use self::control::Control;
use self::endpoint::PREFIX;
use crate::telemetry::metrics::{ADMIN_REQUESTS, READY};
use ::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use ::http::{HeaderValue, Method, Request, Response, StatusCode};
use actors::supervisor::Tasks;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use status::Status;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Connections open at once; newcomers wait. Enough for a few scrapers and people, too few to be a burden.
const CONNECTIONS_MAX: usize = 32;

/// From the first byte of a request to the end of its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection lives no longer. Scrapers connect again; whoever forgets one holds a place for this long only.
const CONNECTION_MAX: Duration = Duration::from_mins(5);

/// After a failure to accept (mostly: no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the node shows. Called for each request; must be quick and must not wait.
pub trait View: Send + Sync + 'static {
    /// Each thing that must be so before traffic may come.
    fn checks(&self) -> Vec<Check>;

    fn status(&self) -> Status;

    /// In Prometheus' text format.
    fn metrics(&self) -> String;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub ok: bool,
    /// What is missing, or what was found.
    pub detail: String,
}

/// Cheap to clone: one for each connection.
#[derive(Clone)]
pub struct Admin {
    view: Arc<dyn View>,
    api: Option<Api>,
}

impl Admin {
    pub fn new(view: Arc<dyn View>) -> Self {
        Self { view, api: None }
    }

    /// With `/admin/v1`.
    #[must_use]
    pub fn with_control(self, control: Arc<dyn Control>) -> Self {
        Self { api: Some(Api::new(control)), ..self }
    }

    /// Answers until `stop`. Connections that are open then end after the answer they are at.
    pub async fn serve(self, listener: TcpListener, tasks: Tasks, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = async { (Arc::clone(&places).acquire_owned().await, listener.accept().await) } => accepted,
            };
            match accepted {
                (Ok(place), Ok((socket, _peer))) => {
                    let connection = self.clone().connection(socket, stop.clone());
                    tasks.spawn("admin connection", async move {
                        connection.await;
                        drop(place);
                    });
                }
                (_, Err(error)) => {
                    warn!(%error, "admin listener cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                // Nobody closes the semaphore.
                (Err(_), Ok(_)) => return,
            }
        }
    }

    async fn connection(self, socket: TcpStream, stop: CancellationToken) {
        let service =
            service_fn(|request: Request<Incoming>| async { Ok::<_, Infallible>(self.answer(request).await) });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(socket), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = async { tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(CONNECTION_MAX) => {} } } => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(%error, "admin connection broke");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (known, response) = match &self.api {
            Some(api) if request.uri().path().starts_with(PREFIX) => api.answer(request).await,
            Some(_) | None => self.look(request.method(), request.uri().path()),
        };
        let status = response.status().as_str().to_owned();
        metrics::counter!(ADMIN_REQUESTS, "path" => known, "status" => status).increment(1);
        response
    }

    fn look(&self, method: &Method, path: &str) -> (&'static str, Response<Full<Bytes>>) {
        let (known, response) = match path {
            "/livez" => ("/livez", json(StatusCode::OK, &serde_json::json!({ "live": true }))),
            "/readyz" => ("/readyz", self.ready()),
            "/health" => ("/health", self.health()),
            "/metrics" => ("/metrics", self.metrics()),
            "/status" => ("/status", json(StatusCode::OK, &self.view.status())),
            _ => ("other", not_found()),
        };
        let readable = method == Method::GET || method == Method::HEAD;
        (known, if readable || known == "other" { response } else { method_not_allowed() })
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let checks = self.view.checks();
        let ready = checks.iter().all(|check| check.ok);
        json(status_of(ready), &serde_json::json!({ "ready": ready, "checks": checks }))
    }

    /// For a load balancer or a person: readiness, and whether something works worse than it could.
    fn health(&self) -> Response<Full<Bytes>> {
        let failing: Vec<Check> = self.view.checks().into_iter().filter(|check| !check.ok).collect();
        let status = self.view.status();
        let degraded = status.degraded();
        let word = match (failing.is_empty(), degraded.is_empty()) {
            (false, _) => "unready",
            (true, false) => "degraded",
            (true, true) => "ok",
        };
        let body = serde_json::json!({
            "status": word,
            "node": status.node.name,
            "version": status.version,
            "failing": failing,
            "degraded": degraded,
        });
        json(status_of(failing.is_empty()), &body)
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let ready = self.view.checks().iter().all(|check| check.ok);
        metrics::gauge!(READY).set(if ready { 1.0 } else { 0.0 });
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response(StatusCode::OK, kind, self.view.metrics().into())
    }
}

fn status_of(ready: bool) -> StatusCode {
    if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn not_found() -> Response<Full<Bytes>> {
    let known = ["/livez", "/readyz", "/health", "/metrics", "/status", "/admin/v1/openapi.json"];
    json(StatusCode::NOT_FOUND, &serde_json::json!({ "error": "not found", "known": known }))
}

fn method_not_allowed() -> Response<Full<Bytes>> {
    let error = serde_json::json!({ "error": "only GET and HEAD are answered here" });
    let mut response = json(StatusCode::METHOD_NOT_ALLOWED, &error);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

fn json(status: StatusCode, body: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec_pretty(body) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            response(status, HeaderValue::from_static("application/json"), bytes.into())
        }
        Err(error) => {
            warn!(%error, "an admin answer cannot be written as JSON");
            let text = HeaderValue::from_static("text/plain");
            response(StatusCode::INTERNAL_SERVER_ERROR, text, Bytes::from_static(b"cannot be written as JSON\n"))
        }
    }
}

fn response(status: StatusCode, kind: HeaderValue, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::status::BreakerStatus;
    use super::status::tests::status;
    use super::*;
    use http_body_util::{BodyExt, Empty};
    use hyper::client::conn::http1 as client;
    use parking_lot::Mutex;
    use std::net::SocketAddr;

    struct FakeView {
        checks: Mutex<Vec<Check>>,
        status: Mutex<Status>,
    }

    impl View for FakeView {
        fn checks(&self) -> Vec<Check> {
            self.checks.lock().clone()
        }

        fn status(&self) -> Status {
            self.status.lock().clone()
        }

        fn metrics(&self) -> String {
            "lea_requests_total 7\n".to_owned()
        }
    }

    struct Running {
        view: Arc<FakeView>,
        cluster: Arc<super::fake::FakeCluster>,
        address: SocketAddr,
        tasks: Tasks,
    }

    impl Running {
        async fn start() -> Self {
            let checks = vec![Check { name: "api listener", ok: true, detail: "127.0.0.1:8080".to_owned() }];
            let view = Arc::new(FakeView { checks: Mutex::new(checks), status: Mutex::new(status()) });
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let tasks = Tasks::new();
            let admin = Admin::new(Arc::clone(&view) as Arc<dyn View>);
            let cluster = Arc::new(super::fake::FakeCluster::new());
            let admin = admin.with_control(Arc::clone(&cluster) as Arc<dyn Control>);
            let all = tasks.clone();
            tasks.spawn_cancellable("admin", |stop| admin.serve(listener, all, stop));
            Self { view, cluster, address, tasks }
        }

        async fn ask(&self, method: Method, path: &str) -> (StatusCode, String) {
            self.ask_as("", method, path).await
        }

        async fn ask_as(&self, operator: &str, method: Method, path: &str) -> (StatusCode, String) {
            let socket = TcpStream::connect(self.address).await.unwrap();
            let (mut sender, connection) = client::handshake(TokioIo::new(socket)).await.unwrap();
            let mut request = Request::builder().method(method).uri(path).header("host", "admin");
            if !operator.is_empty() {
                request = request.header("authorization", format!("Bearer {operator}"));
            }
            let answer = async {
                let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
                let status = answer.status();
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                drop(sender);
                (status, String::from_utf8(body.to_vec()).unwrap())
            };
            let (answer, _ended) = tokio::join!(answer, connection);
            answer
        }

        async fn get(&self, path: &str) -> (u16, serde_json::Value) {
            let (status, body) = self.ask(Method::GET, path).await;
            (status.as_u16(), serde_json::from_str(&body).unwrap())
        }
    }

    #[tokio::test]
    async fn a_node_that_is_not_ready_says_what_is_missing() {
        let node = Running::start().await;
        assert_eq!(node.get("/readyz").await.0, 200);

        node.view.checks.lock().push(Check { name: "breakers", ok: false, detail: "not started".to_owned() });
        let (ready, body) = node.get("/readyz").await;
        let (health, summary) = node.get("/health").await;
        let (live, _) = node.get("/livez").await;

        assert_eq!((ready, health, live), (503, 503, 200), "a node that is not ready is still alive");
        assert_eq!(body["checks"][1], serde_json::json!({ "name": "breakers", "ok": false, "detail": "not started" }));
        assert_eq!(summary["failing"][0]["name"], "breakers");
    }

    #[tokio::test]
    async fn an_open_breaker_degrades_and_does_not_take_the_node_out() {
        let node = Running::start().await;

        node.view.status.lock().providers[0].breaker = BreakerStatus::Open { seconds_left: 9 };
        let (status, health) = node.get("/health").await;

        assert_eq!((status, health["status"].as_str()), (200, Some("degraded")));
        assert_eq!(health["degraded"][0], "provider openai is out of rotation");
        assert_eq!(node.get("/readyz").await.0, 200);
    }

    #[tokio::test]
    async fn metrics_and_status_are_as_the_node_tells_them() {
        let node = Running::start().await;

        let (found, text) = node.ask(Method::GET, "/metrics").await;
        let (_, shown) = node.get("/status").await;

        assert_eq!((found.as_u16(), text.as_str()), (200, "lea_requests_total 7\n"));
        assert_eq!(serde_json::from_value::<Status>(shown).unwrap(), status());
    }

    #[tokio::test]
    async fn the_api_is_reached_through_the_same_listener() {
        let node = Running::start().await;

        assert_eq!(node.get("/admin/v1/keys").await.0, 401);
        let (status, document) = node.get("/admin/v1/openapi.json").await;
        assert_eq!((status, document["openapi"].as_str()), (200, Some("3.1.0")));
        assert_eq!(node.ask(Method::HEAD, "/admin/v1/openapi.json").await.1, "");
        assert_eq!(node.ask(Method::DELETE, "/admin/v1/keys/web").await.0, 401);
        assert_eq!(node.get("/admin/v2/keys").await.0, 404);
    }

    #[tokio::test]
    async fn nothing_is_changed_without_a_key() {
        let node = Running::start().await;

        assert_eq!(node.ask(Method::POST, "/status").await.0, 405);
        assert_eq!(node.ask(Method::GET, "/config").await.0, 404);
        assert_eq!(node.ask(Method::HEAD, "/livez").await.1, "");
    }

    /// Someone who holds a connection open does not hold up the end of the process.
    #[tokio::test]
    async fn shutdown_closes_idle_connections() {
        let node = Running::start().await;
        let idle = TcpStream::connect(node.address).await.unwrap();
        node.get("/livez").await;

        node.tasks.shutdown(Duration::from_secs(5)).await.expect("nothing is left");

        drop(idle);
    }

    /// Whoever tells a node to leave is told that it does, although the listener ends with the node.
    #[tokio::test]
    async fn an_answer_under_way_is_given_although_the_listener_ends() {
        let node = Running::start().await;
        let held = node.cluster.hold();

        let asked = node.ask_as("operator", Method::POST, "/admin/v1/members/edge-0/drain");
        let leaving = async {
            while node.cluster.asked().is_empty() {
                tokio::task::yield_now().await;
            }
            // In this order: the listener ends and everyone knows, then there is an answer.
            let release = async {
                for _turn in 0..100 {
                    tokio::task::yield_now().await;
                }
                held.notify_one();
            };
            tokio::join!(biased; node.tasks.shutdown(Duration::from_secs(5)), release).0
        };
        let ((status, _body), ended) = tokio::join!(asked, leaving);

        assert_eq!(status, StatusCode::ACCEPTED);
        ended.expect("nothing is left");
    }
}
