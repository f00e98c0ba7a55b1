//! Someone with a key of the admin API, at one node.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};

use crate::{Client, LONG, Reply};

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Operator {
    client: Client,
}

/// What the admin API, or the network, said instead of yes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// 0 when nobody answered.
    pub status: u16,
    pub code: String,
    pub message: String,
}

impl Operator {
    pub fn new(client: Client) -> Self {
        Self { client: client.with_deadline(LONG) }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether the node takes the key.
    pub async fn is_known(&self) -> bool {
        self.client.try_send(Method::GET, "/admin/v1/members", "").await.is_ok_and(|reply| reply.status == 200)
    }

    /// Makes a key for callers; its text. The test ends if it is refused.
    pub async fn create_key(&self, name: &str) -> String {
        self.try_create_key(name).await.unwrap_or_else(|refused| panic!("{name}: {refused:?}"))
    }

    pub async fn try_create_key(&self, name: &str) -> Result<String, Refused> {
        let made = self.try_post("/admin/v1/keys", &json!({ "name": name })).await?;
        Ok(made["key"].as_str().expect("the key's text").to_owned())
    }

    /// Returns when no node takes the key any more.
    pub async fn revoke_key(&self, name: &str) -> Value {
        self.post(&format!("/admin/v1/keys/{name}/revoke"), &json!({})).await
    }

    /// Returns when no node calls the provider any more.
    pub async fn switch_provider_off(&self, name: &str) -> Value {
        self.post(&format!("/admin/v1/providers/{name}/off"), &Value::Null).await
    }

    /// Posts what must not be refused.
    pub async fn post(&self, path: &str, body: &Value) -> Value {
        self.try_post(path, body).await.unwrap_or_else(|refused| panic!("{path}: {refused:?}"))
    }

    pub async fn try_post(&self, path: &str, body: &Value) -> Result<Value, Refused> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answered = self.client.try_send(Method::POST, path, body).await;
        let reply = answered.map_err(|message| Refused { status: 0, code: String::new(), message })?;
        if reply.status < 300 {
            return Ok(if reply.body.is_empty() { Value::Null } else { reply.json() });
        }
        let error = &reply.json()["error"];
        let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
        Err(Refused { status: reply.status, code: text("code"), message: text("message") })
    }

    /// The members as this node lists them.
    pub async fn members(&self) -> Vec<Value> {
        let listed = self.get("/admin/v1/members").await.json();
        listed["items"].as_array().unwrap_or_else(|| panic!("no list: {listed}")).clone()
    }

    /// The names of all keys, page by page. A name that is listed twice ends the test.
    pub async fn key_names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let mut after = String::new();
        loop {
            let page = self.get(&format!("/admin/v1/keys?limit=1000{after}")).await.json();
            for item in page["items"].as_array().unwrap_or_else(|| panic!("no list: {page}")) {
                let name = item["name"].as_str().expect("a name").to_owned();
                assert!(names.insert(name), "listed twice: {item}");
            }
            let Some(next) = page["next"].as_str() else { return names };
            after = format!("&after={next}");
        }
    }

    pub async fn get(&self, path: &str) -> Reply {
        let reply = self.client.get(path).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        reply
    }
}
