//! Faults by order: what the next matching requests meet instead of, or besides, an answer.
//!
//! `POST /simulator/script` appends a JSON list of faults. A request meets the first fault that matches and is not used up.
//!
//! ```json
//! [{"match": {"model": "gpt-4o", "key": "k", "path": "/v1/messages", "nth": 2}, "times": 3,
//!   "status": 503, "body": {"any": "JSON"}, "headers": {"retry-after": "1"}}]
//! ```
//! `match` and all of its fields may be left out; `nth` skips the matching requests before the nth. `times` is 1 unless it is
//! given, or `"always"`. At most one of:
//!
//! - `"status": 500` with `"body"` (JSON, or a string sent as it is) and `"headers"`. Without a body: the dialect's own error, or
//!   the usual answer below 300. An HTML page, garbage or a redirect is said this way: `{"status": 302, "headers": {"location": "…"}}`.
//! - `"throttle": 2`: 429 and `retry-after: 2`.
//! - `"hang": PLACE`: silence until the client leaves.
//! - `"hold": PLACE`: silence until `POST /simulator/release`, then the rest as usual.
//! - `"cut": {"at": PLACE, "how": "reset" | "end" | "abrupt" | "half_event"}`: a TCP reset; a clean end without finish reason;
//!   the connection closed without the last chunk; a clean end after half of the next event.
//! - `"error_event": PLACE`: the dialect's error event, then a clean end.
//! - `"long_line": 50000000`: one line of so many bytes in the middle of the stream.
//!
//! PLACE is `"before_head"`, `"after_head"`, `"mid_stream"` or `{"after_tokens": 3}`. These go with any of the above and with each
//! other: `"ttft": "300ms"`, `"token_delay": "20ms"`, `"chunk_bytes": 1`, `"content_type": "text/plain"`, `"omit_usage": true`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Faults waiting at a time.
const FAULTS_MAX: usize = 10_000;

/// A fault as it is written.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fault {
    #[serde(rename = "match")]
    pub matches: Match,
    pub times: Times,
    pub status: Option<u16>,
    pub body: Option<Value>,
    pub headers: BTreeMap<String, String>,
    pub throttle: Option<u64>,
    pub hang: Option<Place>,
    pub hold: Option<Place>,
    pub cut: Option<Cut>,
    pub error_event: Option<Place>,
    pub long_line: Option<u64>,
    #[serde(with = "humantime_serde")]
    pub ttft: Option<Duration>,
    #[serde(with = "humantime_serde")]
    pub token_delay: Option<Duration>,
    pub chunk_bytes: Option<usize>,
    pub content_type: Option<String>,
    pub omit_usage: bool,
}

/// Which requests a fault is for. What is absent matches all.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    pub model: Option<String>,
    pub key: Option<String>,
    pub path: Option<String>,
    pub nth: Option<u64>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Times {
    Count(u64),
    Always(Always),
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Always {
    Always,
}

impl Default for Times {
    fn default() -> Self {
        Self::Count(1)
    }
}

/// A point in the course of an answer. An answer that is not streamed is cut in its middle where tokens are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    BeforeHead,
    AfterHead,
    MidStream,
    AfterTokens(u64),
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    pub at: Place,
    pub how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    Reset,
    End,
    Abrupt,
    HalfEvent,
}

/// What breaks an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    Hang,
    Hold,
    Cut(How),
    ErrorEvent,
    LongLine(u64),
}

impl Fault {
    /// What breaks the answer, and where.
    pub fn breaks(&self) -> Option<(Place, Break)> {
        let cut = self.cut.map(|cut| (cut.at, Break::Cut(cut.how)));
        cut.or(self.hang.map(|place| (place, Break::Hang)))
            .or(self.hold.map(|place| (place, Break::Hold)))
            .or(self.error_event.map(|place| (place, Break::ErrorEvent)))
            .or(self.long_line.map(|bytes| (Place::MidStream, Break::LongLine(bytes))))
    }

    fn check(&self) -> Result<(), String> {
        let outcomes = [
            self.status.is_some(),
            self.throttle.is_some(),
            self.hang.is_some(),
            self.hold.is_some(),
            self.cut.is_some(),
            self.error_event.is_some(),
            self.long_line.is_some(),
        ];
        if outcomes.into_iter().filter(|is_set| *is_set).count() > 1 {
            return Err(
                "a fault has at most one of status, throttle, hang, hold, cut, error_event, long_line".to_owned()
            );
        }
        if self.status.is_none() && (self.body.is_some() || !self.headers.is_empty()) {
            return Err("body and headers need a status".to_owned());
        }
        if self.status.is_some_and(|status| !(200..=599).contains(&status)) {
            return Err("status is between 200 and 599".to_owned());
        }
        if self.chunk_bytes == Some(0) {
            return Err("chunk_bytes is at least 1".to_owned());
        }
        Ok(())
    }
}

