//! Names that clients use for models, and what stands behind them.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::available::{Available, HasLater, Later};
use super::problems::Problems;

/// A name for models, and how a request under that name is answered. The name may end in `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RouteSpec {
    /// Where requests go: `provider/model`, or `{ target: provider/model, weight: 3 }`. In a route whose name ends in
    /// `*`, a model that ends in `*` stands for what the star matched.
    pub targets: Vec<TargetSpec>,

    /// How one of the targets is chosen.
    pub strategy: Available<Strategy>,

    /// Whether answers are kept and given again.
    pub cache: CacheSection,

    /// What happens when a target fails.
    pub retries: RetryConfig,

    /// What happens at the provider when the client hangs up.
    pub disconnect: Disconnect,

    /// For the whole request, over all attempts. Defaults to the node's limit.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub timeout: Option<Duration>,

    /// From the request to the first content of one attempt. Defaults to the provider's own.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub first_token_timeout: Option<Duration>,

    #[serde(skip_serializing)]
    #[schemars(skip)]
    pub guards: Later,
    #[serde(skip_serializing)]
    #[schemars(skip)]
    pub sticky: Later,
    #[serde(skip_serializing)]
    #[schemars(skip)]
    pub experiment: Later,
    #[serde(skip_serializing)]
    #[schemars(skip)]
    pub conditions: Later,
}

/// How one of several targets is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The first that is healthy, in the order given.
    #[default]
    Failover,
    /// Each in turn.
    RoundRobin,
    /// By chance, in proportion to the weights.
    Weighted,
}

impl HasLater for Strategy {
    const LATER: &'static [&'static str] = &["least_latency", "least_cost", "least_busy", "capability", "intelligent"];
}

/// Whether answers are kept and given again.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CacheSection {
    /// Nothing is cached unless this says so.
    pub mode: Available<CacheMode>,

    /// How long an answer is given again.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub ttl: Duration,

    /// Who shares answers.
    pub share: Available<CacheShare>,

    /// Whether answers that call tools are kept too.
    pub tool_calls: bool,

    /// Larger answers are not kept.
    #[schemars(with = "String")]
    pub answer_max: ByteSize,
}

/// When an answer is given again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheMode {
    /// Never.
    #[default]
    Off,
    /// To a request that is the same in everything that decides its answer.
    Exact,
}

impl HasLater for CacheMode {
    const LATER: &'static [&'static str] = &["semantic"];
}

/// Who shares cached answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheShare {
    /// All keys of a tenant.
    #[default]
    Tenant,
    /// Each key has its own.
    Key,
}

impl HasLater for CacheShare {
    const LATER: &'static [&'static str] = &["team"];
}

/// What happens when a target fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    /// Calls to providers that one request may cause, the first included.
    pub attempts_max: NonZeroU32,
}

/// What happens at the provider when the client hangs up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Disconnect {
    /// The call is cut, which ends its cost.
    #[default]
    Cancel,
    /// The answer is read to its end, so that it can be cached and its usage is known.
    Drain,
}

/// One model of one provider, and its share of the traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetSpec {
    /// `provider/model`.
    pub target: String,
    pub weight: u32,
}

impl Default for CacheSection {
    fn default() -> Self {
        Self {
            mode: Available::default(),
            ttl: Duration::from_hours(1),
            share: Available::default(),
            tool_calls: false,
            answer_max: ByteSize::mib(1),
        }
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { attempts_max: NonZeroU32::MIN.saturating_add(3) }
    }
}

impl RouteSpec {
    /// What can be said of the route alone; [`super::resources::Resources::check`] looks at what its targets name.
    pub fn check(&self, problems: &mut Problems) {
        self.check_targets(problems);
        self.strategy.check("strategy", problems);
        problems.within("cache", |problems| self.cache.check(problems));
        for (field, timeout) in [("timeout", self.timeout), ("first_token_timeout", self.first_token_timeout)] {
            if timeout.is_some_and(|timeout| timeout.is_zero()) {
                problems.add(field, "is 0s; nothing answers in no time");
            }
        }
        self.guards.check("guards", problems);
        self.sticky.check("sticky", problems);
        self.experiment.check("experiment", problems);
        self.conditions.check("conditions", problems);
    }

