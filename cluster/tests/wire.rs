//! Resources as they travel: the same again after the journey, the same text for the same resource, and no secret in it.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use bytesize::ByteSize;
use cluster::directory::available::Available;
use cluster::directory::budget::{BudgetSpec, LimitText, Period};
use cluster::directory::key::KeySpec;
use cluster::directory::kind::Kind;
use cluster::directory::model::ModelSpec;
use cluster::directory::price::PriceSpec;
use cluster::directory::provider::{OnUnknownFields, ProviderSpec};
use cluster::directory::role::{Grant, RoleSpec};
use cluster::directory::route::{CacheMode, CacheShare, Disconnect, RouteSpec, Strategy as Choice, TargetSpec};
use cluster::directory::secret::{SecretRef, SecretSource};
use cluster::directory::tenant::{TeamSpec, TenantSpec};
use cluster::directory::wire::Spec;
use cluster::ledger::money::AmountText;
use proptest::collection::{btree_map, vec};
use proptest::option::of;
use proptest::prelude::*;

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9.-]{0,8}"
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,20}"
}

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        (0..10_000_000_000u64).prop_map(Duration::from_nanos),
        (0..1_000_000u64).prop_map(Duration::from_millis)
    ]
}

fn secret() -> impl Strategy<Value = SecretRef> {
    prop_oneof![
        "[A-Z_]{1,8}".prop_map(|name| SecretRef::text(format!("${{{name}}}"))),
        "/[a-z/]{1,12}".prop_map(SecretRef::file),
        Just(SecretRef::text("none")),
        (name(), 0..9usize).prop_map(|(provider, index)| SecretRef::local(provider, index)),
    ]
}

fn provider() -> impl Strategy<Value = ProviderSpec> {
    let places =
        (of(name()), of(Just("https://host/v1".to_owned())), of(secret()), vec(secret(), 0..3), vec(name(), 0..3));
    let times = (duration(), duration(), duration(), duration());
    let breaker = (1..100u32, 0..=100u8, duration(), 1..100u32, duration());
    let rest = (1..5000u32, any::<bool>(), of("/[a-z]{1,8}"), btree_map(name(), text(), 0..3), any::<bool>());
    (places, times, breaker, rest, vec(name(), 0..3)).prop_map(|(places, times, breaker, rest, budgets)| {
        let mut spec = ProviderSpec::default();
        (spec.kind, spec.base_url, spec.api_key, spec.api_keys, spec.models) = places;
        let timeouts = &mut spec.timeouts;
        (timeouts.connect, timeouts.first_token, timeouts.idle, timeouts.total) = times;
        spec.breaker.failures_max = NonZeroU32::new(breaker.0).unwrap();
        spec.breaker.failure_share = breaker.1;
        spec.breaker.window = breaker.2;
        spec.breaker.requests_min = NonZeroU32::new(breaker.3).unwrap();
        spec.breaker.open_for = breaker.4;
        spec.connections_max = NonZeroU32::new(rest.0).unwrap();
        spec.http2 = rest.1;
        spec.ca = rest.2.map(Into::into);
        spec.headers = rest.3;
        spec.budgets = budgets;
        spec.on_unknown_fields = if rest.4 { OnUnknownFields::Refuse } else { OnUnknownFields::Drop };
        spec
    })
}

