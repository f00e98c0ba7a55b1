//! The process: configuration, composition, what operators see, shutdown. [`Node`] is what it is composed to.

pub mod admin;
pub mod cli;
pub mod config;
pub mod demo;
pub mod output;
pub mod reference;
pub mod run;
pub mod signals;
pub mod simulator;
pub mod telemetry;
mod view;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actors::breaker::{Breakers, Policy};
use actors::cache::Cache;
use actors::gate::Gate;
use actors::identity::Identity;
use actors::ingress::Ingress;
use actors::ingress::pipeline::{Cuts, Gateway, Published};
use actors::ingress::tls::{Tls, TlsError};
use actors::provider::{ProviderError, Providers};
use actors::queue::Queue;
use actors::quota::Quota;
use actors::routing::Routing;
use actors::supervisor::{self, RestartPolicy, Supervisor, Tasks};
use admin::Admin;
use arc_swap::ArcSwap;
use cluster::clock;
use cluster::directory::secret::SecretRef;
use config::load::Loaded;
use config::{Auth, Config};
use http::HeaderValue;
use run::{Addresses, Service};
use telemetry::Telemetry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use view::NodeView;

/// How long actors and tasks may take to end once no request runs any more.
const STOP_MAX: Duration = Duration::from_secs(5);

/// A node that serves. Its parts, in the order they are started.
pub struct Node {
    tasks: Tasks,
    supervisor: Supervisor,
    gateway: Arc<Gateway>,
    ingress: Ingress,
    admin: SocketAddr,
    admin_stop: CancellationToken,
    loaded: Arc<ArcSwap<Loaded>>,
    draining: Arc<AtomicBool>,
}

