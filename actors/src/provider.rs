//! Calls to providers: connections, credentials, time limits. Never retries, never judges: routing and breakers do.

mod client;
mod connect;
mod credentials;
pub mod metrics;
mod seal;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use ::metrics::{counter, histogram};
use arc_swap::ArcSwap;
use bytes::Bytes;
use cluster::directory::provider::Provider;
use cluster::directory::secret::SecretRef;
use http::{HeaderMap, HeaderName, HeaderValue, Response, Uri};
use llm::dialect::Dialect;
use llm::dialect::compatible::vendor;
use tokio::sync::Semaphore;
use tracing::debug;

pub use self::client::{BodyError, CallError, UpstreamBody, forwarded, retry_after};
pub use self::connect::{ConnectError, TrustError};
pub use self::credentials::{Credential, DEAD_FOR, Flag, Flagged, Secret, Standing};
pub use self::seal::Spend;

use self::client::{Client, Message, Open};
use self::connect::{Authority, Connector};
use self::credentials::{Credentials, Unsendable};
use self::metrics::{CALLS, CREDENTIALS_FLAGGED, HEAD_SECONDS};
use self::seal::{Held, Seal};
use crate::supervisor::Tasks;

/// Every provider's connections and credentials, replaced as a whole on a reload.
pub struct Providers {
    upstreams: ArcSwap<Upstreams>,
    tasks: Tasks,
}

type Upstreams = HashMap<Arc<str>, Arc<Upstream>>;

/// One call.
pub struct Call<'a> {
    pub provider: &'a Arc<Provider>,
    pub credential: &'a Credential,
    pub dialect: Dialect,
    /// Below the provider's base URL, with its slash.
    pub path: &'static str,
    pub body: Bytes,
    /// The client's. Only those on the list of [`forwarded`] are sent.
    pub headers: &'a HeaderMap,
    /// Whether events are asked for.
    pub stream: bool,
    /// When the head of the response must be there.
    pub head_by: Instant,
}

/// What became of a call. Both receipts come back: the reservation as a charge.
pub enum Outcome<C, A> {
    /// The head of a response, whatever its status. Redirects are not followed.
    Head {
        response: Response<UpstreamBody>,
        charge: C,
        admission: A,
    },
    Failed {
        error: CallError,
        charge: C,
        admission: A,
    },
}

/// Why a provider cannot be called at all. Names the provider, never a credential.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    #[error("provider `{provider}`: credential {index} is not to be found")]
    SecretMissing { provider: Arc<str>, index: usize },
    #[error("provider `{provider}`: credential {index} has characters that no header may have")]
    SecretUnsendable { provider: Arc<str>, index: usize },
    #[error("provider `{provider}` has no usable `ca`")]
    Trust {
        provider: Arc<str>,
        #[source]
        cause: TrustError,
    },
    #[error("provider `{provider}`: kind `{kind}` is not known")]
    UnknownKind { provider: Arc<str>, kind: String },
    #[error("provider `{provider}` needs a `base_url`")]
    NoUrl { provider: Arc<str> },
    #[error("provider `{provider}`: `{base_url}` is no URL")]
    BadUrl { provider: Arc<str>, base_url: String },
    #[error("provider `{provider}`: header `{header}` cannot be sent")]
    BadHeader { provider: Arc<str>, header: String },
}

impl ProviderError {
    /// Whose it is.
    pub fn provider(&self) -> &str {
        match self {
            Self::SecretMissing { provider, .. }
            | Self::SecretUnsendable { provider, .. }
            | Self::Trust { provider, .. }
            | Self::UnknownKind { provider, .. }
            | Self::NoUrl { provider }
            | Self::BadUrl { provider, .. }
            | Self::BadHeader { provider, .. } => provider,
        }
    }
}