    fn check_targets(&self, problems: &mut Problems) {
        if self.targets.is_empty() {
            problems.add("targets", "is empty; a route leads somewhere");
            return;
        }
        if self.targets.iter().all(|target| target.weight == 0) {
            problems.add("targets", "have all weight 0; nothing would be chosen");
        }
        problems.within("targets", |problems| {
            for (index, target) in self.targets.iter().enumerate() {
                if self.targets[..index].iter().any(|earlier| earlier.target == target.target) {
                    problems.add(&index.to_string(), format!("`{}` is listed twice", target.target));
                }
                let weighted = matches!(self.strategy, Available::Now(Strategy::Weighted) | Available::Later(_));
                if target.weight != 1 && !weighted {
                    problems.add(&index.to_string(), "has a weight, which only `strategy: weighted` uses");
                }
            }
        });
    }
}

impl CacheSection {
    pub fn check(&self, problems: &mut Problems) {
        self.mode.check("mode", problems);
        self.share.check("share", problems);
        if self.ttl.is_zero() {
            problems.add("ttl", "is 0s; `mode: off` keeps nothing");
        }
        if self.answer_max.as_u64() == 0 {
            problems.add("answer_max", "is 0; `mode: off` keeps nothing");
        }
    }
}

impl TargetSpec {
    pub fn new(target: impl Into<String>) -> Self {
        Self { target: target.into(), weight: 1 }
    }
}

/// The long form of a target.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TargetForm {
    /// `provider/model`.
    target: String,
    /// Its share of the traffic; 0 takes none.
    #[serde(default = "one")]
    weight: u32,
}

const fn one() -> u32 {
    1
}

/// As short as it can be said.
impl Serialize for TargetSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.weight == one() {
            return serializer.serialize_str(&self.target);
        }
        TargetForm { target: self.target.clone(), weight: self.weight }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TargetSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TargetVisitor)
    }
}

struct TargetVisitor;

impl<'de> Visitor<'de> for TargetVisitor {
    type Value = TargetSpec;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`provider/model` or { target: provider/model, weight: 1 }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<TargetSpec, E> {
        Ok(TargetSpec::new(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TargetSpec, A::Error> {
        let TargetForm { target, weight } = TargetForm::deserialize(MapAccessDeserializer::new(map))?;
        Ok(TargetSpec { target, weight })
    }
}

impl JsonSchema for TargetSpec {
    fn schema_name() -> Cow<'static, str> {
        "Target".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let long = generator.subschema_for::<TargetForm>();
        schemars::json_schema!({ "anyOf": [{ "type": "string", "description": "`provider/model`." }, long] })
    }
}

/// A route as it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// As configured; for a route nobody configured, `provider/model`.
    pub name: Arc<str>,
    /// The name for metrics and logs: taken from the configuration, so the number of different ones is bounded.
    pub label: Arc<str>,
    /// At least one, unless all its providers were taken out of use.
    pub targets: Vec<Target>,
    pub strategy: Strategy,
    pub cache: CacheSpec,
    pub retries: RetryConfig,
    pub disconnect: Disconnect,
    pub timeout: Option<Duration>,
    pub first_token_timeout: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub provider: Arc<str>,
    /// The provider's own name for it.
    pub model: Arc<str>,
    pub weight: u32,
}

/// How a route caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    pub mode: CacheMode,
    pub ttl: Duration,
    pub share: CacheShare,
    pub tool_calls: bool,
    /// Bytes.
    pub answer_max: u64,
}

impl From<&CacheSection> for CacheSpec {
    fn from(section: &CacheSection) -> Self {
        Self {
            mode: section.mode.get(),
            ttl: section.ttl,
            share: section.share.get(),
            tool_calls: section.tool_calls,
            answer_max: section.answer_max.as_u64(),
        }
    }
}

impl Default for CacheSpec {
    fn default() -> Self {
        Self::from(&CacheSection::default())
    }
}

impl Route {
    /// A route nobody configured: one target, nothing cached, defaults for the rest.
    pub fn implicit(label: Arc<str>, provider: Arc<str>, model: &str) -> Self {
        Self {
            name: format!("{provider}/{model}").into(),
            label,
            targets: vec![Target { provider, model: model.into(), weight: one() }],
            strategy: Strategy::default(),
            cache: CacheSpec::default(),
            retries: RetryConfig::default(),
            disconnect: Disconnect::default(),
            timeout: None,
            first_token_timeout: None,
        }
    }
}