/// Why a node did not start. What had been started ends with the process.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}; is another process using it?")]
    Listen {
        address: SocketAddr,
        #[source]
        cause: io::Error,
    },
    #[error("cannot accept on the API's address")]
    Accept(#[source] io::Error),
    #[error("TLS cannot be set up")]
    Tls(#[source] TlsError),
    #[error("an actor did not start")]
    Actor(#[source] supervisor::StartError),
    #[error("a provider cannot be used")]
    Provider(#[source] ApplyError),
    #[error("the system gives no randomness")]
    Randomness(#[source] getrandom::Error),
    #[error("`node.name` cannot stand in a header")]
    Name(#[source] http::header::InvalidHeaderValue),
}

/// Why another configuration was not put in force. The one before stays.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("{}", all(.0))]
    Providers(Vec<ProviderError>),
    #[error("a breaker did not start")]
    Breakers(#[source] supervisor::StartError),
}

fn all(errors: &[ProviderError]) -> String {
    errors.iter().map(|error| config::reload::describe(error)).collect::<Vec<_>>().join("; ")
}

impl Service for Node {
    type StartError = StartError;
    type ApplyError = ApplyError;

    async fn start(loaded: Arc<Loaded>, telemetry: Telemetry) -> Result<Self, StartError> {
        let config = &loaded.config;
        let tls = config.tls.as_ref().map(Tls::load).transpose().map_err(StartError::Tls)?.map(Arc::new);
        let api = listen(config.listen.api).await?;
        let operators = listen(config.listen.admin).await?;
        let admin = operators.local_addr().map_err(StartError::Accept)?;

        let tasks = Tasks::new();
        tasks.spawn_cancellable("metrics upkeep", |stop| {
            let upkeep = telemetry.clone().upkeep();
            async move {
                tokio::select! { () = stop.cancelled() => {}, () = upkeep => {} }
            }
        });
        let supervisor = Supervisor::start(RestartPolicy::default(), &tasks).await.map_err(StartError::Actor)?;
        let gateway = Arc::new(gateway(&loaded, &supervisor, &tasks).await?);
        let path = Arc::clone(&gateway);
        let handler = move |request, info| Arc::clone(&path).serve(request, info);
        let ingress =
            Ingress::start(vec![api], handler, config.limits.clone(), tls, &tasks).map_err(StartError::Accept)?;

        let loaded = Arc::new(ArcSwap::new(loaded));
        let draining = Arc::new(AtomicBool::new(false));
        let addresses = Addresses { api: first(&ingress), admin };
        let view =
            NodeView::new(Arc::clone(&loaded), Arc::clone(&gateway), Arc::clone(&draining), addresses, telemetry);
        let admin_stop = CancellationToken::new();
        let operate = Admin::new(Arc::new(view)).serve(operators, tasks.clone(), admin_stop.clone());
        tasks.spawn("admin accept", operate);
        Ok(Self { tasks, supervisor, gateway, ingress, admin, admin_stop, loaded, draining })
    }

    fn addresses(&self) -> Addresses {
        Addresses { api: first(&self.ingress), admin: self.admin }
    }

    /// Providers first, since only they can refuse; then everything a request reads, in one swap.
    async fn apply(&self, loaded: &Arc<Loaded>) -> Result<(), ApplyError> {
        let secrets = secrets_of(loaded);
        let providers: Vec<_> = loaded.directory.providers().cloned().collect();
        self.gateway.breakers.reconcile(policies(loaded)).await.map_err(ApplyError::Breakers)?;
        if let Err(errors) = self.gateway.providers.reload(&providers, &secrets) {
            let before = self.loaded.load();
            self.gateway.breakers.reconcile(policies(&before)).await.map_err(ApplyError::Breakers)?;
            return Err(ApplyError::Providers(errors));
        }
        self.gateway.published.store(Arc::new(published(loaded)));
        self.gateway.cache.resize(&loaded.config.cache);
        self.loaded.store(Arc::clone(loaded));
        Ok(())
    }

    async fn failed(&self) -> String {
        self.supervisor.failed().await.to_string()
    }

    /// Requests first, then what they live on. Operators can look until the end.
    async fn drain(&self) -> bool {
        self.draining.store(true, Ordering::Release);
        let drained = self.ingress.drain(self.gateway.limits.drain_timeout).await;
        self.admin_stop.cancel();
        let actors = self.supervisor.stop(STOP_MAX).await;
        let tasks = self.tasks.shutdown(STOP_MAX).await;
        if let Err(remaining) = &tasks {
            tracing::warn!(%remaining, "tasks did not end in time");
        }
        drained == actors::ingress::Drained::Whole && actors.is_ok() && tasks.is_ok()
    }
}

/// The path of a request, with all it needs.
async fn gateway(loaded: &Loaded, supervisor: &Supervisor, tasks: &Tasks) -> Result<Gateway, StartError> {
    let Config { node, limits, queue, cache, .. } = &loaded.config;
    let now = clock::now();
    let mut fingerprint_key = [0; 32];
    getrandom::fill(&mut fingerprint_key).map_err(StartError::Randomness)?;
    let providers: Vec<_> = loaded.directory.providers().cloned().collect();
    let providers = Providers::new(&providers, &secrets_of(loaded), tasks);
    Ok(Gateway {
        node: HeaderValue::from_str(&node.name).map_err(StartError::Name)?,
        gate: Gate::always_open(),
        published: Arc::new(ArcSwap::from_pointee(published(loaded))),
        cuts: Cuts::default(),
        limits: limits.clone(),
        breakers: Breakers::start(supervisor, policies(loaded)).await.map_err(StartError::Actor)?,
        providers: providers.map_err(|errors| StartError::Provider(ApplyError::Providers(errors)))?,
        queue: Queue::new(queue, now),
        quota: Quota::new(),
        cache: Cache::start(cache, supervisor).await.map_err(StartError::Actor)?,
        fingerprint_key,
        routing: Routing::new(getrandom::u64().map_err(StartError::Randomness)?, now),
        tasks: tasks.clone(),
    })
}

fn published(loaded: &Loaded) -> Published {
    let identity = match loaded.config.auth {
        Auth::Keys => Identity::Keys,
        Auth::None => Identity::Open,
    };
    Published { directory: Arc::clone(&loaded.directory), identity }
}

fn policies(loaded: &Loaded) -> impl Iterator<Item = (Arc<str>, Policy)> {
    loaded.directory.providers().map(|provider| (Arc::clone(&provider.name), provider.breaker))
}

fn secrets_of(loaded: &Loaded) -> impl Fn(&SecretRef) -> Option<String> {
    |reference| loaded.secrets.get(reference).map(|secret| secret.reveal().to_owned())
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|cause| StartError::Listen { address, cause })
}

fn first(ingress: &Ingress) -> SocketAddr {
    ingress.addresses().first().copied().unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)))
}
