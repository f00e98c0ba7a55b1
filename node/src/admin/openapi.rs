//! The description of `/admin/v1` in `OpenAPI` 3.1: for people, generators of clients, and the test that compares.
//!
//! What resources look like comes from the types themselves; what paths there are is held to [`Endpoint`] by a test.
//!
//! [`Endpoint`]: super::endpoint::Endpoint

use super::budgets::{BudgetStanding, Reconciled, Reconciliation, Standings};
use super::control::{AuditEntry, Waited, Wrong};
use super::http::{BODY_BYTES_MAX, LIMIT, LIMIT_MAX};
use super::status::cluster::{ClusterStatus, MemberStatus};
use cluster::directory::budget::BudgetSpec;
use cluster::directory::key::KeySpec;
use cluster::directory::kind::Kind;
use cluster::directory::model::ModelSpec;
use cluster::directory::price::PriceSpec;
use cluster::directory::provider::ProviderSpec;
use cluster::directory::role::RoleSpec;
use cluster::directory::route::RouteSpec;
use cluster::directory::tenant::{TeamSpec, TenantSpec};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value as Json, json};

const ABOUT: &str = "Keys, tenants, providers and what else the nodes of a cluster share, and the nodes themselves. Any \
    node answers. Reading is of the copy of the node asked, which is behind by milliseconds. A change returns when it is \
    in force; one that takes something away (a key, a provider), when no node acts as before any more. Every answer has \
    an `x-request-id`, and every change a line in the audit with it. Names in paths are percent-encoded.";

pub fn document() -> Json {
    let mut generator = SchemaSettings::draft2020_12()
        .for_deserialize()
        .with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
        .into_generator();
    let mut paths = Map::new();
    for kind in Kind::ALL {
        let spec = spec_of(kind, &mut generator);
        kind_paths(kind, &spec, &mut paths);
    }
    team_paths(&mut generator, &mut paths);
    key_paths(&mut paths);
    provider_paths(&mut paths);
    budget_paths(&mut generator, &mut paths);
    cluster_paths(&mut generator, &mut paths);
    let mut schemas = generator.take_definitions(true);
    shared_schemas(&mut generator, &mut schemas);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "LLM-Edge-Agent admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/", "description": "This node's admin listener" }],
        "security": [{ "adminKey": [] }],
        "tags": tags(),
        "paths": paths,
        "components": {
            "securitySchemes": { "adminKey": { "type": "http", "scheme": "bearer", "description": KEY } },
            "parameters": parameters(),
            "responses": responses(),
            "headers": {
                "ETag": { "description": "The version, in quotes.", "schema": { "type": "string" } },
                "RequestId": { "description": "As sent, or made here.", "schema": { "type": "string" } },
            },
            "schemas": schemas,
        },
    })
}

const KEY: &str = "A key that has roles. The first one is made with the data directory, in its file `admin.key`.";

fn tags() -> Json {
    let kinds = Kind::ALL.map(|kind| json!({ "name": kind.name() }));
    let others = ["teams", "cluster"].map(|name| json!({ "name": name }));
    Json::Array(kinds.into_iter().chain(others).collect())
}

const fn schema_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Providers => "Provider",
        Kind::Models => "Model",
        Kind::Prices => "Price",
        Kind::Routes => "Route",
        Kind::Tenants => "Tenant",
        Kind::Roles => "Role",
        Kind::Keys => "Key",
        Kind::Budgets => "Budget",
    }
}

/// Has the generator define the type, and refers to it.
fn spec_of(kind: Kind, generator: &mut SchemaGenerator) -> Json {
    let schema = match kind {
        Kind::Providers => generator.subschema_for::<ProviderSpec>(),
        Kind::Models => generator.subschema_for::<ModelSpec>(),
        Kind::Prices => generator.subschema_for::<PriceSpec>(),
        Kind::Routes => generator.subschema_for::<RouteSpec>(),
        Kind::Tenants => generator.subschema_for::<TenantSpec>(),
        Kind::Roles => generator.subschema_for::<RoleSpec>(),
        Kind::Keys => generator.subschema_for::<KeySpec>(),
        Kind::Budgets => generator.subschema_for::<BudgetSpec>(),
    };
    schema.to_value()
}

