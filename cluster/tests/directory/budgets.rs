//! Budgets as their users see them: what is written, what is wrong with it, what a call must then fit in.

use cluster::directory::budget::{Period, Unit};
use cluster::directory::key::{Key, KeyHash};
use cluster::directory::problems::Problems;
use cluster::directory::resources::Resources;

use super::{WEB_KEY, directory, problems, resources};

const BUDGETS: &str = r#"
providers:
  openai: { api_key: sk-openai, budgets: [vendor, all] }
  anthropic: { api_key: sk-anthropic }
models:
  openai/gpt-4o: { budgets: [large, all] }
  openai/o*: { budgets: [reasoning] }
tenants:
  acme:
    budgets: [acme-month]
    teams: { support: { budgets: [desk] }, sales: {} }
keys:
  web: { secret: "${WEB_KEY}", tenant: acme, team: support, budgets: [web-day, acme-month] }
budgets:
  acme-month: { limit: $50, window: month, timezone: Europe/Berlin }
  all: { limit: 2M tokens, window: week }
  desk: { limit: 5000 requests, window: hour }
  large: { limit: 50 USD, window: total }
  reasoning: { limit: $1, window: minute }
  vendor: { limit: $0.002, window: day }
  web-day: { limit: 100k tokens, window: day }
"#;

/// Of the provider, the model, the tenant, the team and the key, in this order and each once.
#[test]
fn a_call_has_the_budgets_of_all_that_take_part() {
    let directory = directory(BUDGETS);
    let web = directory.key(&KeyHash::of(WEB_KEY)).unwrap();
    let names = |key: &Key, provider, model| {
        let budgets = directory.budgets_of(key, provider, model).unwrap();
        budgets.iter().map(|budget| budget.name.to_string()).collect::<Vec<_>>().join(" ")
    };

    assert_eq!(names(web, "openai", "gpt-4o"), "vendor all large acme-month desk web-day");
    assert_eq!(names(web, "openai", "o3"), "vendor all reasoning acme-month desk web-day");
    assert_eq!(names(web, "anthropic", "gpt-4o"), "acme-month desk web-day");
    let sales = Key { team: Some("sales".into()), budgets: Box::default(), ..(**web).clone() };
    assert_eq!(names(&sales, "anthropic", "x"), "acme-month");
    assert_eq!(names(&Key::anonymous(), "anthropic", "x"), "");
}

#[test]
fn a_budget_is_read_as_it_is_meant() {
    let directory = directory(BUDGETS);
    let read = |name| {
        let budget = directory.budget(name).unwrap();
        (budget.limit.unit, budget.limit.amount, budget.period, budget.timezone.as_deref())
    };

    assert_eq!(read("acme-month"), (Unit::NanoUsd, 50_000_000_000, Period::Month, Some("Europe/Berlin")));
    assert_eq!(read("all"), (Unit::Tokens, 2_000_000, Period::Week, None));
    assert_eq!(read("desk"), (Unit::Requests, 5_000, Period::Hour, None));
    assert_eq!(read("large"), (Unit::NanoUsd, 50_000_000_000, Period::Total, None));
    assert_eq!(read("vendor"), (Unit::NanoUsd, 2_000_000, Period::Day, None));
    assert!(directory.budget("acme").is_none());
}

#[test]
fn budgets_that_do_not_fit_are_told() {
    let found = problems(
        r#"
providers: { openai: { budgets: [b, b] } }
models: { openai/x: { budgets: [month] } }
tenants: { acme: { budgets: [acme-moth], teams: { "a.b": { budgets: [none] } } } }
keys:
  web: { hash: "b3:0000000000000000000000000000000000000000000000000000000000000000", budgets: [b, 1, 2, 3, 4, 5, 6, 7, 8] }
budgets:
  "a*": { limit: $1, window: day }
  acme-month: { limit: 50, window: month, timezone: Europe/Berlln }
  b: { limit: $1, window: hour, timezone: UTC }
  bare: {}
  fine: { limit: $0.0000000001, window: day }
  half: { limit: 1.5 tokens, window: day }
"#,
    );
    let wanted = [
        "keys.web.budgets: are 9; 8 are allowed",
        "keys.web.budgets.1: there is no budget `1`",
        "keys.web.budgets.2: there is no budget `2`",
        "keys.web.budgets.3: there is no budget `3`",
        "keys.web.budgets.4: there is no budget `4`",
        "keys.web.budgets.5: there is no budget `5`",
        "keys.web.budgets.6: there is no budget `6`",
        "keys.web.budgets.7: there is no budget `7`",
        "keys.web.budgets.8: there is no budget `8`",
        "budgets.a*: has a `*`",
        "budgets.acme-month.limit: `50` does not say of what; wanted something like `$50`",
        "budgets.acme-month.timezone: `Europe/Berlln` is no time zone; wanted a name such as `Europe/Berlin`",
        "budgets.b.timezone: says nothing for this `window`",
        "budgets.bare.limit: is missing",
        "budgets.bare.window: is missing",
        "budgets.fine.limit: `$0.0000000001` has more than 9 digits",
        "budgets.half.limit: `1.5 tokens` is not a whole number of tokens",
        "providers.openai.budgets.1: `b` is listed twice",
        "models.openai/x.budgets.0: there is no budget `month`",
        "tenants.acme.budgets.0: there is no budget `acme-moth`; did you mean `acme-month`?",
        "tenants.acme.teams.a.b.budgets.0: there is no budget `none`",
    ];
    for (found, wanted) in found.iter().zip(wanted) {
        assert!(found.starts_with(wanted), "found  {found}\nwanted {wanted}");
    }
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
}

/// The path leads through the file word by word: names have dots in them.
#[test]
fn a_teams_budget_is_told_where_it_stands() {
    let mut problems = Problems::new();
    resources("tenants: { acme: { teams: { a.b: { budgets: [none] } } } }").check(&mut problems);
    assert_eq!(problems.into_vec()[0].path, ["tenants", "acme", "teams", "a.b", "budgets", "0"]);
}

/// A window, a mode or a field that is none is refused where it is read.
#[test]
fn unknown_words_and_fields_are_errors() {
    for yaml in [
        "tenants: { acme: { budgets: b } }",
        "budgets: { b: { limit: $1, window: year } }",
        "budgets: { b: { limit: $1, window: day, mode: strict } }",
        "budgets: { b: { limit: $1, period: day } }",
        "budgets: { b: { limit: [$1], window: day } }",
    ] {
        assert!(serde_saphyr::from_str::<Resources>(yaml).is_err(), "{yaml}");
    }
    let price = "{ assume: { input: $5 } }";
    let wrong = problems(&format!("budgets: {{ b: {{ limit: 9 tokens, window: day, on_unknown_price: {price} }} }}"));
    assert_eq!(
        wrong,
        [
            "budgets.b.on_unknown_price.assume.output: is missing; write `$0` where it costs nothing",
            "budgets.b.on_unknown_price: says nothing for a limit that is not in dollars; leave it out",
        ]
    );
}
