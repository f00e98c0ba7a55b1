//! The directory as its users see it: what is written, what is wrong with it, what requests then read.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod budgets;

use std::time::Duration;

use cluster::directory::Directory;
use cluster::directory::key::{Key, KeyHash, KeySpec, parse_expiry};
use cluster::directory::pattern::{ModelFilter, Pattern};
use cluster::directory::problems::Problems;
use cluster::directory::resources::Resources;
use cluster::directory::role::Grant;
use cluster::directory::route::{CacheMode, CacheShare, Strategy as Choice};
use cluster::directory::secret::{SecretRef, SecretSource};
use proptest::prelude::*;

const WEB_KEY: &str = "lea-0123456789ab-0123456789abcdef0123456789abcdef";

fn resources(yaml: &str) -> Resources {
    serde_saphyr::from_str(yaml).unwrap()
}

/// Stands in for the node: knows two variables and takes texts as they are.
fn secrets(secret: &SecretRef) -> Option<String> {
    match secret.source() {
        SecretSource::Text(text) if text == "${WEB_KEY}" => Some(WEB_KEY.to_owned()),
        SecretSource::Text(text) if text == "${SHORT_KEY}" => Some("short".to_owned()),
        SecretSource::Text(text) if text.contains("_API_KEY}") => Some("sk-test".to_owned()),
        SecretSource::Text(text) if text.contains("${") => None,
        SecretSource::Text(text) => Some(text.clone()),
        SecretSource::File(_) | SecretSource::Local { .. } => None,
    }
}

fn directory(yaml: &str) -> Directory {
    Directory::build(&resources(yaml), &secrets).map_err(|problems| problems.to_string()).unwrap()
}

fn problems(yaml: &str) -> Vec<String> {
    let mut problems = Problems::new();
    resources(yaml).check(&mut problems);
    problems.iter().map(ToString::to_string).collect()
}

/// What building adds to checking.
fn build_problems(yaml: &str) -> Vec<String> {
    let refused = Directory::build(&resources(yaml), &secrets).err();
    refused.map(Problems::into_vec).unwrap_or_default().iter().map(ToString::to_string).collect()
}

/// `provider/model` of every target.
fn targets(directory: &Directory, model: &str) -> Vec<String> {
    let route = directory.resolve(model);
    route
        .iter()
        .flat_map(|route| &route.targets)
        .map(|target| format!("{}/{}", target.provider, target.model))
        .collect()
}

const TWO_PROVIDERS: &str = r#"
providers:
  openai: { api_key: "${OPENAI_API_KEY}" }
  anthropic: { api_key: "${ANTHROPIC_API_KEY}" }
keys:
  web: { secret: "${WEB_KEY}" }
"#;

#[test]
fn the_smallest_useful_file_is_enough() {
    let directory = directory(TWO_PROVIDERS);

    let key = directory.key(&KeyHash::of(WEB_KEY)).unwrap();
    assert_eq!((key.name.as_str(), &*key.tenant), ("web", "default"));
    assert!(key.models.allows("openai/gpt-4o-mini"));
    assert_eq!(directory.key(&KeyHash::of("another")), None);

    let provider = directory.provider("openai").unwrap();
    assert_eq!((provider.kind.as_str(), provider.credentials, &provider.base_url), ("openai", 1, &None));
    assert_eq!(targets(&directory, "openai/gpt-4o-mini"), ["openai/gpt-4o-mini"]);
    assert_eq!(targets(&directory, "claude-sonnet-4-5"), ["anthropic/claude-sonnet-4-5"]);
}

/// The second example of the design, the parts that exist.
const SHAPE: &str = r#"
providers:
  openai: { api_key: "${OPENAI_API_KEY}" }
  local: { kind: compatible, base_url: "http://10.0.0.5:8000/v1", api_key: none }
routes:
  support: { targets: [openai/gpt-4o-mini, local/llama-3.1-8b], strategy: failover, cache: { mode: exact, ttl: 1h } }
tenants:
  acme: {}
keys:
  web:
    tenant: acme
    hash: "b3:0000000000000000000000000000000000000000000000000000000000000000"
    models: [support, "openai/*"]
    rpm: 600
    tpm: 200000
    expires: 2027-01-01
