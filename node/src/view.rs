//! What the admin listener shows of the running node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use actors::breaker::Standing;
use actors::gate;
use actors::ingress::pipeline::Gateway;
use arc_swap::ArcSwap;
use cluster::clock;

use crate::admin::status::{BreakerStatus, CacheStatus, ConfigStatus, NodeStatus, ProviderStatus, Status};
use crate::admin::{Check, View};
use crate::config::load::Loaded;
use crate::member::Member;
use crate::run::Addresses;
use crate::telemetry::Telemetry;

pub struct NodeView {
    loaded: Arc<ArcSwap<Loaded>>,
    gateway: Arc<Gateway>,
    draining: Arc<AtomicBool>,
    addresses: Addresses,
    telemetry: Telemetry,
    started: Instant,
    member: Member,
}

impl NodeView {
    pub fn new(
        loaded: Arc<ArcSwap<Loaded>>,
        gateway: Arc<Gateway>,
        draining: Arc<AtomicBool>,
        addresses: Addresses,
        telemetry: Telemetry,
        member: Member,
    ) -> Self {
        Self { loaded, gateway, draining, addresses, telemetry, started: clock::now(), member }
    }

    fn providers(&self, now: Instant) -> Vec<ProviderStatus> {
        let directory = Arc::clone(&self.gateway.published.load().directory);
        let mut providers: Vec<_> = directory
            .providers()
            .map(|provider| ProviderStatus {
                name: provider.name.to_string(),
                kind: provider.kind.clone(),
                breaker: self.gateway.breakers.get(&provider.name).map_or(
                    BreakerStatus::Closed,
                    |breaker| match breaker.standing(now) {
                        Standing::Closed => BreakerStatus::Closed,
                        Standing::HalfOpen => BreakerStatus::HalfOpen,
                        Standing::Open { until } => BreakerStatus::Open { seconds_left: left(until, now) },
                        Standing::Throttled { until } => BreakerStatus::Throttled { seconds_left: left(until, now) },
                    },
                ),
            })
            .collect();
        providers.sort_by(|a, b| a.name.cmp(&b.name));
        providers
    }
}

/// Rounded up: 0 would say that it is over.
fn left(until: Instant, now: Instant) -> u64 {
    let left = until.saturating_duration_since(now);
    left.as_secs() + u64::from(left.subsec_nanos() > 0)
}

impl View for NodeView {
    fn checks(&self) -> Vec<Check> {
        let draining = self.draining.load(Ordering::Acquire);
        let providers = self.gateway.published.load().directory.providers().count();
        let waits_for = self.member.waits_for();
        let gate = self.gateway.gate.standing(clock::since_boot());
        vec![
            Check {
                name: "member",
                ok: waits_for.is_none(),
                detail: waits_for.map_or_else(|| "of its cluster".to_owned(), |what| format!("waits for: {what}")),
            },
            Check {
                name: "fresh",
                ok: gate == gate::Standing::Open,
                detail: match gate {
                    gate::Standing::Open => "what this node knows is current".to_owned(),
                    gate::Standing::Closed { why } => self.member.consensus().not_granted().map_or_else(
                        || format!("this node {}", why.words()),
                        |why| format!("this node is not granted to serve: {why}"),
                    ),
                },
            },
            Check {
                name: "serving",
                ok: !draining,
                detail: if draining { "draining: no new requests".to_owned() } else { "accepting requests".to_owned() },
            },
            Check { name: "providers", ok: providers > 0, detail: format!("{providers} configured") },
        ]
    }

    fn status(&self) -> Status {
        let now = clock::now();
        let loaded = self.loaded.load();
        let config = &loaded.config;
        let directory = Arc::clone(&self.gateway.published.load().directory);
        Status {
            node: NodeStatus {
                name: config.node.name.clone(),
                zone: config.node.zone.clone(),
                api: self.addresses.api,
                admin: self.addresses.admin,
            },
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: now.saturating_duration_since(self.started).as_secs(),
            draining: self.draining.load(Ordering::Acquire),
            config: ConfigStatus {
                hash: loaded.hash.clone(),
                revision: config.resources_revision,
                routes: directory.routes().count(),
                keys: directory.keys_len(),
            },
            requests_in_flight: self.gateway.queue.in_flight(),
            providers: self.providers(now),
            cache: CacheStatus {
                entries: self.gateway.cache.entries(),
                bytes: self.gateway.cache.bytes(),
                bytes_max: config.cache.bytes_max.as_u64(),
            },
            cluster: Some(self.member.status()),
        }
    }

    fn metrics(&self) -> String {
        self.telemetry.render()
    }
}