fn route() -> impl Strategy<Value = RouteSpec> {
    let target = (name(), 0..5u32).prop_map(|(target, weight)| TargetSpec { weight, ..TargetSpec::new(target) });
    let strategy = prop_oneof![Just(Choice::Failover), Just(Choice::RoundRobin), Just(Choice::Weighted)];
    let cache = (any::<bool>(), duration(), any::<bool>(), any::<bool>(), any::<u64>());
    let rest = (1..9u32, any::<bool>(), of(duration()), of(duration()));
    (vec(target, 0..4), strategy, cache, rest).prop_map(|(targets, strategy, cache, rest)| {
        let mut spec = RouteSpec { targets, strategy: Available::Now(strategy), ..RouteSpec::default() };
        spec.cache.mode = Available::Now(if cache.0 { CacheMode::Exact } else { CacheMode::Off });
        spec.cache.ttl = cache.1;
        spec.cache.share = Available::Now(if cache.2 { CacheShare::Key } else { CacheShare::Tenant });
        spec.cache.tool_calls = cache.3;
        spec.cache.answer_max = ByteSize::b(cache.4);
        spec.retries.attempts_max = NonZeroU32::new(rest.0).unwrap();
        spec.disconnect = if rest.1 { Disconnect::Drain } else { Disconnect::Cancel };
        (spec.timeout, spec.first_token_timeout) = (rest.2, rest.3);
        spec
    })
}

fn spec() -> impl Strategy<Value = Spec> {
    let amount = || of("[0-9]{1,4}(\\.[0-9]{1,5})?".prop_map(AmountText));
    let price = (amount(), amount(), amount(), amount(), amount(), amount(), amount()).prop_map(|all| PriceSpec {
        input: all.0,
        cached_input: all.1,
        cache_write: all.2,
        output: all.3,
        reasoning: all.4,
        image: all.5,
        call: all.6,
    });
    let budgets = || vec(name(), 0..3);
    let model = (of(any::<u64>()), of(any::<u64>()), of(any::<bool>()), budgets()).prop_map(
        |(context, output_max, hidden_reasoning, budgets)| ModelSpec { context, output_max, hidden_reasoning, budgets },
    );
    let team = (of(text()), budgets()).prop_map(|(description, budgets)| TeamSpec { description, budgets });
    let tenant = (of(text()), btree_map(name(), team, 0..3), budgets())
        .prop_map(|(description, teams, budgets)| TenantSpec { description, teams, budgets });
    let grant = prop_oneof![Just(Grant::Viewer), Just(Grant::Operator), Just(Grant::Admin)];
    let role = (grant, vec(name(), 0..3), of(text())).prop_map(|(grants, tenants, description)| RoleSpec {
        grants,
        tenants,
        description,
    });
    let key = (
        name(),
        vec(name(), 0..3),
        of(any::<u32>()),
        of(any::<u32>()),
        of(any::<u64>()),
        of(any::<u32>()),
        of(text()),
        of(name()),
        vec(name(), 0..3),
        budgets(),
    )
        .prop_map(|(tenant, models, rps, rpm, tpm, max_parallel, expires, team, roles, budgets)| {
            let hash = Some(format!("b3:{}", "0".repeat(64)));
            KeySpec {
                hash,
                tenant,
                models,
                rps,
                rpm,
                tpm,
                max_parallel,
                expires,
                team,
                roles,
                budgets,
                ..KeySpec::default()
            }
        });
    let limit =
        prop_oneof!["[0-9]{1,5} (tokens|requests)", "\\$[0-9]{1,4}(\\.[0-9]{1,9})?", text()].prop_map(LimitText);
    let period = prop_oneof![Just(Period::Total), Just(Period::Minute), Just(Period::Week), Just(Period::Month)];
    let budget = (of(limit), of(period), of(Just("Europe/Berlin".to_owned())))
        .prop_map(|(limit, window, timezone)| BudgetSpec { limit, window, timezone, ..BudgetSpec::default() });
    prop_oneof![
        provider().prop_map(|spec| Spec::Provider(Box::new(spec))),
        route().prop_map(|spec| Spec::Route(Box::new(spec))),
        price.prop_map(Spec::Price),
        model.prop_map(Spec::Model),
        tenant.prop_map(Spec::Tenant),
        role.prop_map(Spec::Role),
        key.prop_map(|spec| Spec::Key(Box::new(spec))),
        budget.prop_map(Spec::Budget),
    ]
}