"#;

#[test]
fn the_shape_of_a_larger_file_is_read() {
    let directory = directory(SHAPE);

    let key = directory.key(&KeyHash([0; 32])).unwrap();
    assert_eq!((&*key.tenant, key.rpm, key.tpm), ("acme", Some(600), Some(200_000)));
    assert_eq!(key.expires_at, parse_expiry("2027-01-01"));
    assert!(key.models.allows("support") && key.models.allows("openai/gpt-4o"));
    assert!(!key.models.allows("local/llama-3.1-8b") && !key.models.allows("supported"));

    let route = directory.resolve("support").unwrap();
    assert_eq!(targets(&directory, "support"), ["openai/gpt-4o-mini", "local/llama-3.1-8b"]);
    assert_eq!(route.strategy, Choice::Failover);
    assert_eq!((route.cache.mode, route.cache.share), (CacheMode::Exact, CacheShare::Tenant));
    assert_eq!((route.cache.ttl, route.cache.answer_max), (Duration::from_hours(1), 1 << 20));
    assert_eq!(route.retries.attempts_max.get(), 4);
    assert_eq!(directory.provider("local").unwrap().credentials, 0);
}

/// What comes later is refused by its name and place, all of it at once.
#[test]
fn parts_of_later_versions_are_refused_by_name() {
    let found = problems(
        r#"
providers:
  openai: { api_key: "${OPENAI_API_KEY}" }
routes:
  support: { targets: [openai/gpt-4o-mini], strategy: least_cost, cache: { mode: semantic, share: team }, guards: [pii] }
keys:
  web: { secret: "${WEB_KEY}" }
"#,
    );
    assert_eq!(
        found,
        [
            "routes.support.strategy: `strategy: least_cost` is not available in this version",
            "routes.support.cache.mode: `mode: semantic` is not available in this version",
            "routes.support.cache.share: `share: team` is not available in this version",
            "routes.support.guards: `guards` is not available in this version",
        ]
    );
}

/// Teams and roles are referred to by keys, and a key's own are published with it.
#[test]
fn keys_have_teams_and_roles() {
    let directory = directory(
        r#"
tenants: { acme: { teams: { support: { description: "first line" } } } }
roles: { helpdesk: { grants: operator, tenants: [acme] } }
keys:
  web: { secret: "${WEB_KEY}", tenant: acme, team: support }
  ops: { hash: "b3:0000000000000000000000000000000000000000000000000000000000000000", roles: [helpdesk, viewer] }
"#,
    );

    let (web, ops) = (directory.key(&KeyHash::of(WEB_KEY)).unwrap(), directory.key(&KeyHash([0; 32])).unwrap());
    assert_eq!((web.team.as_deref(), web.roles.len()), (Some("support"), 0));
    assert_eq!((ops.team.as_deref(), ops.roles.join(" ")), (None, "helpdesk viewer".to_owned()));
    let helpdesk = directory.role("helpdesk").unwrap();
    assert_eq!((helpdesk.grants, helpdesk.tenants.join(" ")), (Grant::Operator, "acme".to_owned()));
    assert_eq!(directory.role("admin").unwrap().grants, Grant::Admin, "always exists");
    assert_eq!(directory.role("nobody"), None);
}

#[test]
fn teams_and_roles_that_do_not_fit_are_told() {
    let found = problems(
        r#"
tenants: { acme: { teams: { support: {}, "a*": {} } } }
roles:
  admin: { grants: viewer }
  helpdesk: { grants: operator, tenants: [acme, acme, acne] }
keys:
  a: { hash: "b3:0000000000000000000000000000000000000000000000000000000000000000", tenant: acme, team: suport }
  b: { hash: "b3:0000000000000000000000000000000000000000000000000000000000000001", team: support }
  c: { hash: "b3:0000000000000000000000000000000000000000000000000000000000000002", roles: [admn, viewer, viewer] }
"#,
    );
    assert_eq!(
        found,
        [
            "tenants.acme.teams.a*: has a `*` in its name, which has a meaning where names are used",
            "roles.admin: always exists and cannot be declared; give yours another name",
            "roles.helpdesk.tenants.1: `acme` is listed twice",
            "roles.helpdesk.tenants.2: there is no tenant `acne`; did you mean `acme`?",
            "keys.a.team: there is no team of `acme` `suport`; did you mean `support`?",
            "keys.b.team: there is no team of `default` `support`",
            "keys.c.roles.2: `viewer` is listed twice",
            "keys.c.roles.0: there is no role `admn`; did you mean `admin`?",
        ]
    );
}