impl Providers {
    /// Reads the `ca` files: not for the path of a request.
    pub fn new<'a>(
        providers: impl IntoIterator<Item = &'a Arc<Provider>>,
        secrets: &dyn Fn(&SecretRef) -> Option<String>,
        tasks: &Tasks,
    ) -> Result<Self, Vec<ProviderError>> {
        let upstreams = build(providers, secrets, &Upstreams::new(), tasks)?;
        Ok(Self { upstreams: ArcSwap::from_pointee(upstreams), tasks: tasks.clone() })
    }

    /// All or nothing. A provider whose connections would be made as before keeps them, and a credential that stays
    /// keeps its flag.
    pub fn reload<'a>(
        &self,
        providers: impl IntoIterator<Item = &'a Arc<Provider>>,
        secrets: &dyn Fn(&SecretRef) -> Option<String>,
    ) -> Result<(), Vec<ProviderError>> {
        let upstreams = build(providers, secrets, &self.upstreams.load(), &self.tasks)?;
        self.upstreams.store(Arc::new(upstreams));
        Ok(())
    }

    /// The next credential in turn that is neither flagged nor among those `tried`. A provider without credentials
    /// has one that sends nothing.
    pub fn pick(&self, provider: &str, tried: &[usize], now: Instant) -> Option<Credential> {
        self.upstreams.load().get(provider)?.credentials.pick(tried, now)
    }

    /// Leaves a credential out until `until`.
    pub fn flag(&self, provider: &Provider, credential: &Credential, flag: Flag, until: Instant) {
        credential.flag(flag, until);
        let provider = Arc::clone(&provider.name);
        counter!(CREDENTIALS_FLAGGED, "provider" => provider, "why" => flag.name()).increment(1);
    }

    /// What providers said of credentials to this node, and still counts. For other nodes.
    pub fn flagged_here(&self, now: Instant) -> Vec<(Arc<str>, Flagged)> {
        let upstreams = self.upstreams.load();
        let flagged = upstreams.iter().flat_map(|(provider, upstream)| {
            upstream.credentials.flagged_here(now).map(|flagged| (Arc::clone(provider), flagged))
        });
        flagged.collect()
    }

    /// Leaves out what a provider refused or throttled on another node.
    pub fn flag_elsewhere(&self, is_provider: impl Fn(&str) -> bool, flagged: Flagged) {
        let upstreams = self.upstreams.load();
        for (provider, upstream) in upstreams.iter().filter(|(provider, _upstream)| is_provider(provider)) {
            if upstream.credentials.flag_elsewhere(flagged) {
                debug!(%provider, why = flagged.flag.name(), "the provider flagged our credential on another node");
            }
        }
    }

    /// `None` for a provider that is not configured.
    pub fn standing(&self, provider: &str, now: Instant) -> Option<Standing> {
        Some(self.upstreams.load().get(provider)?.credentials.standing(now))
    }

    /// Sends one request and waits for the head of its response. Dropped on the way, it releases what was reserved if
    /// nothing was written, and charges it otherwise.
    pub async fn call<S: Spend, A>(&self, call: Call<'_>, spend: S, admission: A) -> Outcome<S::Charge, A> {
        let started = cluster::clock::now();
        let name = Arc::clone(&call.provider.name);
        let seal = Seal::default();
        let held = Held::new(spend, seal.clone());
        let upstream = self.upstreams.load().get(&name).map(Arc::clone);
        let result = match upstream {
            Some(upstream) => upstream.send(call, &seal).await,
            None => Err(CallError::Gone),
        };
        let charge = held.dispatch();
        let outcome = result.as_ref().map_or_else(CallError::name, |response| status_class(response.status().as_u16()));
        counter!(CALLS, "provider" => Arc::clone(&name), "outcome" => outcome).increment(1);
        match result {
            Ok(response) => {
                let waited = cluster::clock::now().saturating_duration_since(started);
                histogram!(HEAD_SECONDS, "provider" => name).record(waited);
                Outcome::Head { response, charge, admission }
            }
            Err(error) => Outcome::Failed { error, charge, admission },
        }
    }
}

/// One provider, ready to be called.
struct Upstream {
    provider: Arc<Provider>,
    base_url: String,
    ca: Option<Authority>,
    headers: HeaderMap,
    credentials: Credentials,
    client: Client,
    places: Arc<Semaphore>,
}

impl Upstream {
    async fn send(&self, call: Call<'_>, seal: &Seal) -> Result<Response<UpstreamBody>, CallError> {
        let uri = Uri::try_from(format!("{}{}", self.base_url, call.path)).map_err(|_invalid| CallError::BadUrl)?;
        let open = self.open(call.head_by).await?;
        let message = Message {
            uri,
            dialect: call.dialect,
            credential: call.credential,
            fixed: &self.headers,
            client: call.headers,
            stream: call.stream,
            body: call.body,
        };
        let response = self.client.send(message, seal, call.head_by).await?;
        Ok(response.map(|incoming| UpstreamBody::new(incoming, call.provider.timeouts.idle, open)))
    }