proptest! {
    /// What is written is read as the same, and writing that gives the same text.
    #[test]
    fn every_resource_survives_the_journey(spec in spec()) {
        let text = spec.write("here").unwrap();
        let read = Spec::read(spec.kind(), &text).unwrap();
        prop_assert_eq!(&read, &spec);
        prop_assert_eq!(read.write("there").unwrap(), text);
    }

    /// Of a credential that stands in the file as a text, only the place travels.
    #[test]
    fn no_text_of_a_credential_travels(literal in "[a-zA-Z0-9]{12,30}", form in 0..3usize) {
        let written = match form {
            0 => literal.clone(),
            1 => format!("${{NAME:-{literal}}}"),
            _ => format!("{literal}${{NAME}}"),
        };
        let spec = ProviderSpec { api_keys: vec![SecretRef::text("${OK}"), SecretRef::text(written)], ..ProviderSpec::default() };
        let text = Spec::Provider(Box::new(spec)).write("openai").unwrap();
        prop_assert_eq!(&text, r#"{"api_keys":["${OK}",{"local":"openai/1"}]}"#);
    }
}

#[test]
fn what_is_as_by_default_is_not_written() {
    for kind in Kind::ALL {
        let spec = Spec::read(kind, "{}").unwrap();
        assert_eq!(spec.write("x").unwrap(), "{}", "{kind}");
    }
}

#[test]
fn fields_are_sorted_so_that_their_order_means_nothing() {
    let one = r#"{"headers":{"b":"1","a":"2"},"breaker":{"open_for":"1s"},"base_url":"https://h"}"#;
    let two = r#"{"base_url":"https://h","breaker":{"open_for":"1000ms"},"headers":{"a":"2","b":"1"}}"#;
    let write = |text| Spec::read(Kind::Providers, text).unwrap().write("x").unwrap();
    assert_eq!(write(one), write(two));
    assert_eq!(write(one), r#"{"base_url":"https://h","breaker":{"open_for":"1s"},"headers":{"a":"2","b":"1"}}"#);
}

/// The index counts as the file does: `local_credential` gives back what `local` stands for.
#[test]
fn a_local_reference_leads_back_to_the_text() {
    let [first, second] = ["sk-first", "sk-second"].map(SecretRef::text);
    let single = ProviderSpec { api_key: Some(first.clone()), ..ProviderSpec::default() };
    let several = ProviderSpec { api_keys: vec![first.clone(), second.clone()], ..ProviderSpec::default() };
    for (spec, wanted) in [(single, vec![first.clone()]), (several, vec![first, second])] {
        let text = Spec::Provider(Box::new(spec.clone())).write("p").unwrap();
        let Spec::Provider(travelled) = Spec::read(Kind::Providers, &text).unwrap() else { unreachable!() };
        let found: Vec<_> = travelled
            .credentials()
            .map(|secret| match secret.source() {
                SecretSource::Local { provider, index } if provider == "p" => {
                    spec.local_credential(*index).unwrap().clone()
                }
                SecretSource::Local { .. } | SecretSource::Text(_) | SecretSource::File(_) => secret.clone(),
            })
            .collect();
        assert!(found == wanted);
    }
}

#[test]
fn what_is_no_resource_is_refused() {
    for (kind, text) in [
        (Kind::Keys, "[]"),
        (Kind::Keys, r#"{"nmae":1}"#),
        (Kind::Routes, "nonsense"),
        (Kind::Providers, r#"{"api_key":{"local":"p"}}"#),
        (Kind::Providers, r#"{"api_key":{"local":"p/x"}}"#),
        (Kind::Providers, r#"{"api_key":{"file":"/a","local":"p/0"}}"#),
    ] {
        assert!(Spec::read(kind, text).is_err(), "{text}");
    }
    let all: BTreeMap<_, _> = Kind::ALL.into_iter().map(|kind| (kind.name(), kind)).collect();
    assert_eq!(all.len(), Kind::ALL.len());
    assert!(Kind::ALL.into_iter().all(|kind| Kind::parse(kind.name()) == Some(kind)));
    assert_eq!(Kind::parse("guards"), None);
}