#[test]
fn unknown_fields_and_values_are_errors() {
    for yaml in [
        "providers: { openai: { api_kye: x } }",
        "routes: { a: { strategy: fastest } }",
        "routes: { a: { cache: { mode: exakt } } }",
        "routes: { a: { targets: [{ target: a/b, wait: 3 }] } }",
        "keys: { web: { rpm: -1 } }",
        "keys: { web: { rpm: 99999999999 } }",
        "tenants: { acme: { budget: 1 } }",
        "provider: {}",
    ] {
        assert!(serde_saphyr::from_str::<Resources>(yaml).is_err(), "{yaml}");
    }
}

/// One file with everything wrong: each problem is told, at its path, and nothing else is.
#[test]
fn every_problem_is_told_with_its_path() {
    let found = problems(
        r#"
providers:
  openai: { api_key: a, api_keys: [b, none], models: [x, x, "y*"] }
  a/b: { base_url: "ftp://host" }
  bad: { base_url: "https://user:pass@host/v1?x=1", headers: { "Authorization": x, "a b": x }, timeouts: { connect: 0s } }
  port: { base_url: "http://[::1]:99999", breaker: { failure_share: 101, open_for: 0s } }
models:
  opnai/gpt-4o: { context: 0 }
prices:
  openai/gpt-4o: { input: much, output: "0.0000001" }
  "a*b": { input: 1, output: 1 }
routes:
  empty: {}
  openai/gpt-4o: { targets: [openai/gpt-4o] }
  light: { strategy: weighted, targets: [{ target: openai/x, weight: 0 }] }
  mixed: { targets: [opnai/x, empty, plain, openai/, "openai/*", openai/y, openai/y, { target: openai/z, weight: 2 }] }
  zero: { targets: [openai/x], timeout: 0s, cache: { ttl: 0s, answer_max: 0B } }
tenants:
  acme: {}
  "two words": {}
keys:
  none: {}
  both: { secret: "tooshort", hash: "b3:12", tenant: acne }
  wrong: { hash: nothex, rps: 0, rpm: 0, tpm: 0, max_parallel: 0, expires: tomorrow, models: [emty, "opnai/*", "*x", no-such] }
"#,
    );
    let wanted = [
        "providers.a/b: has a `/`",
        "providers.a/b.base_url: `ftp://host` does not start",
        "providers.bad.base_url: `https://user:pass@host/v1?x=1` has a query",
        "providers.bad.headers.Authorization: is written by",
        "providers.bad.headers.a b: is not a header's name",
        "providers.bad.timeouts.connect: is 0s",
        "providers.openai.api_keys: stands beside",
        "providers.openai.api_keys.1: is `none`",
        "providers.openai.models.1: `x` is listed twice",
        "providers.openai.models.2: `y*` is not the name",
        "providers.port.base_url: `http://[::1]:99999` has a port",
        "providers.port.breaker.failure_share: is 101",
        "providers.port.breaker.open_for: is 0s",
        "models.opnai/gpt-4o: there is no provider `opnai`; did you mean `openai`?",
        "models.opnai/gpt-4o.context: is 0",
        "prices.a*b: `a*b` has a star",
        "prices.openai/gpt-4o.input: `much` is not an amount",
        "prices.openai/gpt-4o.output: `0.0000001` has more than 6 digits",
        "routes.empty.targets: is empty",
        "routes.light.targets: have all weight 0",
        "routes.mixed.targets.6: `openai/y` is listed twice",
        "routes.mixed.targets.7: has a weight",
        "routes.mixed.targets.0: there is no provider `opnai`; did you mean `openai`?",
        "routes.mixed.targets.1: `empty` is not of the form `provider/model`; a route",
        "routes.mixed.targets.2: `plain` is not of the form `provider/model`",
        "routes.mixed.targets.3: `openai/` names no model",
        "routes.mixed.targets.4: `openai/*` has a star",
        "routes.openai/gpt-4o: is named like a model of the provider `openai`",
        "routes.zero.cache.ttl: is 0s",
        "routes.zero.cache.answer_max: is 0",
        "routes.zero.timeout: is 0s",
        "tenants.two words: is not a name",
        "keys.both.hash: stands beside `secret`",
        "keys.both.secret: has 8 characters",
        "keys.both.hash: is not `b3:`",
        "keys.both.tenant: there is no tenant `acne`; did you mean `acme`?",
        "keys.none: has neither",
        "keys.wrong.hash: is not `b3:`",
        "keys.wrong.models.2: `*x` has a star",
        "keys.wrong.rps: is 0",
        "keys.wrong.rpm: is 0",
        "keys.wrong.tpm: is 0",
        "keys.wrong.max_parallel: is 0",
        "keys.wrong.expires: `tomorrow` is neither",
        "keys.wrong.models.0: there is no route or model of one provider `emty`; did you mean `empty`?",
        "keys.wrong.models.1: there is no provider or route `opnai`; did you mean `openai`?",
        "keys.wrong.models.3: there is no route or model of one provider `no-such`",
    ];
    for (found, wanted) in found.iter().zip(wanted) {
        assert!(found.starts_with(wanted), "found  {found}\nwanted {wanted}");
    }
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
}

