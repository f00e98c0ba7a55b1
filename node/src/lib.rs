//! The process: configuration, composition, what operators see, shutdown. [`Node`] is what it is composed to.

pub mod admin;
pub mod cli;
pub mod config;
pub mod demo;
pub mod member;
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
use member::{FileError, Member, MemberControl, MemberError, Publisher};
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
    member: Member,
    publisher: Publisher,
}

/// Why a node did not start. What had been started ends with the process.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address} (`{setting}`); is another process using it?")]
    Listen {
        setting: &'static str,
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
    #[error(transparent)]
    Member(#[from] MemberError),
}

/// Why another configuration was not put in force. The one before stays.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("{}", all(.0))]
    Providers(Vec<ProviderError>),
    #[error("what the file declares was not taken into force")]
    File(#[from] FileError),
}

fn all(errors: &[ProviderError]) -> String {
    errors.iter().map(|error| config::reload::describe(error)).collect::<Vec<_>>().join("; ")
}

impl Service for Node {
    type StartError = StartError;
    type ApplyError = ApplyError;

    async fn start(loaded: Arc<Loaded>, telemetry: Telemetry, adopt: bool) -> Result<Self, StartError> {
        let config = &loaded.config;
        let tls = config.tls.as_ref().map(Tls::load).transpose().map_err(StartError::Tls)?.map(Arc::new);
        let api = listen("listen.api", config.listen.api).await?;
        let operators = listen("listen.admin", config.listen.admin).await?;
        let admin = operators.local_addr().map_err(StartError::Accept)?;
        let live = Arc::new(ArcSwap::new(Arc::clone(&loaded)));
        let member = Member::open(&live, adopt).await?;

        let tasks = Tasks::new();
        tasks.spawn_cancellable("metrics upkeep", |stop| {
            let upkeep = telemetry.clone().upkeep();
            async move {
                tokio::select! { () = stop.cancelled() => {}, () = upkeep => {} }
            }
        });
        let supervisor = Supervisor::start(RestartPolicy::default(), &tasks).await.map_err(StartError::Actor)?;
        let gate = if member.is_shared() { Gate::closed() } else { Gate::always_open() };
        let quota = Quota::with(member::budgets::start(&member));
        let gateway = Arc::new(gateway(&loaded, gate, quota, &supervisor, &tasks).await?);
        member.cuts_at(&gateway);
        let publisher = belong(&member, &gateway, &live).await?;
        let path = Arc::clone(&gateway);
        let handler = move |request, info| Arc::clone(&path).serve(request, info);
        let ingress =
            Ingress::start(vec![api], handler, config.limits.clone(), tls, &tasks).map_err(StartError::Accept)?;

        let draining = Arc::new(AtomicBool::new(false));
        let addresses = Addresses { api: first(&ingress), admin };
        let view = NodeView::new(
            Arc::clone(&live),
            Arc::clone(&gateway),
            Arc::clone(&draining),
            addresses,
            telemetry,
            member.clone(),
        );
        let admin_stop = CancellationToken::new();
        let control = MemberControl::new(member.clone(), Arc::clone(&gateway));
        let operate = Admin::new(Arc::new(view)).with_control(Arc::new(control));
        tasks.spawn("admin accept", operate.serve(operators, tasks.clone(), admin_stop.clone()));
        Ok(Self { tasks, supervisor, gateway, ingress, admin, admin_stop, loaded: live, draining, member, publisher })
    }

    fn addresses(&self) -> Addresses {
        Addresses { api: first(&self.ingress), admin: self.admin }
    }

    fn waits_for(&self) -> Option<String> {
        self.member.phase().waits_for()
    }

    async fn told_to_leave(&self) {
        self.member.told_to_leave().await;
    }

    /// What this node alone can refuse comes first; then the resources, which the cluster may refuse; then the rest.
    async fn apply(&self, loaded: &Arc<Loaded>) -> Result<(), ApplyError> {
        let providers: Vec<_> = loaded.directory.providers().cloned().collect();
        Providers::new(&providers, &secrets_of(loaded), &self.tasks).map_err(ApplyError::Providers)?;
        let member = self.member.phase().waits_for().is_none();
        // Secrets first: what becomes known with the resources may refer to them.
        let before = self.loaded.swap(Arc::clone(loaded));
        if member && let Err(error) = self.member.declare_again(loaded).await {
            self.loaded.store(before);
            return Err(error.into());
        }
        self.member.reloaded();
        self.publisher.again();
        self.gateway.cache.resize(&loaded.config.cache);
        Ok(())
    }

    async fn failed(&self) -> String {
        tokio::select! {
            failed = self.supervisor.failed() => failed.to_string(),
            why = self.member.consensus().ended() => format!("consensus ended: {why}"),
        }
    }

    /// Requests first, then what they live on. Operators can look until the end.
    async fn drain(&self) -> bool {
        self.draining.store(true, Ordering::Release);
        self.member.drains();
        let drained = self.ingress.drain(self.gateway.limits.drain_timeout).await;
        self.admin_stop.cancel();
        if let Some(escrow) = self.gateway.quota.escrow() {
            self.member.settle_last(escrow).await;
        }
        let member = self.member.stop().await;
        let actors = self.supervisor.stop(STOP_MAX).await;
        let tasks = self.tasks.shutdown(STOP_MAX).await;
        if let Err(remaining) = &tasks {
            tracing::warn!(%remaining, "tasks did not end in time");
        }
        drained == actors::ingress::Drained::Whole && member && actors.is_ok() && tasks.is_ok()
    }
}

/// Publishes what the register says from now on. A node that is alone returns as a member whose file is in force; one
/// with others goes on looking for them while it already answers that it is not ready.
async fn belong(
    member: &Member,
    gateway: &Arc<Gateway>,
    loaded: &Arc<ArcSwap<Loaded>>,
) -> Result<Publisher, StartError> {
    if !member.is_shared() {
        member.belong().await?;
        let publisher = Publisher::start(member, gateway, loaded);
        // What the file says must not serve before what was revoked since is known.
        member.published().await;
        return Ok(publisher);
    }
    let publisher = Publisher::start(member, gateway, loaded);
    member.belong_in_time(gateway);
    Ok(publisher)
}

/// The path of a request, with all it needs.
async fn gateway(
    loaded: &Loaded,
    gate: Gate,
    quota: Quota,
    supervisor: &Supervisor,
    tasks: &Tasks,
) -> Result<Gateway, StartError> {
    let Config { node, limits, queue, cache, .. } = &loaded.config;
    let now = clock::now();
    let mut fingerprint_key = [0; 32];
    getrandom::fill(&mut fingerprint_key).map_err(StartError::Randomness)?;
    let providers: Vec<_> = loaded.directory.providers().cloned().collect();
    let providers = Providers::new(&providers, &secrets_of(loaded), tasks);
    Ok(Gateway {
        node: HeaderValue::from_str(&node.name).map_err(StartError::Name)?,
        gate,
        published: Arc::new(ArcSwap::from_pointee(published(loaded))),
        cuts: Cuts::default(),
        limits: limits.clone(),
        breakers: Breakers::start(supervisor, policies(loaded)).await.map_err(StartError::Actor)?,
        providers: providers.map_err(|errors| StartError::Provider(ApplyError::Providers(errors)))?,
        queue: Queue::new(queue, now),
        quota,
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

async fn listen(setting: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|cause| StartError::Listen { setting, address, cause })
}

fn first(ingress: &Ingress) -> SocketAddr {
    ingress.addresses().first().copied().unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)))
}
