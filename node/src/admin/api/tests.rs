//! The admin API from its outside, on a cluster in memory.

use super::Api;
use crate::admin::control::{ChangeError, KeyRef, Wait};
use crate::admin::fake::{FakeCluster, hash};
use crate::admin::http::BODY_BYTES_MAX;
use bytes::Bytes;
use cluster::directory::key::KeyHash;
use cluster::directory::kind::{Kind, Origin};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use serde_json::{Value as Json, json};
use std::sync::Arc;
use std::time::Duration;

struct Asked {
    status: u16,
    headers: HeaderMap,
    body: Json,
}

impl Asked {
    fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    fn told(&self) -> (u16, &str) {
        (self.status, self.code())
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}

struct Node {
    fake: Arc<FakeCluster>,
    api: Api,
}

impl Node {
    fn new() -> Self {
        let fake = Arc::new(FakeCluster::new());
        Self { api: Api::new(Arc::clone(&fake) as _), fake }
    }

    async fn send(&self, request: http::request::Builder, body: impl Into<Bytes>) -> Asked {
        let (_, response) = self.api.answer(request.body(Full::new(body.into())).unwrap()).await;
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = if body.is_empty() { Json::Null } else { serde_json::from_slice(&body).unwrap() };
        Asked { status: head.status.as_u16(), headers: head.headers, body }
    }

    /// `path` is what follows `/admin/v1/`.
    async fn ask(&self, who: &str, method: &str, path: &str, body: Json) -> Asked {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send(request(who, method, path), body).await
    }

