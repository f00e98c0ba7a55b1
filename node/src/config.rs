//! The one configuration file. Each room owns its section; here they are composed.

pub mod check;
pub mod environment;
pub mod fit;
pub mod load;
pub mod problem;
pub mod reload;
pub mod secret;
pub mod tree;

use crate::telemetry::TelemetryConfig;
use actors::cache::CacheConfig;
use actors::ingress::connection::LimitsConfig;
use actors::ingress::tls::TlsConfig;
use actors::queue::QueueConfig;
use cluster::config::ClusterConfig;
use cluster::directory::available::Later;
use cluster::directory::resources::Resources;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The whole file: how this node runs, and the resources.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Who this node is.
    pub node: NodeConfig,

    /// Where it can be reached.
    pub listen: ListenConfig,

    /// Whether callers need a key. Changes at a restart.
    pub auth: Auth,

    /// TLS on the API listener; without it the API speaks plain HTTP. Changes at a restart; the certificate itself is
    /// read again whenever it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,

    /// What a client may take of this node. Changes at a restart.
    pub limits: LimitsConfig,

    /// How much work this node takes on. Changes at a restart.
    pub queue: QueueConfig,

    /// What this node tells about itself.
    pub telemetry: TelemetryConfig,

    /// The memory for cached answers; whether a route uses it is said there.
    pub cache: CacheConfig,

    /// The nodes this one shares keys, limits and configuration with.
    pub cluster: ClusterConfig,

    /// What operators may do through the admin listener. Changes at a restart.
    pub admin: AdminConfig,

    /// Which revision of the resources this file holds; shown by `status`. Give the next number to each change. Needed
    /// where `cluster` names other nodes and the file has resources: of two files the higher revision holds for all
    /// nodes, so that a change may be rolled out node by node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources_revision: Option<u64>,

    /// Stand at the top level of the file, next to the sections above.
    #[serde(skip)]
    pub resources: Resources,

    #[serde(skip_serializing)]
    #[schemars(skip)]
    guards: Later,
}

/// Who this node is. Changes at a restart.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Its name: in logs, in `status` and in the `x-lea-node` header.
    pub name: String,

    /// Where it stands: a rack, a data centre, a region. Shown by `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,

    /// The folder for what survives a restart: who this node is, and what was made through the admin API. It is made
    /// if need be. Left out, that lives in a temporary folder and ends with the process. Needed with `cluster.secret`;
    /// each node has its own, and a copy of one is no second node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
}

/// Where this node can be reached. Changes at a restart.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListenConfig {
    /// Address and port of the API that applications call. An address other machines can reach needs `keys`, or
    /// `auth: none` if anyone may call.
    pub api: SocketAddr,

    /// Address and port for operators. `/livez`, `/readyz`, `/health`, `/metrics` and `/status` need no key,
    /// `/admin/v1` needs one with a role. Plain HTTP: keep it where only they can reach it.
    pub admin: SocketAddr,

    /// Address and port (TCP) for the other nodes of the cluster. Closed without `cluster.secret`.
    pub peer: SocketAddr,

    /// Address and port (UDP) on which nodes tell one another how they are. Closed without `cluster.secret`.
    pub gossip: SocketAddr,
}

/// What operators may do through the admin listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Whether a provider made through the admin API may have a private address (10.x, 192.168.x, 127.x, `localhost`
    /// and the like). Whoever may make providers could otherwise reach what only this machine can. Providers in this
    /// file may always have one.
    pub allow_private_providers: bool,

    /// Where a provider made through the admin API may take its credential from: environment variables (`OPENAI_API_KEY`,
    /// `PROVIDER_*`) and files, or folders with a slash at their end. Empty: only what providers in this file use.
    /// Whoever may make providers could otherwise send any secret of this machine to an address of his own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub provider_secrets: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    /// Only with one of `keys`.
    #[default]
    Keys,
    /// Anyone who can reach the API may call. Whoever calls belongs to the tenant `default`.
    None,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self { name: "edge-0".to_owned(), zone: None, data_dir: None }
    }
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            api: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin: SocketAddr::from(([127, 0, 0, 1], 8081)),
            peer: SocketAddr::from(([0, 0, 0, 0], 7947)),
            gossip: SocketAddr::from(([0, 0, 0, 0], 7946)),
        }
    }
}

impl Config {
    /// Takes over from `running` what cannot change while the process runs, and names what the file wanted otherwise.
    /// So what is published is what is in force. `auth` is among them because it was weighed together with
    /// `listen.api`: opening the API while it still listens to everyone would be neither the old file nor the new.
    pub fn keep_running(&mut self, running: &Self) -> Vec<&'static str> {
        let mut kept = Vec::new();
        let mut keep = |name, differs: bool| {
            if differs {
                kept.push(name);
            }
        };
        keep("node", self.node != running.node);
        keep("listen", self.listen != running.listen);
        keep("auth", self.auth != running.auth);
        keep("tls", self.tls != running.tls);
        keep("limits", self.limits != running.limits);
        keep("queue", self.queue != running.queue);
        keep("cluster", self.cluster != running.cluster);
        keep("admin", self.admin != running.admin);
        keep("telemetry.log", self.telemetry.log != running.telemetry.log);
        self.node.clone_from(&running.node);
        self.listen.clone_from(&running.listen);
        self.auth = running.auth;
        self.tls.clone_from(&running.tls);
        self.limits.clone_from(&running.limits);
        self.queue = running.queue;
        self.cluster.clone_from(&running.cluster);
        self.admin.clone_from(&running.admin);
        self.telemetry.log = running.telemetry.log;
        kept
    }
}

/// The schema of the whole file: this node's sections and the resources side by side, as they are written.
pub fn schema() -> Json {
    let mut generator = SchemaSettings::draft2020_12().for_deserialize().into_generator();
    let mut whole = resolved::<Config>(&mut generator);
    let resources = resolved::<Resources>(&mut generator);
    if let (Some(into), Some(from)) = (properties(&mut whole), resources.get("properties").and_then(Json::as_object)) {
        into.extend(from.clone());
    }
    let definitions = generator.take_definitions(true);
    whole.insert("$defs".to_owned(), Json::Object(definitions));
    whole.to_value()
}

fn properties(schema: &mut Schema) -> Option<&mut serde_json::Map<String, Json>> {
    schema.get_mut("properties").and_then(Json::as_object_mut)
}

fn resolved<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}