#[test]
fn secrets_are_checked_once_they_are_known_and_never_repeated() {
    let found = build_problems(
        r#"
providers:
  openai: { api_key: "${MISSING}" }
  anthropic: { api_keys: ["two words", { file: /no/such/file }] }
keys:
  a: { secret: "${WEB_KEY}" }
  b: { secret: "${WEB_KEY}" }
  c: { secret: "${SHORT_KEY}" }
  d: { secret: "${ABSENT:-}" }
"#,
    );
    assert_eq!(
        found,
        [
            "keys.b.secret: is the same as that of the key `a`",
            "keys.c.secret: has 5 characters; a key needs at least 32",
            "keys.d.secret: environment variable `ABSENT` gives no secret",
            "providers.anthropic.api_keys.0: the text given has characters that cannot stand in a header",
            "providers.anthropic.api_keys.1: file `/no/such/file` gives no secret",
            "providers.openai.api_key: environment variable `MISSING` gives no secret",
        ]
    );
    let printed = found.join(" ") + &format!("{:?}", resources(TWO_PROVIDERS));
    assert!(!printed.contains("two words") && !printed.contains(WEB_KEY) && !printed.contains("${"));
}

const NAMES: &str = r#"
providers:
  openai: { api_key: none }
  spare: { kind: compatible, base_url: "http://spare/v1/", models: [llama, o1] }
  groq: { api_key: none }
routes:
  fast: { targets: [groq/openai/gpt-oss-20b, spare/llama], strategy: round_robin }
  gpt-4o: { targets: [spare/gpt-4o-copy] }
  "openai/*": { targets: ["openai/*", "spare/mirror-*"], cache: { mode: exact } }
  "openai/o*": { targets: [openai/o3] }
  "*": { targets: [{ target: spare/llama }] }
"#;

/// A route, a starred route, `provider/model`, the one provider that has it, the route `*`: in this order.
#[test]
fn names_lead_where_the_order_says() {
    let directory = directory(NAMES);

    assert_eq!(targets(&directory, "fast"), ["groq/openai/gpt-oss-20b", "spare/llama"]);
    assert_eq!(targets(&directory, "gpt-4o"), ["spare/gpt-4o-copy"]);
    assert_eq!(targets(&directory, "openai/gpt-4o"), ["openai/gpt-4o", "spare/mirror-gpt-4o"]);
    assert_eq!(targets(&directory, "openai/o1"), ["openai/o3"]);
    assert_eq!(targets(&directory, "groq/meta-llama/new"), ["groq/meta-llama/new"]);
    assert_eq!(targets(&directory, "gpt-4o-mini-2024-07-18"), ["openai/gpt-4o-mini-2024-07-18"]);
    assert_eq!(targets(&directory, "gpt-99"), ["openai/gpt-99"]);
    assert_eq!(targets(&directory, "o1"), ["spare/o1"], "a list in the file outweighs the table");
    assert_eq!(targets(&directory, "anything"), ["spare/llama"]);
    assert_eq!(targets(&directory, ""), Vec::<String>::new());
    assert_eq!(targets(&directory, "a\r\nb"), Vec::<String>::new());
    assert_eq!(targets(&directory, &"a".repeat(257)), Vec::<String>::new());
}

