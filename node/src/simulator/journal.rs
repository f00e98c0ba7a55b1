//! What arrived at the simulator, and how each request ended. Keys are kept on purpose, so that a test can see which was sent.

use std::collections::VecDeque;

use bytes::Bytes;
use http::HeaderMap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Requests kept; the oldest go first.
const ENTRIES_MAX: usize = 10_000;

/// Bytes of a body that are kept.
const BODY_MAX: usize = 1 << 20;

/// A request as `GET /simulator/requests` shows it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Entry {
    /// The place in the order of arrival, from 0.
    pub id: u64,
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    /// The first MiB, invalid UTF-8 replaced.
    pub body: String,
    pub body_bytes: usize,
    /// The key that was presented, empty if none.
    pub key: String,
    pub model: String,
    /// Set once the head of the answer was made.
    pub status: Option<u16>,
    /// Whether a fault of the script was met.
    pub scripted: bool,
    /// Set when nothing more will happen to this request.
    pub ended: bool,
    /// Whether the client left before the end of the answer.
    pub hung_up: bool,
    /// Tokens generated for it.
    pub output_tokens: u64,
}

#[derive(Default)]
pub struct Journal {
    entries: Mutex<VecDeque<Entry>>,
}

impl Journal {
    pub fn arrived(&self, entry: Entry) {
        let mut entries = self.entries.lock();
        if entries.len() == ENTRIES_MAX {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    /// Changes the entry `id`, if it is still kept.
    pub fn update(&self, id: u64, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries.lock().iter_mut().rev().find(|entry| entry.id == id) {
            change(entry);
        }
    }

    pub fn clear(&self) {
        self.entries.lock().clear();
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.entries.lock().iter().cloned().collect()
    }
}

impl Entry {
    pub fn new(id: u64, head: &http::request::Parts, body: &Bytes) -> Self {
        let path = head.uri.path_and_query().map_or_else(String::new, ToString::to_string);
        Self {
            id,
            method: head.method.to_string(),
            path,
            headers: headers(&head.headers),
            body: String::from_utf8_lossy(&body[..body.len().min(BODY_MAX)]).into_owned(),
            body_bytes: body.len(),
            key: String::new(),
            model: String::new(),
            status: None,
            scripted: false,
            ended: false,
            hung_up: false,
            output_tokens: 0,
        }
    }
}

fn headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}