    async fn get(&self, who: &str, path: &str) -> Asked {
        self.ask(who, "GET", path, Json::Null).await
    }
}

fn request(who: &str, method: &str, path: &str) -> http::request::Builder {
    let request = Request::builder().method(method).uri(format!("/admin/v1/{path}"));
    request.header("authorization", format!("Bearer {who}"))
}

fn names(list: &Json) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn only_a_key_with_a_role_gets_in() {
    let node = Node::new();
    let keyless = Request::get("/admin/v1/keys");

    let refused = node.send(keyless, "").await;
    assert_eq!((refused.told(), refused.header("www-authenticate")), ((401, "no_key"), "Bearer"));
    assert_eq!(node.get("nobody", "keys").await.told(), (401, "invalid_key"));
    assert_eq!(node.get("app", "keys").await.told(), (403, "no_role"));
    assert_eq!(node.get("viewer", "keys").await.status, 200);
    assert_eq!(node.send(Request::get("/admin/v1/openapi.json"), "").await.body["openapi"], "3.1.0");

    // It may have missed that the key was revoked.
    node.fake.cut_off();
    let refused = node.get("viewer", "keys").await;
    assert_eq!((refused.told(), refused.header("retry-after")), ((503, "cluster_unavailable"), "1"));
}

#[tokio::test]
async fn what_is_not_there_and_what_is_not_done_there() {
    let node = Node::new();

    assert_eq!(node.get("admin", "guards").await.told(), (404, "unknown_path"));
    assert_eq!(node.get("admin", "keys/absent").await.told(), (404, "not_found"));
    let refused = node.ask("admin", "POST", "keys/web", json!({})).await;
    assert_eq!((refused.told(), refused.header("allow")), ((405, "method_not_allowed"), "GET, HEAD, PUT, DELETE"));
    let message = |asked: &Asked| asked.body["error"]["message"].as_str().unwrap().to_owned();
    assert!(message(&refused).ends_with("; `PUT /admin/v1/keys/{name}` makes it, or replaces it whole"));
    for (method, path, allow, hint) in [
        ("POST", "budgets", "GET, HEAD", "`PUT /admin/v1/budgets/{name}` makes one, or replaces it whole"),
        ("PUT", "models", "GET, HEAD", "`PUT /admin/v1/models/{name}` makes one, or replaces it whole"),
        ("PUT", "keys", "GET, HEAD, POST", "`PUT /admin/v1/keys/{name}` makes one, or replaces it whole"),
        (
            "POST",
            "tenants/acme/teams",
            "GET, HEAD",
            "`PUT /admin/v1/tenants/{tenant}/teams/{name}` makes one, or replaces it whole",
        ),
        ("DELETE", "routes", "GET, HEAD", "`DELETE /admin/v1/routes/{name}` deletes one"),
    ] {
        let refused = node.ask("admin", method, path, json!({ "name": "b" })).await;
        assert_eq!((refused.told(), refused.header("allow")), ((405, "method_not_allowed"), allow), "{method} {path}");
        assert_eq!(message(&refused), format!("only {allow} is answered here; {hint}"), "{method} {path}");
    }
    let refused = node.ask("admin", "POST", "audit", json!({})).await;
    assert_eq!(message(&refused), "only GET, HEAD is answered here");
    assert_eq!(node.ask("admin", "DELETE", "keys/absent", Json::Null).await.told(), (404, "not_found"));
    assert_eq!(node.get("admin", "keys?limit=0").await.told(), (400, "invalid"));
}

#[tokio::test]
async fn a_request_id_goes_round() {
    let node = Node::new();

    let answer = node.send(request("admin", "GET", "nowhere").header("x-request-id", "mine-1"), "").await;
    assert_eq!(
        (answer.header("x-request-id"), answer.body["error"]["request_id"].as_str()),
        ("mine-1", Some("mine-1"))
    );
    assert!(!node.get("admin", "keys").await.header("x-request-id").is_empty());

    let put = request("admin", "PUT", "roles/r").header("x-request-id", "mine-2");
    node.send(put, r#"{"grants":"viewer"}"#).await;
    let audit = node.get("admin", "audit").await;
    assert_eq!(audit.body["items"][0]["request_id"], "mine-2");
    assert_eq!(audit.body["items"][0]["who"], "admin");
}

#[tokio::test]
async fn a_key_is_made_and_shown_once() {
    let node = Node::new();

    let made = node.ask("operator", "POST", "keys", json!({ "name": "app/1", "tenant": "acme", "rpm": 60 })).await;

    assert_eq!((made.status, made.header("location")), (201, "/admin/v1/keys/app%2F1"));
    let text = made.body["key"].as_str().unwrap();
    assert!(text.starts_with("lea-") && text.len() == 4 + 12 + 1 + 32, "{text}");
    assert_eq!(made.body["spec"]["hash"], KeyHash::of(text).to_text());
    let found = node.get("viewer", "keys/app%2F1").await;
    assert_eq!(found.body["spec"], json!({ "tenant": "acme", "rpm": 60, "hash": KeyHash::of(text).to_text() }));
    assert_eq!(found.header("etag"), made.header("etag"));
    assert!(!found.body.to_string().contains(text), "only its hash is kept");
    assert!(!node.get("admin", "audit").await.body.to_string().contains(text));

    let again = node.ask("operator", "POST", "keys", json!({ "name": "app/1" })).await;
    assert_eq!(again.told(), (409, "exists"));
}

#[tokio::test]
async fn what_is_wrong_with_a_key_is_told_by_its_path() {
    let node = Node::new();
    let problem = |asked: &Asked| asked.body["error"]["problems"][0]["path"].as_str().unwrap_or_default().to_owned();

    for (body, path) in [
        (json!({}), "name"),
        (json!({ "name": 7 }), "name"),
        (json!({ "name": "a", "secret": "x" }), "secret"),
        (json!({ "name": "a", "hash": "b3:" }), "hash"),
        (json!({ "name": "a", "rpm": 0 }), "rpm"),
        (json!([]), ""),
    ] {
        let refused = node.ask("admin", "POST", "keys", body.clone()).await;
        assert_eq!((refused.told(), problem(&refused).as_str()), ((400, "invalid"), path), "{body}");
    }
    let put = node.ask("admin", "PUT", "keys/new", json!({ "tenant": "acme" })).await;
    assert_eq!((put.told(), problem(&put).as_str()), ((400, "invalid"), "hash"));
    let put = node.ask("admin", "PUT", "keys/web", json!({ "secret": "a-text-of-a-key" })).await;
    assert_eq!(problem(&put), "secret");
    assert!(!put.body.to_string().contains("a-text-of-a-key"));
    assert_eq!(node.send(request("admin", "PUT", "routes/r"), "{").await.told(), (400, "invalid"));
    assert_eq!(
        node.send(request("admin", "PUT", "routes/r"), vec![b' '; BODY_BYTES_MAX + 1]).await.told(),
        (413, "too_large")
    );
}

#[tokio::test]
async fn a_key_put_without_its_hash_keeps_it() {
    let node = Node::new();

    let put = node.ask("admin", "PUT", "keys/web", json!({ "tenant": "acme", "rpm": 5 })).await;

    assert_eq!(put.status, 200, "{}", put.body);
    assert_eq!(node.get("admin", "keys/web").await.body["spec"]["hash"], hash("web"));
}

/// Of two people who change the same thing, the second learns of the first.
#[tokio::test]
async fn versions_are_respected() {
    let node = Node::new();
    let made = node.ask("admin", "PUT", "routes/r", json!({ "targets": ["a/b"] })).await;
    let first = made.header("etag").to_owned();
    let put = |headers: &[(&str, &str)]| {
        let start = request("admin", "PUT", "routes/r");
        headers.iter().fold(start, |request, (name, value)| request.header(*name, *value))
    };

    assert_eq!(made.status, 201);
    let second = node.send(put(&[("if-match", &first)]), "{}").await;
    assert_eq!(second.status, 200);
    let late = node.send(put(&[("if-match", &first)]), "{}").await;
    assert_eq!((late.told(), late.header("etag")), ((412, "precondition_failed"), second.header("etag")));
    assert_eq!(late.body["error"]["current_version"], second.body["version"]);
    let absent = node.send(put(&[("if-none-match", "*")]), "{}").await;
    assert_eq!(absent.told(), (412, "precondition_failed"));
    assert_eq!(node.send(put(&[("if-match", "*")]), "{}").await.status, 200);
    assert_eq!(node.send(put(&[]), "{}").await.status, 200, "who does not ask overwrites");

    let current = node.get("admin", "routes/r").await.header("etag").to_owned();
    let unchanged = node.send(request("admin", "GET", "routes/r").header("if-none-match", &current), "").await;
    assert_eq!((unchanged.status, unchanged.body), (304, Json::Null));
    let gone = node.send(request("admin", "PUT", "routes/gone").header("if-match", &first), "{}").await;
    assert_eq!(gone.told(), (412, "precondition_failed"));
    let stale = node.send(request("admin", "DELETE", "routes/r").header("if-match", &first), "").await;
    assert_eq!(stale.told(), (412, "precondition_failed"));
    assert_eq!(node.send(request("admin", "DELETE", "routes/r").header("if-match", &current), "").await.status, 200);
    assert_eq!(node.get("admin", "routes/r").await.status, 404);
}

#[tokio::test]
async fn what_the_file_declares_is_changed_there() {
    let node = Node::new();

    let refused = node.ask("admin", "PUT", "providers/openai", json!({})).await;
    assert_eq!(refused.told(), (409, "declared_in_file"));
    assert!(refused.body["error"]["message"].as_str().unwrap().contains("`providers.openai`"), "{}", refused.body);
    let team = node.ask("admin", "PUT", "tenants/filed/teams/t", json!({})).await;
    assert_eq!(team.told(), (409, "declared_in_file"));

    let off = node.ask("operator", "POST", "providers/openai/off", Json::Null).await;
    assert_eq!((off.status, off.body["waited"].as_str()), (200, Some("every_node")));
    let shown = node.get("viewer", "providers/openai").await;
    assert_eq!((&shown.body["off"], &shown.body["origin"]), (&json!(true), &json!("file")));
    node.ask("operator", "POST", "providers/openai/on", Json::Null).await;
    assert_eq!(node.get("viewer", "providers/openai").await.body["off"], false);
}

#[tokio::test]
async fn roles_say_who_may_what() {
    let node = Node::new();
    let key = json!({ "name": "k" });
    let cases = [
        ("viewer", "POST", "keys", key.clone(), 403),
        ("operator", "POST", "keys", key, 201),
        ("operator", "PUT", "routes/r", json!({}), 403),
        ("admin", "PUT", "routes/r", json!({}), 201),
        ("viewer", "POST", "providers/openai/off", Json::Null, 403),
        ("operator", "POST", "members/edge-2/drain", Json::Null, 202),
        ("operator", "POST", "members/edge-2/remove", Json::Null, 403),
        ("admin", "POST", "members/edge-2/remove", Json::Null, 200),
        ("viewer", "GET", "members", Json::Null, 200),
        ("viewer", "GET", "audit", Json::Null, 200),
        ("viewer", "POST", "keys/web/revoke", Json::Null, 403),
    ];
    for (who, method, path, body, status) in cases {
        assert_eq!(node.ask(who, method, path, body).await.status, status, "{who} {method} {path}");
    }
}

/// Who may make keys cannot make himself more than he is.
#[tokio::test]
async fn nobody_gives_himself_more_than_he_has() {
    let node = Node::new();
    let powerful = json!({ "name": "mine", "roles": ["admin"], "tenant": "acme" });
    for who in ["operator", "acme-operator", "acme-admin"] {
        assert_eq!(node.ask(who, "POST", "keys", powerful.clone()).await.status, 403, "{who}");
        let put = json!({ "roles": ["admin"], "tenant": "acme" });
        assert_eq!(node.ask(who, "PUT", "keys/web", put).await.status, 403, "{who}");
        let taken = json!({ "tenant": "acme", "hash": "b3:mine" });
        assert_eq!(node.ask(who, "PUT", "keys/root", taken).await.status, 403, "{who}");
        assert_eq!(node.ask(who, "POST", "keys/root/revoke", Json::Null).await.status / 100, 4, "{who}");
        assert_eq!(node.ask(who, "DELETE", "keys/root", Json::Null).await.status / 100, 4, "{who}");
    }
    assert_eq!(node.fake.revoked(), []);
    assert_eq!(node.ask("admin", "POST", "keys", powerful).await.status, 201);
}

#[tokio::test]
async fn a_tenants_operator_sees_and_changes_only_its_own() {
    let node = Node::new();

    assert_eq!(names(&node.get("acme-operator", "keys").await.body), ["web"]);
    assert_eq!(names(&node.get("acme-operator", "tenants").await.body), ["acme"]);
    assert_eq!(node.get("acme-operator", "keys/other").await.told(), (404, "not_found"));
    assert_eq!(node.get("acme-operator", "providers").await.told(), (403, "out_of_scope"));
    assert_eq!(node.get("acme-operator", "audit").await.told(), (403, "out_of_scope"));
    assert_eq!(node.get("acme-operator", "cluster").await.told(), (403, "out_of_scope"));

    let made = node.ask("acme-operator", "POST", "keys", json!({ "name": "mine", "tenant": "acme" })).await;
    assert_eq!(made.status, 201);
    for (method, path, body) in [
        ("POST", "keys", json!({ "name": "theirs", "tenant": "beta" })),
        ("POST", "keys", json!({ "name": "nobodys" })),
        ("PUT", "keys/mine", json!({ "tenant": "beta" })),
        ("PUT", "keys/other", json!({ "tenant": "acme", "hash": "b3:x" })),
        ("PUT", "tenants/acme", json!({})),
        ("PUT", "tenants/acme/teams/t", json!({})),
        ("POST", "providers/openai/off", Json::Null),
    ] {
        assert_eq!(node.ask("acme-operator", method, path, body).await.status, 403, "{method} {path}");
    }
    assert_eq!(node.ask("acme-operator", "POST", "keys/other/revoke", Json::Null).await.status, 404);
    assert_eq!(node.ask("acme-operator", "DELETE", "keys/other", Json::Null).await.status, 404);
    assert_eq!(node.ask("acme-admin", "PUT", "tenants/acme", json!({})).await.told(), (403, "out_of_scope"));
    assert_eq!(node.ask("acme-admin", "PUT", "tenants/acme/teams/t", json!({})).await.status, 201);
    assert_eq!(node.ask("acme-admin", "PUT", "tenants/filed/teams/t", json!({})).await.status, 404);
}

/// A right was judged by what this node knew; when that is no longer so, nothing is done.
#[tokio::test]
async fn a_right_holds_for_what_it_was_judged_by() {
    let node = Node::new();

    node.ask("acme-operator", "POST", "keys/web/revoke", json!({ "cut": true })).await;
    node.ask("admin", "POST", "keys/other/revoke", Json::Null).await;
    assert_eq!(
        node.fake.revoked(),
        [(KeyRef::Hash(KeyHash::of("web")), true), (KeyRef::Name("other".to_owned()), false)]
    );

    let put = request("acme-operator", "PUT", "keys/web").header("if-match", "\"1\"");
    assert_eq!(node.send(put, r#"{"tenant":"acme"}"#).await.told(), (412, "precondition_failed"));
}

#[tokio::test]
async fn a_key_is_revoked_by_its_hash_by_an_administrator_only() {
    let node = Node::new();
    let hash = hash("a leaked key");
    node.fake.put(Kind::Keys, "leaked", json!({ "hash": hash }), Origin::File);

    assert_eq!(
        node.ask("operator", "POST", &format!("keys/{hash}/revoke"), Json::Null).await.told(),
        (403, "role_needed")
    );
    let revoked = node.ask("admin", "POST", &format!("keys/{hash}/revoke?wait=none"), json!({ "cut": true })).await;
    assert_eq!((revoked.status, revoked.body["waited"].as_str()), (200, Some("skipped")));
    assert_eq!(node.fake.revoked(), [(KeyRef::Hash(KeyHash::of("a leaked key")), true)]);
    assert_eq!(node.get("admin", "keys/leaked").await.body["revoked"], true);
    for wrong in [json!({ "cut": "yes" }), json!({ "now": true })] {
        assert_eq!(node.ask("admin", "POST", "keys/web/revoke", wrong).await.told(), (400, "invalid"));
    }
}

#[tokio::test]
async fn lists_come_in_pages() {
    let node = Node::new();
    for at in 0..7 {
        node.fake.put(Kind::Roles, &format!("role-{at}"), json!({}), Origin::Api);
    }

    let first = node.get("viewer", "roles?limit=3").await.body;
    assert_eq!((names(&first), &first["next"]), (vec!["role-0", "role-1", "role-2"], &json!("role-2")));
    let last = node.get("viewer", "roles?limit=4&after=role-2").await.body;
    assert_eq!((names(&last).len(), &last["next"]), (4, &Json::Null));
    for _ in 0..3 {
        node.ask("admin", "PUT", "routes/r", json!({})).await;
    }
    let audit = node.get("viewer", "audit?limit=2").await.body;
    let next = audit["next"].as_u64().unwrap();
    let rest = node.get("viewer", &format!("audit?from={next}")).await.body;
    assert_eq!((audit["items"].as_array().unwrap().len(), rest["items"].as_array().unwrap().len()), (2, 1));
    assert_eq!(rest["items"][0]["index"], next);
}

#[tokio::test]
async fn a_team_is_a_part_of_its_tenant() {
    let node = Node::new();

    let made = node.ask("admin", "PUT", "tenants/acme/teams/sales", json!({ "description": "they sell" })).await;
    assert_eq!((made.status, &made.body["tenant"]), (201, &json!("acme")));
    assert_eq!(names(&node.get("viewer", "tenants/acme/teams").await.body), ["sales", "support"]);
    let one = node.get("viewer", "tenants/acme/teams?limit=1").await.body;
    assert_eq!((names(&one), &one["next"]), (vec!["sales"], &json!("sales")));
    assert_eq!(node.get("viewer", "tenants/acme/teams/sales").await.body["spec"]["description"], "they sell");
    let tenant = node.get("viewer", "tenants/acme").await;
    assert_eq!(tenant.body["spec"]["teams"]["sales"], json!({ "description": "they sell" }));
    assert_eq!(tenant.header("etag"), made.header("etag"));

    assert_eq!(node.ask("admin", "DELETE", "tenants/acme/teams/sales", Json::Null).await.status, 200);
    assert_eq!(node.ask("admin", "DELETE", "tenants/acme/teams/sales", Json::Null).await.status, 404);
    assert_eq!(node.get("viewer", "tenants/acme/teams/sales").await.status, 404);
    assert_eq!(node.get("viewer", "tenants/none/teams").await.status, 404);
    // The tenant of keys that name none is there before anyone makes it.
    assert_eq!(node.ask("admin", "PUT", "tenants/default/teams/t", json!({})).await.status, 201);
    let absent = request("admin", "PUT", "tenants/acme/teams/support").header("if-none-match", "*");
    assert_eq!(node.send(absent, "{}").await.told(), (412, "precondition_failed"));
}

#[tokio::test]
async fn a_team_is_put_again_when_its_tenant_changed_meanwhile() {
    let node = Node::new();

    node.fake.fail_next(ChangeError::Changed { current: Some(99) });
    assert_eq!(node.ask("admin", "PUT", "tenants/acme/teams/t", json!({})).await.status, 201);

    for _ in 0..4 {
        node.fake.fail_next(ChangeError::Changed { current: Some(99) });
    }
    let refused = node.ask("admin", "PUT", "tenants/acme/teams/u", json!({})).await;
    assert_eq!((refused.told(), refused.header("etag")), ((409, "changed"), "\"99\""), "not for ever");
}

#[tokio::test]
async fn a_failure_says_whose_it_is_and_whether_to_try_again() {
    let node = Node::new();
    let unavailable =
        ChangeError::Unavailable { reason: "no leader".to_owned(), retry_after: Duration::from_millis(1_200) };
    let cases = [
        (unavailable, 503, "cluster_unavailable", "2"),
        (ChangeError::Uncertain { reason: "the leader is gone".to_owned() }, 504, "uncertain", ""),
        (ChangeError::NotEverywhere { version: 9, waited: Duration::from_secs(61) }, 504, "not_everywhere", ""),
        (ChangeError::Refused { code: "in_use", reason: "3 keys".to_owned() }, 409, "in_use", ""),
    ];
    for (failure, status, code, retry_after) in cases {
        node.fake.fail_next(failure);
        let failed = node.ask("admin", "PUT", "routes/r", json!({})).await;
        assert_eq!((failed.told(), failed.header("retry-after")), ((status, code), retry_after));
    }
    let kept = node.ask("admin", "POST", "members/edge-0/remove?wait=none", Json::Null).await;
    assert_eq!(kept.told(), (409, "no_quorum"));
    let asked = node.fake.asked();
    assert_eq!((asked[0].0.as_str(), asked[0].1.wait), ("remove edge-0", Wait::None));
}

#[tokio::test]
async fn the_cluster_is_shown_as_it_is() {
    let node = Node::new();

    assert_eq!(node.get("viewer", "cluster").await.body["leader"], "edge-1");
    assert_eq!(names(&node.get("viewer", "members").await.body), ["edge-0", "edge-1", "edge-twelve"]);
}

/// As every resource: versions, what the file declares, what is in use, and who may.
#[tokio::test]
async fn a_budget_is_put_shown_and_deleted() {
    let node = Node::new();
    node.fake.put(Kind::Budgets, "filed", json!({ "limit": "$1", "window": "day" }), Origin::File);
    let spec = json!({ "limit": "$50", "window": "month", "timezone": "Europe/Berlin" });

    let made = node.ask("admin", "PUT", "budgets/acme%2Fmonth", spec.clone()).await;
    assert_eq!((made.status, &made.body["name"], &made.body["spec"]), (201, &json!("acme/month"), &spec));
    let shown = node.get("viewer", "budgets/acme%2Fmonth").await;
    assert_eq!((shown.header("etag"), &shown.body["spec"]["limit"]), (made.header("etag"), &json!("$50")));
    assert_eq!(names(&node.get("viewer", "budgets").await.body), ["acme/month", "filed"]);
    let stale = request("admin", "PUT", "budgets/acme%2Fmonth").header("if-match", "\"1\"");
    assert_eq!(node.send(stale, spec.to_string()).await.told(), (412, "precondition_failed"));

    assert_eq!(node.ask("admin", "PUT", "budgets/filed", spec.clone()).await.told(), (409, "declared_in_file"));
    assert_eq!(node.ask("operator", "PUT", "budgets/b", spec.clone()).await.told(), (403, "role_needed"));
    for (method, path) in [("GET", "budgets"), ("GET", "budgets/filed"), ("PUT", "budgets/b")] {
        let body = if method == "PUT" { spec.clone() } else { Json::Null };
        assert_eq!(node.ask("acme-admin", method, path, body).await.told(), (403, "out_of_scope"), "{method} {path}");
    }
    assert_eq!(node.get("acme-operator", "budgets/filed/standing").await.told(), (403, "out_of_scope"));

    let in_use = || ChangeError::Refused { code: "in_use", reason: "budget `acme/month` is used by 1 key".to_owned() };
    node.fake.fail_next(in_use());
    let refused = node.ask("admin", "DELETE", "budgets/acme%2Fmonth", Json::Null).await;
    assert_eq!(refused.told(), (409, "in_use"));
    assert_eq!(node.ask("admin", "DELETE", "budgets/acme%2Fmonth", Json::Null).await.status, 200);
    assert_eq!(node.get("admin", "budgets/acme%2Fmonth").await.told(), (404, "not_found"));
}

/// To who is limited to some tenants, what they name; whether there is another he does not learn.
#[tokio::test]
async fn budgets_are_shown_to_those_whose_they_are() {
    let node = Node::new();
    for name in ["a", "acme-month", "acme-support", "beta-month", "standing", "web-day"] {
        node.fake.put(Kind::Budgets, name, json!({ "limit": "9 requests", "window": "day" }), Origin::Api);
    }
    let teams = json!({ "support": { "budgets": ["acme-support"] } });
    node.fake.put(Kind::Tenants, "acme", json!({ "budgets": ["acme-month"], "teams": teams }), Origin::Api);
    node.fake.put(Kind::Tenants, "beta", json!({ "budgets": ["beta-month"] }), Origin::Api);
    node.fake.put(
        Kind::Keys,
        "web",
        json!({ "tenant": "acme", "budgets": ["web-day"], "hash": hash("web") }),
        Origin::Api,
    );

    let all = node.get("viewer", "standings").await;
    assert_eq!(names(&all.body), ["a", "acme-month", "acme-support", "beta-month", "standing", "web-day"]);
    assert_eq!((&all.body["items"][0]["limit"], &all.body["items"][0]["period"]), (&json!(9), &json!("day")));
    let page = node.get("viewer", "standings?limit=2&after=acme-support").await.body;
    assert_eq!((names(&page), &page["next"]), (vec!["beta-month", "standing"], &json!("standing")));
    let last = node.get("viewer", "standings?after=standing").await.body;
    assert_eq!((names(&last), &last["next"]), (vec!["web-day"], &Json::Null));
    let theirs = node.get("acme-operator", "standings?limit=2").await.body;
    assert_eq!((names(&theirs), &theirs["next"]), (vec!["acme-month", "acme-support"], &json!("acme-support")));
    assert_eq!(names(&node.get("acme-operator", "standings?after=acme-support").await.body), ["web-day"]);
    assert_eq!(node.get("app", "standings").await.told(), (403, "no_role"));

    // The cluster in memory has no standing of any.
    assert_eq!(node.get("acme-operator", "budgets/web-day/standing").await.told(), (404, "not_found"));
    for foreign in ["beta-month", "nosuch"] {
        let refused = node.get("acme-operator", &format!("budgets/{foreign}/standing")).await;
        assert_eq!(refused.told(), (403, "out_of_scope"), "{foreign}");
    }
    assert_eq!(node.get("viewer", "budgets/standing").await.body["name"], "standing");
}

/// Named in a key of one's own, another's budget was spent by it.
#[tokio::test]
async fn who_is_limited_to_a_tenant_names_no_budget_that_is_not_its_own() {
    let node = Node::new();
    for name in ["acme-month", "acme-support", "beta-month"] {
        node.fake.put(Kind::Budgets, name, json!({ "limit": "$1", "window": "day" }), Origin::Api);
    }
    let teams = json!({ "support": { "budgets": ["acme-support"] } });
    node.fake.put(Kind::Tenants, "acme", json!({ "budgets": ["acme-month"], "teams": teams }), Origin::Api);
    node.fake.put(
        Kind::Keys,
        "other",
        json!({ "tenant": "beta", "budgets": ["beta-month"], "hash": hash("other") }),
        Origin::Api,
    );
    let key = |name: &str, budget: &str| json!({ "name": name, "tenant": "acme", "budgets": ["acme-month", budget] });
    let put = |budget: &str| json!({ "tenant": "acme", "hash": hash("put"), "budgets": [budget] });

    for foreign in ["beta-month", "nosuch"] {
        let (made, team) = (key("k", foreign), json!({ "budgets": [foreign] }));
        for (who, method, path, body) in [
            ("acme-operator", "POST", "keys", made.clone()),
            ("acme-admin", "POST", "keys", made),
            ("acme-operator", "PUT", "keys/web", put(foreign)),
            ("acme-operator", "PUT", "keys/new", put(foreign)),
            ("acme-admin", "PUT", "tenants/acme/teams/sales", team),
        ] {
            let refused = node.ask(who, method, path, body).await;
            assert_eq!(refused.told(), (403, "out_of_scope"), "{who} {method} {path}");
            let message = refused.body["error"]["message"].as_str().unwrap();
            assert!(message.contains(&format!("names the budget `{foreign}`")), "{message}");
        }
    }
    assert_eq!(node.ask("acme-operator", "POST", "keys", key("own", "acme-support")).await.status, 201);
    assert_eq!(node.ask("acme-operator", "PUT", "keys/web", put("acme-support")).await.status, 200);
    let team = json!({ "budgets": ["acme-month"] });
    assert_eq!(node.ask("acme-admin", "PUT", "tenants/acme/teams/sales", team).await.status, 201);

    // Somebody who may has put one of their keys under it: that one may stay so, and makes it no other's.
    assert_eq!(node.ask("operator", "POST", "keys", key("shared", "beta-month")).await.status, 201);
    let shared = node.get("acme-operator", "keys/shared").await.body["spec"].clone();
    let kept = node.ask("acme-operator", "PUT", "keys/shared", shared).await;
    assert_eq!(kept.status, 200, "{:?}", kept.body);
    assert_eq!(node.ask("acme-operator", "POST", "keys", key("second", "beta-month")).await.status, 403);
}

#[tokio::test]
async fn a_budget_is_reconciled_by_an_administrator() {
    let node = Node::new();
    node.fake.put(Kind::Budgets, "b", json!({ "limit": "9 requests", "window": "day" }), Origin::File);
    let said = json!({ "node": "edge-1", "incarnation": 12, "used": "4 requests" });

    let answer = node.ask("admin", "POST", "budgets/b/reconcile", said.clone()).await;

    assert_eq!((answer.status, &answer.body["given_back"], &answer.body["limit"]), (200, &json!(5), &json!(9)));
    let (asked, context) = node.fake.asked().pop().unwrap();
    assert!(asked.contains("edge-1") && asked.contains("12") && asked.contains("4 requests"), "{asked}");
    assert_eq!(context.operator, "admin");
    assert_eq!(node.ask("operator", "POST", "budgets/b/reconcile", said.clone()).await.told(), (403, "role_needed"));
    let foreign = node.ask("acme-admin", "POST", "budgets/b/reconcile", said.clone()).await;
    assert_eq!(foreign.told(), (403, "out_of_scope"));
    assert_eq!(node.ask("admin", "POST", "budgets/absent/reconcile", said.clone()).await.told(), (404, "not_found"));
    let lives = || ChangeError::Refused { code: "not_over", reason: "the process lives".to_owned() };
    node.fake.fail_next(lives());
    assert_eq!(node.ask("admin", "POST", "budgets/b/reconcile", said.clone()).await.told(), (409, "not_over"));
    for (field, wrong) in [("used", json!(-1)), ("used", json!(1.5)), ("incarnation", json!("x")), ("sum", json!(1))] {
        let mut said = said.clone();
        said[field] = wrong;
        let refused = node.ask("admin", "POST", "budgets/b/reconcile", said).await;
        assert_eq!(refused.told(), (400, "invalid"), "{field}: {}", refused.body);
    }
    assert_eq!(node.get("admin", "budgets/b/reconcile").await.told(), (405, "method_not_allowed"));
}

/// Who took himself out was out, and nobody else was in.
#[tokio::test]
async fn nobody_takes_away_the_key_he_calls_with() {
    let node = Node::new();
    node.fake.put(Kind::Keys, "admin", json!({ "roles": ["admin"], "hash": hash("admin") }), Origin::Api);
    let revoke = |key: &str| format!("keys/{}/revoke", key.replace(':', "%3A"));

    assert_eq!(node.ask("admin", "DELETE", "keys/admin", Json::Null).await.told(), (409, "own_key"));
    assert_eq!(node.ask("admin", "POST", &revoke("admin"), Json::Null).await.told(), (409, "own_key"));
    assert_eq!(node.ask("admin", "POST", &revoke(&hash("admin")), Json::Null).await.told(), (409, "own_key"));
    assert_eq!(node.ask("viewer", "POST", &revoke("viewer"), Json::Null).await.told(), (403, "role_needed"));
    assert_eq!(node.fake.revoked(), []);

    assert_eq!(node.ask("admin", "DELETE", "keys/root", Json::Null).await.status, 200, "another key");
    assert_eq!(node.ask("admin", "DELETE", "routes/admin", Json::Null).await.told(), (404, "not_found"), "no key");
}

#[tokio::test]
async fn what_is_missing_or_there_already_is_named() {
    let node = Node::new();
    let message = |asked: &Asked| asked.body["error"]["message"].as_str().unwrap_or_default().to_owned();

    for (method, path, what) in [
        ("GET", "keys/nosuch", "key `nosuch`"),
        ("DELETE", "models/openai/nosuch", "model `openai/nosuch`"),
        ("POST", "keys/nosuch/revoke", "key `nosuch`"),
        ("POST", "providers/nosuch/off", "provider `nosuch`"),
        ("GET", "tenants/nosuch/teams/t", "tenant `nosuch`"),
        ("DELETE", "tenants/acme/teams/nosuch", "team `nosuch` of tenant `acme`"),
        ("GET", "budgets/nosuch/standing", "budget `nosuch`"),
    ] {
        let refused = node.ask("admin", method, path, Json::Null).await;
        assert_eq!((refused.told(), message(&refused)), ((404, "not_found"), format!("there is no {what}")), "{path}");
    }
    let taken = node.ask("admin", "POST", "keys", json!({ "name": "web" })).await;
    let version = &taken.body["error"]["current_version"];
    assert_eq!(taken.told(), (409, "exists"));
    assert_eq!(message(&taken), format!("key `web` is there already, at version {version}"));
}