#[test]
fn routes_nobody_configured_cache_nothing_and_are_named_alike() {
    let directory = directory(TWO_PROVIDERS);
    for model in ["gpt-4o", "openai/gpt-4o"] {
        let route = directory.resolve(model).unwrap();
        assert_eq!((&*route.name, &*route.label), ("openai/gpt-4o", "openai/*"));
        assert_eq!(route.cache.mode, CacheMode::Off);
    }
    assert_eq!(targets(&directory, "llama"), Vec::<String>::new());
    assert_eq!(targets(&directory, "openai/"), Vec::<String>::new());
    assert_eq!(targets(&directory, "/gpt-4o"), Vec::<String>::new());
    assert_eq!(targets(&directory, "unknown/gpt-4o"), Vec::<String>::new());
}

#[test]
fn a_model_that_two_providers_have_needs_its_provider() {
    let directory = directory("providers: { openai: { api_key: none }, second: { kind: openai, api_key: none } }");
    assert_eq!(targets(&directory, "gpt-4o"), Vec::<String>::new());
    assert_eq!(targets(&directory, "second/gpt-4o"), ["second/gpt-4o"]);
}

#[test]
fn prices_are_found_where_they_are_most_telling() {
    let directory = directory(
        r#"
providers:
  openai: { api_key: none }
  second: { kind: openai, api_key: none }
  router: { kind: compatible, base_url: "http://router" }
prices:
  second/gpt-4o: { input: $1, output: $1 }
  openai/gpt-4.1: { input: $2, output: $2 }
  llama: { input: $3, output: $3 }
  "second/*": { input: $4, output: $4 }
  meta/llama: { input: $5, output: $5 }
"#,
    );
    let input = |provider, model| directory.price(provider, model).map(|price| price.input.0);

    assert_eq!(input("openai", "gpt-4o"), Some(2_500_000), "the shipped table");
    assert_eq!(input("openai", "gpt-4o-2024-08-06"), Some(2_500_000), "without its date");
    assert_eq!(input("openai", "gpt-4o-2024-05-13"), Some(5_000_000), "with its date, where that is listed");
    assert_eq!(input("second", "gpt-4o"), Some(1_000_000), "the provider's name");
    assert_eq!(input("second", "gpt-4.1"), Some(2_000_000), "the kind's name");
    assert_eq!(input("second", "gpt-4o-mini"), Some(4_000_000), "a star wins over the shipped table");
    assert_eq!(input("router", "llama"), Some(3_000_000), "the bare model");
    assert_eq!(input("router", "meta/llama"), Some(5_000_000), "a model with a slash in its name");
    assert_eq!(input("router", "openai/gpt-4.1"), None, "another provider's price");
    assert_eq!(input("router", "unknown"), None);
    assert_eq!(input("nobody", "gpt-4o"), None);
}

#[test]
fn facts_of_the_file_are_laid_over_the_table() {
    let directory =
        directory("{ providers: { openai: { api_key: none } }, models: { openai/gpt-4o: { output_max: 100 } } }");
    let facts = directory.facts("openai", "gpt-4o");
    assert_eq!((facts.context, facts.output_max, facts.hidden_reasoning), (Some(128_000), Some(100), false));
    assert!(directory.facts("openai", "o3").hidden_reasoning);
    assert_eq!(directory.facts("openai", "new").output_max, None);
}

#[test]
fn a_key_sees_the_models_it_may_use() {
    let directory = directory(NAMES);
    let filter = ["fast", "spare/*"].into_iter().filter_map(|text| Pattern::parse(text).ok());
    let key = Key { models: ModelFilter::new(filter), ..Key::anonymous() };

    let listed = directory.models_for(&key);

    let ids: Vec<_> = listed.iter().map(|model| (model.id.as_str(), model.owned_by.as_str())).collect();
    assert_eq!(ids, [("fast", "llm-edge-agent"), ("spare/llama", "spare"), ("spare/o1", "spare")]);
    assert!(directory.models_for(&Key::anonymous()).len() > 20);
}