/// The faults still to come.
#[derive(Default)]
pub struct Script {
    /// False while there is none, so that requests need no lock then.
    active: AtomicBool,
    faults: Mutex<Vec<Active>>,
}

struct Active {
    fault: Fault,
    matched: u64,
    applied: u64,
}

impl Active {
    fn is_used_up(&self) -> bool {
        match self.fault.times {
            Times::Count(times) => self.applied >= times,
            Times::Always(_) => false,
        }
    }
}

impl Script {
    /// Appends `faults`, all or none.
    pub fn add(&self, faults: Vec<Fault>) -> Result<(), String> {
        for (index, fault) in faults.iter().enumerate() {
            fault.check().map_err(|problem| format!("fault {index}: {problem}"))?;
        }
        let mut active = self.faults.lock();
        if active.len() + faults.len() > FAULTS_MAX {
            return Err(format!("more than {FAULTS_MAX} faults"));
        }
        active.extend(faults.into_iter().map(|fault| Active { fault, matched: 0, applied: 0 }));
        self.active.store(!active.is_empty(), Ordering::Release);
        Ok(())
    }

    pub fn clear(&self) {
        let mut active = self.faults.lock();
        active.clear();
        self.active.store(false, Ordering::Release);
    }

    /// The faults not used up yet.
    pub fn rest(&self) -> Vec<Fault> {
        self.faults.lock().iter().map(|active| active.fault.clone()).collect()
    }

    /// The fault this request meets.
    pub fn take(&self, model: &str, key: &str, path: &str) -> Option<Fault> {
        if !self.active.load(Ordering::Acquire) {
            return None;
        }
        let mut faults = self.faults.lock();
        let mut met = None;
        for active in faults.iter_mut() {
            let wanted = &active.fault.matches;
            let is = |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|wanted| wanted == value);
            if !(is(&wanted.model, model) && is(&wanted.key, key) && is(&wanted.path, path)) {
                continue;
            }
            active.matched += 1;
            if met.is_none() && wanted.nth.is_none_or(|nth| active.matched >= nth) {
                active.applied += 1;
                met = Some(active.fault.clone());
            }
        }
        faults.retain(|active| !active.is_used_up());
        self.active.store(!faults.is_empty(), Ordering::Release);
        met
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn script(faults: Value) -> Script {
        let script = Script::default();
        script.add(serde_json::from_value(faults).expect("faults")).expect("accepted");
        script
    }

    #[test]
    fn a_fault_is_met_as_often_as_it_says() {
        let script = script(json!([{ "status": 500, "times": 2 }, { "throttle": 3, "times": "always" }]));

        let met: Vec<_> = (0..4).map(|_| script.take("m", "k", "/").unwrap().status).collect();

        assert_eq!(met, [Some(500), Some(500), None, None]);
        assert_eq!(script.rest().len(), 1);
    }

    #[test]
    fn a_fault_is_met_by_what_it_matches() {
        let script =
            script(json!([{ "match": { "model": "m", "key": "k", "path": "/p", "nth": 2 }, "hang": "after_head" }]));

        assert!(script.take("other", "k", "/p").is_none());
        assert!(script.take("m", "k", "/p").is_none(), "the first");
        assert_eq!(script.take("m", "k", "/p").unwrap().breaks(), Some((Place::AfterHead, Break::Hang)));
        assert!(script.take("m", "k", "/p").is_none(), "used up");
    }

    #[test]
    fn nonsense_is_refused_whole() {
        let script = Script::default();
        let refused = |faults: Value| {
            serde_json::from_value(faults)
                .map_err(|error| error.to_string())
                .and_then(|faults| script.add(faults))
                .is_err()
        };

        assert!(refused(json!([{ "status": 500 }, { "status": 500, "throttle": 1 }])));
        assert!(refused(json!([{ "staus": 500 }])));
        assert!(refused(json!([{ "body": "x" }])));
        assert!(refused(json!([{ "status": 99 }])));
        assert!(refused(json!([{ "times": "never" }])));
        assert!(script.rest().is_empty());
    }
}
