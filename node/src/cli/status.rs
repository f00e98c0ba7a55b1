//! `status`: what a running node says about itself.

use crate::admin::status::Status;
use crate::output;
use bytes::Bytes;
use clap::Args;
use http::header::HOST;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;

#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Where the node's admin listener is.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8081")]
    pub admin: Uri,
}

/// A node on this or a near machine answers at once, or is in trouble.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of an answer; whatever says more is no node.
const ANSWER_MAX: usize = 4 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error("`{url}` is no address of an admin listener; write it like `http://127.0.0.1:8081`")]
    Address { url: Uri },
    #[error("no node answers at `{url}`; is it running, and is this its admin address?")]
    Unreachable {
        url: Uri,
        #[source]
        cause: io::Error,
    },
    #[error("no answer from `{url}` within {TIMEOUT:?}")]
    Timeout { url: Uri },
    #[error("what answers at `{url}` does not speak HTTP")]
    Http {
        url: Uri,
        #[source]
        cause: hyper::Error,
    },
    #[error("`{url}` answered {status}; is this the admin address?")]
    Refused { url: Uri, status: StatusCode },
    #[error("what answers at `{url}` is not a node of this version")]
    Foreign {
        url: Uri,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("cannot print")]
    Output(#[source] io::Error),
}

pub async fn status(args: &StatusArgs) -> Result<(), StatusError> {
    let url = &args.admin;
    let asked = tokio::time::timeout(TIMEOUT, ask(url)).await;
    let status = asked.map_err(|_elapsed| StatusError::Timeout { url: url.clone() })??;
    output::line(&status.table()).map_err(StatusError::Output)
}

async fn ask(url: &Uri) -> Result<Status, StatusError> {
    let (host, port) = match (url.scheme_str(), url.host()) {
        (Some("http"), Some(host)) => (host, url.port_u16().unwrap_or(80)),
        _ => return Err(StatusError::Address { url: url.clone() }),
    };
    let unreachable = |cause| StatusError::Unreachable { url: url.clone(), cause };
    let http = |cause| StatusError::Http { url: url.clone(), cause };
    // An IPv6 address stands in brackets in a URL only.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let socket = TcpStream::connect((name, port)).await.map_err(unreachable)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(http)?;
    let request = Request::get("/status").header(HOST, format!("{host}:{port}")).body(Empty::<Bytes>::new());
    let request = request.map_err(|_invalid| StatusError::Address { url: url.clone() })?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(http)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        Ok((status, body.map(http_body_util::Collected::to_bytes)))
    };
    // The connection moves only while it is polled. When it ends first, the answer is there or never comes.
    let mut answer = std::pin::pin!(answer);
    let (status, body) = tokio::select! {
        biased;
        answer = answer.as_mut() => answer?,
        _ended = connection => answer.await?,
    };
    if status != StatusCode::OK {
        return Err(StatusError::Refused { url: url.clone(), status });
    }
    let foreign = |cause| StatusError::Foreign { url: url.clone(), cause };
    serde_json::from_slice(&body.map_err(foreign)?).map_err(|error| foreign(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers one connection with `bytes`, and asks.
    async fn asked(bytes: &str) -> Result<Status, StatusError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let server = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let read = socket.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /status HTTP/1.1\r\n"));
            socket.write_all(bytes.as_bytes()).await.unwrap();
        };
        tokio::join!(ask(&url), server).0
    }

    #[tokio::test]
    async fn whatever_answers_is_told_apart() {
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        assert!(matches!(asked(ok).await, Err(StatusError::Foreign { .. })));
        let missing = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
        assert!(matches!(asked(missing).await, Err(StatusError::Refused { status: StatusCode::NOT_FOUND, .. })));
        assert!(matches!(asked("220 mail.example ESMTP\r\n\r\n").await, Err(StatusError::Http { .. })));
    }

    #[tokio::test]
    async fn nobody_there_is_told_with_advice() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        drop(listener);

        let error = ask(&url).await.unwrap_err();

        assert!(error.to_string().starts_with("no node answers at"), "{error}");
        assert!(matches!(ask(&Uri::from_static("https://x")).await, Err(StatusError::Address { .. })));
        assert!(matches!(ask(&Uri::from_static("/status")).await, Err(StatusError::Address { .. })));
    }
}