fn reference(schema: &str) -> Json {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn parameter(name: &str) -> Json {
    json!({ "$ref": format!("#/components/parameters/{name}") })
}

fn kind_paths(kind: Kind, spec: &Json, paths: &mut Map<String, Json>) {
    let (plural, one, shown) = (kind.name(), kind.one(), schema_of(kind));
    let list = operation(plural, &format!("list_{plural}"), &format!("List {plural}"))
        .parameters(&["limit", "after"])
        .answers(200, "Ordered by name.", &reference(&format!("{shown}List")));
    let get = operation(plural, &format!("get_{one}"), &format!("One {one}"))
        .parameters(&["ifNoneMatchVersion"])
        .answers(200, "With its version as `etag`.", &reference(shown))
        .also(304, "It still has the version named.")
        .also(404, "NotFound");
    let put = operation(plural, &format!("put_{one}"), &format!("Make a {one}, or replace it whole"))
        .parameters(&["wait", "ifMatch", "ifNoneMatch"])
        .takes(spec)
        .answers(200, "It was replaced.", &reference(&format!("{shown}Changed")))
        .answers(201, "It was made.", &reference(&format!("{shown}Changed")))
        .changes();
    let delete = operation(plural, &format!("delete_{one}"), &format!("Delete a {one}"))
        .parameters(&["wait", "ifMatch"])
        .answers(200, "It is gone.", &reference("Done"))
        .also(404, "NotFound")
        .changes();
    let mut collection = json!({ "get": list.0 });
    if kind == Kind::Keys {
        let about = "Make a key. Its text is in the answer, and nowhere else and never again";
        let create = operation(plural, "create_key", about)
            .parameters(&["wait"])
            .takes(&reference("NewKey"))
            .answers(201, "The key was made.", &reference("CreatedKey"))
            .changes();
        collection["post"] = create.0;
    }
    paths.insert(format!("/admin/v1/{plural}"), collection);
    let item = json!({ "parameters": [parameter("name")], "get": get.0, "put": put.0, "delete": delete.0 });
    paths.insert(format!("/admin/v1/{plural}/{{name}}"), item);
}

fn team_paths(generator: &mut SchemaGenerator, paths: &mut Map<String, Json>) {
    let spec = generator.subschema_for::<TeamSpec>().to_value();
    let list = operation("teams", "list_teams", "List the teams of a tenant")
        .parameters(&["limit", "after"])
        .answers(200, "Ordered by name.", &reference("TeamList"))
        .also(404, "NotFound");
    let get = operation("teams", "get_team", "One team")
        .parameters(&["ifNoneMatchVersion"])
        .answers(200, "With its tenant's version as `etag`.", &reference("Team"))
        .also(304, "Its tenant still has the version named.")
        .also(404, "NotFound");
    let put = operation("teams", "put_team", "Make a team, or replace it")
        .parameters(&["wait", "ifMatch", "ifNoneMatch"])
        .takes(&spec)
        .answers(200, "It was replaced.", &reference("TeamChanged"))
        .answers(201, "It was made.", &reference("TeamChanged"))
        .also(404, "NotFound")
        .changes();
    let delete = operation("teams", "delete_team", "Delete a team")
        .parameters(&["wait", "ifMatch"])
        .answers(200, "It is gone.", &reference("Done"))
        .also(404, "NotFound")
        .changes();
    let tenant = [parameter("tenant")];
    paths.insert("/admin/v1/tenants/{tenant}/teams".to_owned(), json!({ "parameters": tenant, "get": list.0 }));
    let item = json!({
        "parameters": [parameter("tenant"), parameter("name")],
        "get": get.0, "put": put.0, "delete": delete.0,
    });
    paths.insert("/admin/v1/tenants/{tenant}/teams/{name}".to_owned(), item);
}

fn key_paths(paths: &mut Map<String, Json>) {
    let about = "Refuse a key for ever, one that the file declares too. `name` may also be its hash";
    let mut revoke = operation("keys", "revoke_key", about)
        .parameters(&["wait"])
        .takes(&reference("Revocation"))
        .answers(200, "No request that arrives from now on is accepted with it.", &reference("RevokedKey"))
        .also(404, "NotFound")
        .changes();
    revoke.0["requestBody"]["required"] = json!(false);
    let path = json!({ "parameters": [parameter("name")], "post": revoke.0 });
    paths.insert("/admin/v1/keys/{name}/revoke".to_owned(), path);
}

fn provider_paths(paths: &mut Map<String, Json>) {
    let words = [("off", "Take a provider out of use on every node"), ("on", "Let a provider be used again")];
    for (word, about) in words {
        let switch = operation("providers", &format!("switch_provider_{word}"), about)
            .parameters(&["wait"])
            .answers(200, "It is so.", &reference("SwitchedProvider"))
            .also(404, "NotFound")
            .changes();
        let path = json!({ "parameters": [parameter("name")], "post": switch.0 });
        paths.insert(format!("/admin/v1/providers/{{name}}/{word}"), path);
    }
}

fn budget_paths(generator: &mut SchemaGenerator, paths: &mut Map<String, Json>) {
    let standing = generator.subschema_for::<BudgetStanding>().to_value();
    let get = operation(
        "budgets",
        "get_budget_standing",
        "What is left of a budget, as a majority of the nodes knows it now",
    )
    .parameters(&["window", "endUser"])
    .answers(200, "In its present window, or in the one named.", &standing)
    .also(404, "NotFound");
    let path = json!({ "parameters": [parameter("name")], "get": get.0 });
    paths.insert("/admin/v1/budgets/{name}/standing".to_owned(), path);
    let standings = generator.subschema_for::<Standings>().to_value();
    let about = "What is left of all budgets, as a majority of the nodes knows it now; to who is limited to some tenants, of \
                 those that they, their teams or keys name";
    let list = operation("budgets", "list_budget_standings", about).parameters(&["limit", "after"]).answers(
        200,
        "In their present windows, ordered by name.",
        &standings,
    );
    paths.insert("/admin/v1/standings".to_owned(), json!({ "get": list.0 }));
    let said = generator.subschema_for::<Reconciliation>().to_value();
    let reconciled = generator.subschema_for::<Reconciled>().to_value();
    let about =
        "Give back what a process that is over holds of a budget and did not use. Whoever says so answers for it";
    let post = operation("budgets", "reconcile_budget", about)
        .takes(&said)
        .answers(200, "The budget as it stands then.", &reconciled)
        .also(404, "NotFound")
        .changes();
    let path = json!({ "parameters": [parameter("name")], "post": post.0 });
    paths.insert("/admin/v1/budgets/{name}/reconcile".to_owned(), path);
}

fn cluster_paths(generator: &mut SchemaGenerator, paths: &mut Map<String, Json>) {
    let member = generator.subschema_for::<MemberStatus>().to_value();
    let status = generator.subschema_for::<ClusterStatus>().to_value();
    let entry = generator.subschema_for::<AuditEntry>().to_value();
    let items = |items: &Json| {
        json!({
            "type": "object",
            "properties": { "items": { "type": "array", "items": items } },
            "required": ["items"],
        })
    };
    let members = operation("cluster", "list_members", "The nodes, as the one asked sees them").answers(
        200,
        "All of them.",
        &items(&member),
    );
    paths.insert("/admin/v1/members".to_owned(), json!({ "get": members.0 }));
    let cluster = operation("cluster", "get_cluster", "What the node asked knows of the cluster").answers(
        200,
        "At this moment.",
        &status,
    );
    paths.insert("/admin/v1/cluster".to_owned(), json!({ "get": cluster.0 }));
    let mut log = items(&entry);
    log["properties"]["next"] = json!({
        "description": "The index at which the rest begins: the next `from`. Null at the end.",
        "type": ["integer", "null"],
    });
    let audit = operation("cluster", "list_audit", "Who changed what, or was refused; the oldest first")
        .parameters(&["limit", "from"])
        .answers(200, "As far back as it is kept.", &log);
    paths.insert("/admin/v1/audit".to_owned(), json!({ "get": audit.0 }));
    let drain = "Have a node finish its requests and end. Returns when it has begun";
    let remove = "Take a node out of the cluster. It stays out until it is started again";
    for (word, about, status) in [("drain", drain, 202), ("remove", remove, 200)] {
        let operation = operation("cluster", &format!("{word}_member"), about)
            .answers(status, "It is so.", &json!({ "type": "object", "properties": { "node": { "type": "string" } } }))
            .also(404, "NotFound")
            .changes();
        let path = json!({ "parameters": [parameter("node")], "post": operation.0 });
        paths.insert(format!("/admin/v1/members/{{node}}/{word}"), path);
    }
    let mut document = operation("cluster", "get_openapi", "This document. Needs no key").answers(
        200,
        "OpenAPI 3.1.",
        &json!({ "type": "object" }),
    );
    document.0["security"] = json!([]);
    paths.insert("/admin/v1/openapi.json".to_owned(), json!({ "get": document.0 }));
}

/// One method of a path, while it is put together.
struct Operation(Json);

fn operation(tag: &str, id: &str, summary: &str) -> Operation {
    let failure = |name: &str| json!({ "$ref": format!("#/components/responses/{name}") });
    Operation(json!({
        "tags": [tag],
        "operationId": id,
        "summary": summary,
        "responses": {
            "400": failure("Invalid"),
            "401": failure("NoKey"),
            "403": failure("Forbidden"),
            "503": failure("Unavailable"),
        },
    }))
}

impl Operation {
    fn parameters(mut self, names: &[&str]) -> Self {
        self.0["parameters"] = names.iter().map(|name| parameter(name)).collect();
        self
    }

    fn takes(mut self, schema: &Json) -> Self {
        self.0["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": schema } } });
        self
    }

    fn answers(mut self, status: u16, about: &str, schema: &Json) -> Self {
        self.0["responses"][status.to_string()] = json!({
            "description": about,
            "headers": { "x-request-id": { "$ref": "#/components/headers/RequestId" } },
            "content": { "application/json": { "schema": schema } },
        });
        self
    }

    /// A failure by its name, or an answer without a body.
    fn also(mut self, status: u16, about: &str) -> Self {
        self.0["responses"][status.to_string()] = if status < 400 {
            json!({ "description": about })
        } else {
            json!({ "$ref": format!("#/components/responses/{about}") })
        };
        self
    }

    fn changes(self) -> Self {
        self.also(408, "Slow")
            .also(409, "Conflict")
            .also(412, "Precondition")
            .also(413, "TooLarge")
            .also(504, "Uncertain")
    }
}