    /// Waits for a place no longer than for a connection.
    async fn open(&self, head_by: Instant) -> Result<Open, CallError> {
        let connections_max = self.provider.connections_max.get();
        let place = if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            place
        } else {
            let until = head_by.min(cluster::clock::now() + self.provider.timeouts.connect);
            let waited = tokio::time::timeout_at(until.into(), Arc::clone(&self.places).acquire_owned()).await;
            waited.ok().and_then(Result::ok).ok_or(CallError::Busy { connections_max })?
        };
        Ok(Open::new(place, &self.provider.name))
    }

    /// Whether connections made for this provider serve `other` as well.
    fn connects_as(&self, other: &Provider, base_url: &str, ca: Option<&Authority>) -> bool {
        self.base_url == base_url
            && self.ca.as_ref() == ca
            && self.provider.http2 == other.http2
            && self.provider.timeouts.connect == other.timeouts.connect
            && self.provider.connections_max == other.connections_max
    }
}

fn build<'a>(
    providers: impl IntoIterator<Item = &'a Arc<Provider>>,
    secrets: &dyn Fn(&SecretRef) -> Option<String>,
    before: &Upstreams,
    tasks: &Tasks,
) -> Result<Upstreams, Vec<ProviderError>> {
    let mut upstreams = Upstreams::new();
    let mut errors = Vec::new();
    for provider in providers {
        match upstream(provider, secrets, before.get(&provider.name).map(AsRef::as_ref), tasks) {
            Ok(upstream) => {
                upstreams.insert(Arc::clone(&provider.name), Arc::new(upstream));
            }
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(upstreams) } else { Err(errors) }
}

fn upstream(
    provider: &Arc<Provider>,
    secrets: &dyn Fn(&SecretRef) -> Option<String>,
    before: Option<&Upstream>,
    tasks: &Tasks,
) -> Result<Upstream, ProviderError> {
    let name = || Arc::clone(&provider.name);
    let vendor = vendor(&provider.kind)
        .ok_or_else(|| ProviderError::UnknownKind { provider: name(), kind: provider.kind.clone() })?;
    let base_url = provider.base_url.as_deref().or(vendor.base_url);
    let base_url = base_url.ok_or_else(|| ProviderError::NoUrl { provider: name() })?.to_owned();
    if !is_base_url(&base_url) {
        return Err(ProviderError::BadUrl { provider: name(), base_url });
    }
    let credentials = resolved(provider, secrets)?;
    let credentials = Credentials::new(&credentials, vendor.dialect, before.map(|before| &before.credentials))
        .map_err(|Unsendable { index }| ProviderError::SecretUnsendable { provider: name(), index })?;
    let distrusted = |cause| ProviderError::Trust { provider: name(), cause };
    let ca = provider.ca.as_deref().map(Authority::read).transpose().map_err(distrusted)?;
    let kept = before.filter(|before| before.connects_as(provider, &base_url, ca.as_ref()));
    let (client, places) = if let Some(before) = kept {
        (before.client.clone(), Arc::clone(&before.places))
    } else {
        let connector = Connector::new(provider.timeouts.connect, ca.as_ref(), provider.http2).map_err(distrusted)?;
        let connections_max = provider.connections_max.get() as usize;
        (Client::new(connector, connections_max, tasks), Arc::new(Semaphore::new(connections_max)))
    };
    let headers = fixed_headers(provider)?;
    Ok(Upstream { provider: Arc::clone(provider), base_url, ca, headers, credentials, client, places })
}

fn is_base_url(text: &str) -> bool {
    text.parse::<Uri>().is_ok_and(|uri| uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https")))
}

fn resolved(provider: &Provider, secrets: &dyn Fn(&SecretRef) -> Option<String>) -> Result<Vec<Secret>, ProviderError> {
    let found = provider.credential_refs.iter().enumerate().map(|(index, reference)| {
        let secret = secrets(reference).map(|text| Secret::new(&text));
        secret.ok_or_else(|| ProviderError::SecretMissing { provider: Arc::clone(&provider.name), index })
    });
    found.collect()
}

fn fixed_headers(provider: &Provider) -> Result<HeaderMap, ProviderError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &provider.headers {
        let header = HeaderName::try_from(name).ok().zip(HeaderValue::try_from(value).ok());
        let bad = || ProviderError::BadHeader { provider: Arc::clone(&provider.name), header: name.clone() };
        let (name, value) = header.ok_or_else(bad)?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// The outcome's label for a response.
fn status_class(status: u16) -> &'static str {
    match status {
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    }
}

#[cfg(test)]
mod tests;
