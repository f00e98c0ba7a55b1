//! What a client may take of this node.

use std::num::NonZeroU32;
use std::time::Duration;

use bytesize::ByteSize;
use cluster::directory::problems::Problems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Bounds on connections, requests and replies. Whoever passes one is refused or disconnected; nobody else notices.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Connections open at once. At the bound no more are accepted until one closes; newcomers wait in the backlog.
    pub connections_max: NonZeroU32,

    /// Request line and headers together. More is answered with 431.
    #[schemars(with = "String")]
    pub header_bytes_max: ByteSize,

    /// Headers in a request. More is answered with 431 (HTTP/1.1) or 400 (HTTP/2).
    pub headers_max: NonZeroU32,

    /// A request's body. More is answered with 413.
    #[schemars(with = "String")]
    pub body_max: ByteSize,

    /// A provider's whole (not streamed) reply. More fails the attempt.
    #[schemars(with = "String")]
    pub reply_max: ByteSize,

    /// Requests at once on one HTTP/2 connection. More are refused by the protocol.
    pub streams_max: NonZeroU32,

    /// HTTP/2 streams a client may have opened and reset before they were looked at. More closes the connection.
    pub reset_streams_max: NonZeroU32,

    /// From the first byte of a request to the end of its headers, and for a TLS handshake. Longer closes the
    /// connection.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub header_timeout: Duration,

    /// From the end of the headers to the end of the request's body. Longer is answered with 408.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub body_timeout: Duration,

    /// How long a connection may stay open without a request.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,

    /// The whole of a request. A caller may ask for less with `x-lea-timeout`, never for more. A stream whose client reads no
    /// further is given up at most twice `header_timeout` later.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub request_timeout: Duration,

    /// How often an HTTP/2 client is asked whether it is still there. No answer within as long closes the connection.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub ping_interval: Duration,

    /// How long running requests may take to finish once this node was told to stop. What still runs then is cut.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub drain_timeout: Duration,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections_max: count(10_000),
            header_bytes_max: ByteSize::kib(32),
            headers_max: count(100),
            body_max: ByteSize::mib(20),
            reply_max: ByteSize::mib(32),
            streams_max: count(128),
            reset_streams_max: count(20),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_mins(1),
            idle_timeout: Duration::from_secs(75),
            request_timeout: Duration::from_mins(10),
            ping_interval: Duration::from_secs(20),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// hyper's smallest buffer; a lower bound on headers could not be kept.
const HEADER_BYTES_MIN: ByteSize = ByteSize::kib(8);

/// The bodies are held in memory and their lengths in 32 bits in places.
const BODY_MAX: ByteSize = ByteSize::gib(1);

impl LimitsConfig {
    pub fn check(&self, problems: &mut Problems) {
        if self.header_bytes_max < HEADER_BYTES_MIN || self.header_bytes_max > ByteSize::mib(1) {
            problems.add("header_bytes_max", format!("is {}; allowed is 8 KiB to 1 MiB", self.header_bytes_max));
        }
        if self.headers_max.get() > 1000 {
            problems.add("headers_max", format!("is {}; at most 1000 are allowed", self.headers_max));
        }
        for (name, size) in [("body_max", self.body_max), ("reply_max", self.reply_max)] {
            if size == ByteSize(0) || size > BODY_MAX {
                problems.add(name, format!("is {size}; allowed is 1 byte to {BODY_MAX}"));
            }
        }
        for (name, duration) in [
            ("header_timeout", self.header_timeout),
            ("body_timeout", self.body_timeout),
            ("idle_timeout", self.idle_timeout),
            ("request_timeout", self.request_timeout),
            ("ping_interval", self.ping_interval),
        ] {
            if duration.is_zero() {
                problems.add(name, "is 0s; nothing could ever finish");
            }
        }
    }

    pub(super) fn header_bytes_max(&self) -> usize {
        usize::try_from(self.header_bytes_max.as_u64()).unwrap_or(usize::MAX)
    }
}

const fn count(value: u32) -> NonZeroU32 {
    match NonZeroU32::new(value) {
        Some(count) => count,
        None => NonZeroU32::MIN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(limits: &LimitsConfig) -> Vec<String> {
        let mut problems = Problems::new();
        limits.check(&mut problems);
        problems.into_vec().into_iter().map(|problem| problem.path.join(".")).collect()
    }

    #[test]
    fn the_defaults_pass_their_own_check() {
        assert_eq!(problems(&LimitsConfig::default()), Vec::<String>::new());
    }

    #[test]
    fn every_problem_is_reported() {
        let limits = LimitsConfig {
            header_bytes_max: ByteSize::b(100),
            body_max: ByteSize(0),
            idle_timeout: Duration::ZERO,
            ..LimitsConfig::default()
        };

        assert_eq!(problems(&limits), ["header_bytes_max", "body_max", "idle_timeout"]);
    }

    #[test]
    fn it_reads_as_people_write_it() {
        let limits: LimitsConfig =
            serde_json::from_str(r#"{ "body_max": "5MiB", "header_timeout": "250ms" }"#).unwrap();

        assert_eq!(limits.body_max, ByteSize::mib(5));
        assert_eq!(limits.header_timeout, Duration::from_millis(250));
        assert_eq!(limits.connections_max.get(), 10_000);
        assert!(serde_json::from_str::<LimitsConfig>(r#"{ "connections_max": 0 }"#).is_err());
        assert!(serde_json::from_str::<LimitsConfig>(r#"{ "conections_max": 1 }"#).is_err());
    }
}