fn parameters() -> Json {
    let path = |name: &str, about: &str| json!({ "name": name, "in": "path", "required": true, "description": about, "schema": { "type": "string", "minLength": 1 } });
    let query = |name: &str, about: &str, schema: Json| json!({ "name": name, "in": "query", "description": about, "schema": schema });
    let header = |name: &str, about: &str| json!({ "name": name, "in": "header", "description": about, "schema": { "type": "string" } });
    json!({
        "name": path("name", "Its name."),
        "tenant": path("tenant", "The tenant's name."),
        "node": path("node", "The node's name or id."),
        "limit": query("limit", "How many at most.", json!({ "type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT })),
        "after": query("after", "Only what comes after this name: `next` of the page before.", json!({ "type": "string" })),
        "from": query("from", "Only entries from this index on.", json!({ "type": "integer", "minimum": 0 })),
        "window": query("window", "Which window, counted from 0: the present one and the two before it are kept.", json!({ "type": "integer", "minimum": 0 })),
        "endUser": query("end_user", "Whose share, where each end user has the limit for himself.", json!({ "type": "string" })),
        "wait": query("wait", "`none`: return when the change is decided, before every node has it.", json!({ "type": "string", "enum": ["barrier", "none"], "default": "barrier" })),
        "ifMatch": header("If-Match", "Only if it has this version (an `etag`), or with `*` if it exists."),
        "ifNoneMatch": header("If-None-Match", "`*`: only if it does not exist."),
        "ifNoneMatchVersion": header("If-None-Match", "An `etag`: without a body if it still has this version."),
    })
}

fn responses() -> Json {
    let failures = [
        ("Invalid", "What was sent is not right; `problems` says each thing that is wrong."),
        ("NoKey", "No key, or one that is not known, has expired or was revoked."),
        ("Forbidden", "The key's roles do not allow it."),
        ("NotFound", "There is no such thing, or it is none of yours."),
        ("Slow", "The body did not come in time."),
        ("Conflict", "Not possible as things are: it exists, has changed, is declared in the file, or is in use."),
        ("Precondition", "Not in the state that `If-Match` or `If-None-Match` asks for; `etag` has its version."),
        ("TooLarge", "The body is too large."),
        ("Unavailable", "Nothing can be decided now. Nothing was changed; try again after `retry-after`."),
        ("Uncertain", "It may have been done, or was done and is not seen everywhere; `code` says which."),
    ];
    let response = |about: &str| {
        json!({
            "description": about,
            "headers": { "x-request-id": { "$ref": "#/components/headers/RequestId" } },
            "content": { "application/json": { "schema": reference("Error") } },
        })
    };
    Json::Object(failures.into_iter().map(|(name, about)| (name.to_owned(), response(about))).collect())
}

/// What is put together from the types: resources with their versions, pages of them, answers to changes.
fn shared_schemas(generator: &mut SchemaGenerator, schemas: &mut Map<String, Json>) {
    // A key's text is never sent to the cluster.
    if let Some(properties) = schemas.get_mut("KeySpec").and_then(|key| key.get_mut("properties")?.as_object_mut()) {
        properties.shift_remove("secret");
    }
    let waited = generator.subschema_for::<Waited>().to_value();
    let problem = generator.subschema_for::<Wrong>().to_value();
    for kind in Kind::ALL {
        let extra = match kind {
            Kind::Keys => json!({ "revoked": { "type": "boolean", "description": "Refused for ever." } }),
            Kind::Providers => json!({ "off": { "type": "boolean", "description": "Out of use, by an operator." } }),
            Kind::Models | Kind::Prices | Kind::Routes | Kind::Tenants | Kind::Roles | Kind::Budgets => json!({}),
        };
        let name = schema_of(kind);
        let shown = resource(&spec_of(kind, generator), &extra);
        with_its_answers(name, shown, &waited, schemas);
    }
    let team = generator.subschema_for::<TeamSpec>().to_value();
    let tenant = json!({ "tenant": { "type": "string" } });
    with_its_answers("Team", resource(&team, &tenant), &waited, schemas);
    key_schemas(&waited, schemas);
    let done = json!({ "name": { "type": "string" }, "version": version(), "waited": waited });
    schemas.insert("Done".to_owned(), object(&done, &["name", "version", "waited"]));
    let off =
        json!({ "name": { "type": "string" }, "off": { "type": "boolean" }, "version": version(), "waited": waited });
    schemas.insert("SwitchedProvider".to_owned(), object(&off, &["name", "off", "version", "waited"]));
    let error = json!({
        "code": { "type": "string", "description": "For programs; never changes." },
        "message": { "type": "string", "description": "For people." },
        "problems": { "type": "array", "items": problem },
        "current_version": version(),
        "request_id": { "type": "string" },
    });
    let error = object(&error, &["code", "message", "request_id"]);
    schemas.insert("Error".to_owned(), object(&json!({ "error": error }), &["error"]));
    for (name, schema) in generator.take_definitions(true) {
        schemas.entry(name).or_insert(schema);
    }
}

fn key_schemas(waited: &Json, schemas: &mut Map<String, Json>) {
    let mut new = schemas.get("KeySpec").cloned().unwrap_or_else(|| json!({ "properties": {} }));
    if let Some(properties) = new.get_mut("properties").and_then(Json::as_object_mut) {
        properties.shift_remove("hash");
        properties.insert("name".to_owned(), json!({ "type": "string", "minLength": 1, "maxLength": 256 }));
    }
    new["required"] = json!(["name"]);
    new["description"] = json!(format!("A key to be made. At most {BODY_BYTES_MAX} bytes."));
    schemas.insert("NewKey".to_owned(), new);
    let text = json!({ "type": "string", "description": "The key, for whoever is to use it. Shown this once." });
    let created = json!({
        "allOf": [reference("KeyChanged"), object(&json!({ "key": text }), &["key"])],
    });
    schemas.insert("CreatedKey".to_owned(), created);
    let cut = json!({ "type": "boolean", "default": false, "description": "End streams that run with it, too." });
    let mut revocation = object(&json!({ "cut": cut }), &[]);
    revocation["additionalProperties"] = json!(false);
    schemas.insert("Revocation".to_owned(), revocation);
    let revoked = json!({
        "name": { "type": "string" },
        "revoked": { "const": true },
        "cut": { "type": "boolean" },
        "version": version(),
        "waited": waited,
    });
    schemas.insert("RevokedKey".to_owned(), object(&revoked, &["name", "revoked", "cut", "version", "waited"]));
}

fn version() -> Json {
    json!({ "type": "integer", "minimum": 0, "description": "Grows with each change." })
}

fn object(properties: &Json, required: &[&str]) -> Json {
    let mut object = json!({ "type": "object", "properties": properties });
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

fn resource(spec: &Json, extra: &Json) -> Json {
    let mut properties = json!({
        "name": { "type": "string" },
        "version": version(),
        "origin": { "type": "string", "enum": ["file", "api"], "description": "`file`: only the file changes it." },
    });
    let mut required = vec!["name", "version", "origin", "spec"];
    for (name, schema) in extra.as_object().into_iter().flatten() {
        properties[name] = schema.clone();
        required.push(name);
    }
    properties["spec"] = spec.clone();
    object(&properties, &required)
}

/// The resource, a page of them, and the answer to a change of one.
fn with_its_answers(name: &str, shown: Json, waited: &Json, schemas: &mut Map<String, Json>) {
    schemas.insert(name.to_owned(), shown);
    let next = json!({ "type": ["string", "null"], "description": "Where the rest begins: the next `after`." });
    let page = json!({ "items": { "type": "array", "items": reference(name) }, "next": next });
    schemas.insert(format!("{name}List"), object(&page, &["items", "next"]));
    let changed = json!({ "allOf": [reference(name), object(&json!({ "waited": waited }), &["waited"])] });
    schemas.insert(format!("{name}Changed"), changed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::endpoint::Endpoint;
    use http::Method;
    use std::collections::BTreeSet;

    fn walk(value: &Json, visit: &mut impl FnMut(&Json)) {
        visit(value);
        match value {
            Json::Array(items) => items.iter().for_each(|item| walk(item, visit)),
            Json::Object(map) => map.values().for_each(|item| walk(item, visit)),
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
        }
    }

    /// Every path that the document has leads somewhere, with exactly these methods; and the other way round.
    #[test]
    fn the_document_and_the_program_have_the_same_paths_and_methods() {
        let document = document();
        let methods = ["get", "put", "post", "delete"];
        let mut templates = BTreeSet::new();

        for (path, item) in document["paths"].as_object().unwrap() {
            let endpoint = Endpoint::parse(&path.replace(['{', '}'], "")).unwrap_or_else(|| panic!("{path}"));
            assert_eq!(endpoint.template(), path);
            for method in methods {
                let method_of = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
                assert_eq!(item.get(method).is_some(), endpoint.allows(&method_of), "{method} {path}");
            }
            templates.insert(endpoint.template());
        }

        // One of each kind of endpoint: what the program answers is in the document.
        let all = 2 * Kind::ALL.len()
            + ["teams", "team", "revoke", "off", "on"].len()
            + ["members", "drain", "remove", "audit", "cluster", "standing", "standings", "reconcile", "openapi"].len();
        assert_eq!(templates.len(), all);
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_operation_has_its_own_id() {
        let document = document();
        let (mut dangling, mut ids) = (Vec::new(), Vec::new());

        walk(&document, &mut |value| {
            if let Some(reference) = value.get("$ref").and_then(Json::as_str) {
                let target = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
                if target.is_none() {
                    dangling.push(reference.to_owned());
                }
            }
            if let Some(id) = value.get("operationId").and_then(Json::as_str) {
                ids.push(id.to_owned());
            }
        });

        assert_eq!(dangling, Vec::<String>::new());
        assert!(ids.len() > 30, "{ids:?}");
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    }

    /// Words in braces are declared, and nothing else is.
    #[test]
    fn every_path_declares_its_parameters() {
        let document = document();
        for (path, item) in document["paths"].as_object().unwrap() {
            let named: Vec<&str> = path.split('{').skip(1).filter_map(|rest| rest.split('}').next()).collect();
            let declared = item["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
            let declared: Vec<&str> =
                declared.iter().filter_map(|one| one["$ref"].as_str()?.rsplit('/').next()).collect();
            assert_eq!(declared, named, "{path}");
        }
    }

    #[test]
    fn no_text_of_a_key_is_ever_sent_to_the_cluster() {
        let document = document();
        let schemas = &document["components"]["schemas"];

        assert!(schemas["KeySpec"]["properties"]["hash"].is_object());
        assert!(schemas["KeySpec"]["properties"].get("secret").is_none());
        assert!(schemas["NewKey"]["properties"].get("hash").is_none());
        assert_eq!(schemas["NewKey"]["required"], json!(["name"]));
        assert_eq!(schemas["ProviderSpec"]["type"], "object");
    }
}
