//! `status`: what a running node says about itself.

use super::client::{Ask, Client, ClientError};
use crate::admin::status::Status;
use crate::output;
use clap::Args;
use http::{StatusCode, Uri};
use std::io;

#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Where the node's admin listener is.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8081")]
    pub admin: Uri,

    /// Print what the node says as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("`{url}` answered {status}; is this the admin address?")]
    Refused { url: Uri, status: StatusCode },
    #[error("what answers at `{url}` is not a node of this version")]
    Foreign {
        url: Uri,
        #[source]
        cause: serde_json::Error,
    },
    #[error("cannot print")]
    Output(#[source] io::Error),
}

pub async fn status(args: &StatusArgs) -> Result<(), StatusError> {
    let (status, text) = ask(&args.admin).await?;
    let shown = if args.json { text } else { status.table() };
    output::line(&shown).map_err(StatusError::Output)
}

async fn ask(url: &Uri) -> Result<(Status, String), StatusError> {
    let answer = Client { url: url.clone(), key: None }.ask(Ask::get("/status")).await?;
    if answer.status != StatusCode::OK {
        return Err(StatusError::Refused { url: url.clone(), status: answer.status });
    }
    let status = serde_json::from_slice(&answer.body);
    let status = status.map_err(|cause| StatusError::Foreign { url: url.clone(), cause })?;
    Ok((status, String::from_utf8_lossy(&answer.body).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::tests::answering;

    async fn asked(bytes: &str) -> Result<(Status, String), StatusError> {
        answering(bytes, async |url| ask(&url).await).await.0
    }

    #[tokio::test]
    async fn whatever_answers_is_told_apart() {
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        assert!(matches!(asked(ok).await, Err(StatusError::Foreign { .. })));
        let missing = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
        assert!(matches!(asked(missing).await, Err(StatusError::Refused { status: StatusCode::NOT_FOUND, .. })));
        assert!(matches!(asked("220 mail.example ESMTP\r\n\r\n").await, Err(StatusError::Client(_))));
    }
}
