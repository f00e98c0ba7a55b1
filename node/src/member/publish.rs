//! From the register to what requests read: a directory, clients and breakers for its providers.
//!
//! An entry counts as published when every request that arrives from then on sees what it changed: freshness and the
//! barrier of P-REVOKE stand on that.

use std::collections::HashSet;
use std::sync::Arc;

use actors::ingress::pipeline::{Gateway, Published};
use actors::quota::shared;
use arc_swap::ArcSwap;
use cluster::directory::Directory;
use cluster::directory::provider::Provider;
use cluster::directory::secret::{SecretRef, SecretSource};
use cluster::directory::wire::Spec;
use cluster::register::{Kind, Origin, Register};
use tokio::sync::Notify;
use tracing::{error, warn};

use super::{Member, secrets};
use crate::config::environment;
use crate::config::load::Loaded;
use crate::config::reload::describe;
use crate::config::secret::resolve;

/// Follows the register. Cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    member: Member,
    gateway: Arc<Gateway>,
    loaded: Arc<ArcSwap<Loaded>>,
    /// Secrets of this node's file changed: clients are made anew although the register did not change.
    again: Arc<Notify>,
}

impl Publisher {
    /// Starts to follow, until the node ends.
    pub fn start(member: &Member, gateway: &Arc<Gateway>, loaded: &Arc<ArcSwap<Loaded>>) -> Self {
        let publisher = Self {
            member: member.clone(),
            gateway: Arc::clone(gateway),
            loaded: Arc::clone(loaded),
            again: Arc::new(Notify::new()),
        };
        member.0.tasks.spawn("publishing", publisher.clone().follow());
        publisher
    }

    /// This node's own file changed.
    pub fn again(&self) {
        self.again.notify_one();
    }

    async fn follow(self) {
        let mut progress = self.member.0.consensus.progress();
        let mut known: Option<Arc<Directory>> = None;
        let mut generation = None;
        let mut anew = false;
        // Whose secrets the clients were made with.
        let mut connected: Option<Arc<Loaded>> = None;
        loop {
            let applied = progress.borrow_and_update().applied;
            if let Some(index) = applied {
                let cut = self.member.take_cut();
                let next = Arc::new(self.member.0.consensus.read(|register| register.directory(known.as_deref())));
                let same_shape = known.as_ref().is_some_and(|known| Arc::ptr_eq(known.shape(), next.shape()));
                // What a file declares is not seen before its secrets are in use.
                let loaded = self.loaded.load_full();
                let same_secrets = connected.as_ref().is_some_and(|before| Arc::ptr_eq(before, &loaded));
                if !same_shape || !same_secrets || anew {
                    self.connect(&next, &loaded).await;
                    connected = Some(loaded);
                }
                let identity = self.gateway.published.load().identity;
                self.gateway.published.store(Arc::new(Published { directory: Arc::clone(&next), identity }));
                // Once more: who looked its key up in what was published until now may not have heard of it.
                for key in cut {
                    self.gateway.cuts.cut(key);
                }
                known = Some(next);
                let places = self.member.0.consensus.read(|register| shared::places(register, generation));
                if let (Some((now, places)), Some(escrow)) = (places, self.gateway.quota.escrow()) {
                    generation = Some(now);
                    escrow.publish(places);
                }
                self.member.0.published.send_replace(index);
            }
            anew = tokio::select! {
                changed = progress.changed() => match changed {
                    Ok(()) => false,
                    Err(_ended) => return,
                },
                () = self.again.notified() => true,
            };
        }
    }

    /// Clients and breakers for every provider that can be used from here. One that cannot is left without.
    async fn connect(&self, directory: &Directory, loaded: &Loaded) {
        for problem in directory.complaints().iter() {
            warn!(%problem, "a resource of the cluster is left out here");
        }
        let declared = self.member.0.consensus.read(declared_references);
        let secrets = |reference: &SecretRef| {
            if declared.contains(reference) || secrets::is_allowed(&loaded.config, reference) {
                return secret(loaded, reference);
            }
            warn!(
                place = reference.place(),
                "this node's `admin.provider_secrets` does not name what a provider wants"
            );
            None
        };
        let mut providers: Vec<Arc<Provider>> = directory.providers().cloned().collect();
        let policies: Vec<_> =
            providers.iter().map(|provider| (Arc::clone(&provider.name), provider.breaker)).collect();
        if let Err(failed) = self.gateway.breakers.reconcile(policies).await {
            error!(error = describe(&failed), "breakers stay as they were");
        }
        while let Err(errors) = self.gateway.providers.reload(&providers, &secrets) {
            let before = providers.len();
            for failed in &errors {
                error!(
                    provider = failed.provider(),
                    error = describe(failed),
                    "a provider cannot be used from this node"
                );
            }
            providers.retain(|provider| errors.iter().all(|failed| failed.provider() != &*provider.name));
            if providers.len() == before {
                return error!("providers stay as they were");
            }
        }
    }
}

/// What providers of a configuration file refer to. What those made through the API may use is for each node to say.
fn declared_references(register: &Register) -> HashSet<SecretRef> {
    let declared = register.list(Kind::Providers, None).filter(|stored| stored.origin == Origin::File);
    let mut references = HashSet::new();
    for stored in declared {
        if let Ok(Spec::Provider(spec)) = Spec::read(Kind::Providers, stored.spec) {
            references.extend(spec.api_key.into_iter().chain(spec.api_keys));
        }
    }
    references
}

/// What a reference stands for on this node: what its own file said, or what is found when looked for now.
fn secret(loaded: &Loaded, reference: &SecretRef) -> Option<String> {
    let own = match reference.source() {
        SecretSource::Local { provider, index } => {
            let spec = loaded.config.resources.providers.get(provider)?;
            let local = spec.api_key.iter().chain(&spec.api_keys).nth(*index)?;
            return Some(loaded.secrets.get(local)?.reveal().to_owned());
        }
        SecretSource::Text(_) | SecretSource::File(_) => loaded.secrets.get(reference),
    };
    if let Some(own) = own {
        return Some(own.reveal().to_owned());
    }
    match resolve(reference, &environment::process) {
        Ok(secret) => Some(secret.reveal().to_owned()),
        Err(errors) => {
            for error in errors {
                warn!(error = describe(&error), "a secret of the cluster's providers is not to be had on this node");
            }
            None
        }
    }
}