#[test]
fn keys_expire_at_the_stated_moment() {
    let midnight = parse_expiry("2027-01-01").unwrap();
    assert_eq!(midnight.as_secs(), 1_798_761_600);
    assert_eq!(parse_expiry("2027-01-01T00:00:00Z"), Some(midnight));
    let key = Key::new("k", &KeySpec { expires: Some("2027-01-01".to_owned()), ..KeySpec::default() });
    assert!(!key.is_expired(midnight.saturating_sub(Duration::from_nanos(1))));
    assert!(key.is_expired(midnight));
    for wrong in ["", "2027", "2027-13-01", "2027-02-30", "01.01.2027", "1969-01-01", "2027-01-01T00:00:00", "never"] {
        assert_eq!(parse_expiry(wrong), None, "{wrong}");
    }
}

/// What the file says can be written out and read again; secrets stay hidden.
#[test]
fn resources_are_written_as_they_are_read() {
    let mut shape = resources(SHAPE);
    shape.providers.clear();
    let json = serde_json::to_string(&shape).unwrap();
    assert_eq!(serde_json::from_str::<Resources>(&json).unwrap(), shape);
    assert!(serde_json::to_string(&resources(TWO_PROVIDERS)).unwrap().contains("***"));
}

#[test]
fn the_schema_describes_every_field_that_exists_and_none_that_does_not() {
    let schema = serde_json::to_value(schemars::schema_for!(Resources)).unwrap();
    let text = schema.to_string();
    assert!(!text.contains("semantic"));
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        let properties = definition["properties"].as_object().into_iter().flatten();
        for (field, described) in properties {
            assert!(described["description"].is_string(), "{name}.{field} has no description");
        }
    }
}

fn names() -> impl Strategy<Value = String> {
    "[a-c]{1,3}"
}

proptest! {
    /// A key is found by its own text and by no other.
    #[test]
    fn keys_are_found_by_their_text_only(texts in prop::collection::btree_set("[!-~]{32,40}", 1..20), other in "[!-~]{32,40}") {
        let mut resources = Resources::default();
        for (index, text) in texts.iter().enumerate() {
            let hash = Some(KeyHash::of(text).to_text());
            resources.keys.insert(format!("key-{index}"), KeySpec { hash, ..KeySpec::default() });
        }
        let directory = Directory::build(&resources, &secrets).unwrap();
        for (index, text) in texts.iter().enumerate() {
            prop_assert_eq!(&directory.key(&KeyHash::of(text)).unwrap().name, &format!("key-{index}"));
        }
        prop_assert_eq!(directory.key(&KeyHash::of(&other)).is_some(), texts.contains(&other));
    }

    /// `provider/model` is split at the first slash, whatever the model's name has in it, and leads nowhere else.
    #[test]
    fn explicit_names_lead_to_their_provider(model in "[!-)+-~]{1,20}") {
        let directory = directory(TWO_PROVIDERS);
        prop_assert_eq!(targets(&directory, &format!("anthropic/{model}")), [format!("anthropic/{model}")]);
    }

    /// A filter allows what one of its patterns says, as plain text comparison would have it.
    #[test]
    fn filters_allow_what_their_patterns_say(patterns in prop::collection::vec((names(), any::<bool>()), 1..5), model in names()) {
        let texts = patterns.iter().map(|(start, star)| format!("{start}{}", if *star { "*" } else { "" }));
        let filter = ModelFilter::new(texts.filter_map(|text| Pattern::parse(&text).ok()));
        let wanted = patterns.iter().any(|(start, star)| if *star { model.starts_with(start) } else { model == *start });
        prop_assert_eq!(filter.allows(&model), wanted);
    }

    /// Any name asked for is answered or not, never a panic, and every target has a provider.
    #[test]
    fn any_name_is_resolved_or_not(model in ".{0,60}") {
        let directory = directory(NAMES);
        for target in directory.resolve(&model).iter().flat_map(|route| &route.targets) {
            prop_assert!(directory.provider(&target.provider).is_some());
        }
    }
}
