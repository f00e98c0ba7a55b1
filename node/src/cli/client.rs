//! How commands speak with a running node's admin listener.

use crate::config::secret::Secret;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;

/// Bytes of an answer; whatever says more is no node.
const ANSWER_MAX: usize = 4 * 1024 * 1024;

/// A node on this or a near machine answers at once, or is in trouble.
pub const QUICK: Duration = Duration::from_secs(5);

/// A change waits for every node, for `cluster.stale_max` at most where one is cut off. Enough for the longest.
pub const PATIENT: Duration = Duration::from_hours(2);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("`{url}` is no address of an admin listener; write it like `http://127.0.0.1:8081`")]
    Address { url: Uri },
    #[error("no node answers at `{url}`; is it running, and is this its admin address?")]
    Unreachable {
        url: Uri,
        #[source]
        cause: io::Error,
    },
    #[error("no answer from `{url}` within {waited:?}")]
    Timeout { url: Uri, waited: Duration },
    #[error("what answers at `{url}` does not speak HTTP")]
    Http {
        url: Uri,
        #[source]
        cause: hyper::Error,
    },
    #[error("the key has characters in it that no key has")]
    Key,
    #[error("what answers at `{url}` says too much for a node, or broke off")]
    Body {
        url: Uri,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// One node.
pub struct Client {
    pub url: Uri,
    pub key: Option<Secret>,
}

/// What is asked.
pub struct Ask {
    pub method: Method,
    /// From the first slash on, with the query.
    pub path: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Bytes,
    pub patience: Duration,
}

impl Ask {
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), headers: Vec::new(), body: Bytes::new(), patience: QUICK }
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

impl Client {
    pub async fn ask(&self, ask: Ask) -> Result<Answer, ClientError> {
        let waited = ask.patience;
        let answered = tokio::time::timeout(waited, self.exchange(ask)).await;
        answered.map_err(|_elapsed| ClientError::Timeout { url: self.url.clone(), waited })?
    }

    async fn exchange(&self, ask: Ask) -> Result<Answer, ClientError> {
        let url = &self.url;
        let (host, port) = match (url.scheme_str(), url.host()) {
            (Some("http"), Some(host)) => (host, url.port_u16().unwrap_or(80)),
            _ => return Err(ClientError::Address { url: url.clone() }),
        };
        let request = self.request(ask, host, port)?;
        let unreachable = |cause| ClientError::Unreachable { url: url.clone(), cause };
        let http = |cause| ClientError::Http { url: url.clone(), cause };
        // An IPv6 address stands in brackets in a URL only.
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let socket = tokio::time::timeout(QUICK, TcpStream::connect((name, port))).await;
        let socket = socket.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())).map_err(unreachable)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(http)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(http)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
            let body = body.map_err(|cause| ClientError::Body { url: url.clone(), cause })?.to_bytes();
            Ok(Answer { status, body })
        };
        // The connection moves only while it is polled. When it ends first, the answer is there or never comes.
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            biased;
            answer = answer.as_mut() => answer,
            _ended = connection => answer.await,
        }
    }

    fn request(&self, ask: Ask, host: &str, port: u16) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut request = Request::builder().method(ask.method).uri(ask.path).header(HOST, format!("{host}:{port}"));
        if let Some(key) = &self.key {
            let value = HeaderValue::from_str(&format!("Bearer {}", key.reveal()));
            let mut value = value.map_err(|_invalid| ClientError::Key)?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        if !ask.body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        for (name, value) in ask.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(ask.body)).map_err(|_invalid| ClientError::Address { url: self.url.clone() })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers one connection with `bytes`; what was asked comes back beside what `work` makes of it.
    pub async fn answering<T>(bytes: &str, work: impl AsyncFnOnce(Uri) -> T) -> (T, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let server = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 64 * 1024];
            let read = socket.read(&mut request).await.unwrap();
            socket.write_all(bytes.as_bytes()).await.unwrap();
            String::from_utf8(request[..read].to_vec()).unwrap()
        };
        tokio::join!(work(url), server)
    }

    async fn asked(bytes: &str) -> (Result<Answer, ClientError>, String) {
        answering(bytes, async |url| Client { url, key: None }.ask(Ask::get("/status")).await).await
    }

    #[tokio::test]
    async fn whatever_answers_is_told_apart() {
        let (answer, request) = asked("HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}").await;
        assert_eq!(answer.unwrap().status, StatusCode::NOT_FOUND);
        assert!(request.starts_with("GET /status HTTP/1.1\r\n") && !request.contains("authorization"), "{request}");
        assert!(matches!(asked("220 mail.example ESMTP\r\n\r\n").await.0, Err(ClientError::Http { .. })));
        let endless = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", ANSWER_MAX + 1);
        assert!(matches!(asked(&endless).await.0, Err(ClientError::Body { .. })));
    }

    #[tokio::test]
    async fn nobody_there_is_told_with_advice() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        drop(listener);
        let ask = async |url| Client { url, key: None }.ask(Ask::get("/status")).await;

        let error = ask(url).await.unwrap_err();

        assert!(error.to_string().starts_with("no node answers at"), "{error}");
        assert!(matches!(ask(Uri::from_static("https://x")).await, Err(ClientError::Address { .. })));
        assert!(matches!(ask(Uri::from_static("/status")).await, Err(ClientError::Address { .. })));
    }

    /// Someone who accepts and says nothing is not waited for without end.
    #[tokio::test]
    async fn silence_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let ask = Ask { patience: Duration::from_millis(20), ..Ask::get("/status") };

        let error = Client { url, key: None }.ask(ask).await.unwrap_err();

        assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    }
}
