//! What neither the schema nor a single room can say about a configuration.

use super::secret::Secrets;
use super::{Auth, Config, ListenConfig};
use cluster::directory::budget::OnNoQuorum;
use cluster::directory::problems::{Problems, nearest};
use cluster::directory::provider::ProviderSpec;
use cluster::directory::resources::Resources;
use cluster::directory::secret::SecretRef;
use cluster::peer::trust::ClusterSecret;
use llm::dialect::compatible::{vendor, vendors};
use std::net::SocketAddr;
use std::time::Duration;

impl Config {
    /// Problems of this node's sections and between rooms; those of the resources alone are told when a directory is
    /// built from them.
    pub fn check(&self, problems: &mut Problems) {
        self.check_later(problems);
        self.check_cluster(problems);
        self.check_overdrafts(problems);
        problems.within("node", |problems| self.check_node(problems));
        problems.within("listen", |problems| {
            self.listen.check(self.cluster.is_shared(), problems);
            self.check_exposure(problems);
        });
        problems.within("telemetry", |problems| self.telemetry.check(problems));
        problems.within("limits", |problems| self.limits.check(problems));
        self.check_kinds(problems);
    }

    fn check_later(&self, problems: &mut Problems) {
        self.guards.check("guards", problems);
    }

    /// What a node is to others rests on what it remembers, and on which file is the newer one.
    fn check_cluster(&self, problems: &mut Problems) {
        problems.within("cluster", |problems| self.cluster.check(&self.node.name, self.listen.peer, problems));
        if self.cluster.is_shared() && self.node.data_dir.is_none() {
            let advice = "name a folder that outlives the process, or the node is a new one after each restart";
            problems.within("node", |problems| problems.add("", format!("lacks `data_dir`; {advice}")));
        }
        let declares = self.resources != Resources::default();
        if self.cluster.names_others() && declares && self.resources_revision.is_none() {
            let advice = "start with `resources_revision: 1` and give the next number to each change of the resources";
            problems.add("", format!("lacks `resources_revision`, and `cluster` names other nodes; {advice}"));
        }
    }

    /// A node that is cut off stops serving, and would before it spends an overdraft.
    fn check_overdrafts(&self, problems: &mut Problems) {
        let stale_max = self.cluster.stale_max;
        if !self.cluster.is_shared() || stale_max >= OPEN_STALE_MIN {
            return;
        }
        problems.within("budgets", |problems| {
            for (name, budget) in &self.resources.budgets {
                if budget.on_no_quorum == OnNoQuorum::Open {
                    let advice = format!("`cluster.stale_max` is {stale_max:?}; make it {OPEN_STALE_MIN:?} or more");
                    let what = "`open` says nothing where a node stops serving so soon after it is cut off";
                    problems.within(name, |problems| problems.add("on_no_quorum", format!("{what}: {advice}")));
                }
            }
        });
    }

    fn check_node(&self, problems: &mut Problems) {
        let texts = [("name", Some(&self.node.name)), ("zone", self.node.zone.as_ref())];
        for (field, text) in texts.into_iter().filter_map(|(field, text)| text.map(|text| (field, text))) {
            let fits = !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(|b| b.is_ascii_graphic());
            if !fits {
                problems.add(field, format!("is no name; write 1 to {NAME_BYTES_MAX} visible ASCII characters"));
            }
        }
        if self.node.data_dir.as_ref().is_some_and(|folder| folder.as_os_str().is_empty()) {
            problems.add("data_dir", "is empty; name a folder");
        }
    }

    /// Without any key nobody is let in, and most likely someone meant to let anyone in. A node that remembers may have
    /// its keys from the admin API.
    fn check_exposure(&self, problems: &mut Problems) {
        let open_to_others = !self.listen.api.ip().is_loopback();
        let keyless = self.resources.keys.is_empty() && self.node.data_dir.is_none();
        if open_to_others && self.auth == Auth::Keys && keyless {
            let advice = "add `keys`, write `auth: none` if anyone may call, or listen on 127.0.0.1";
            problems.add("api", format!("is reachable from other machines, and there are no keys; {advice}"));
        }
    }

    /// The directory knows names, the `llm` room knows vendors; only here both are known.
    fn check_kinds(&self, problems: &mut Problems) {
        problems.within("providers", |problems| {
            for (name, provider) in &self.resources.providers {
                problems.within(name, |problems| check_kind(name, provider, problems));
            }
        });
    }
}

/// Whether it is known how to speak to this provider, and where.
pub fn check_kind(name: &str, provider: &ProviderSpec, problems: &mut Problems) {
    let kind = provider.kind.as_deref().unwrap_or(name);
    match vendor(kind) {
        Some(vendor) if vendor.base_url.is_none() && provider.base_url.is_none() => {
            problems.add("", format!("lacks `base_url`; providers of kind `{kind}` have no common address"));
        }
        Some(_) => {}
        None => unknown_kind(name, provider.kind.as_deref(), problems),
    }
}

/// Overdrafts begin when the ledger has not answered for three seconds; some time is to be left for them.
const OPEN_STALE_MIN: Duration = Duration::from_secs(10);

/// Bytes of a name that goes into headers and labels.
const NAME_BYTES_MAX: usize = 128;

impl ListenConfig {
    /// What is closed takes no port.
    fn check(&self, is_shared: bool, problems: &mut Problems) {
        let ports = [("api", self.api), ("admin", self.admin), ("peer", self.peer)];
        let ports = &ports[..if is_shared { 3 } else { 2 }];
        for (index, (name, address)) in ports.iter().enumerate() {
            let taken = ports[..index].iter().find(|(_, other)| collide(*other, *address));
            if let Some((other, at)) = taken {
                problems.add(name, format!("is {address}, and `{other}` is {at}; give each its own port"));
            }
        }
    }
}

/// Whether only one of them can be listened on.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let everywhere = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (everywhere || one.ip() == other.ip())
}

fn unknown_kind(name: &str, kind: Option<&str>, problems: &mut Problems) {
    let known = || vendors().iter().map(|vendor| vendor.kind);
    let advice = "use `kind: compatible` for anything that speaks OpenAI's API";
    let Some(kind) = kind else {
        let near = nearest(name, known()).map(|near| format!(" (`{near}`?)")).unwrap_or_default();
        problems.add("", format!("lacks `kind`, and `{name}` is no known one{near}; {advice}"));
        return;
    };
    if let Some(near) = nearest(kind, known()) {
        problems.add("kind", format!("`{kind}` is not known; did you mean `{near}`?"));
    } else {
        let known = known().collect::<Vec<_>>().join(", ");
        problems.add("kind", format!("`{kind}` is not known; known are {known}; {advice}"));
    }
}

/// Whether those of the cluster are what `cluster new-secret` prints. Says nothing of their text.
pub fn check_cluster_secrets(config: &Config, secrets: &Secrets, problems: &mut Problems) {
    let cluster = &config.cluster;
    let check = |path: &str, reference: &SecretRef, problems: &mut Problems| {
        let secret = secrets.get(reference).map(|secret| ClusterSecret::parse(secret.reveal()));
        if let Some(Err(error)) = secret {
            problems.add(path, error.to_string());
        }
    };
    problems.within("cluster", |problems| {
        if let Some(secret) = &cluster.secret {
            check("secret", secret, problems);
        }
        problems.within("secrets", |problems| {
            for (index, secret) in cluster.secrets.iter().enumerate() {
                check(&index.to_string(), secret, problems);
            }
        });
    });
}

/// Every secret the configuration refers to, with the words of its path.
pub fn secret_references(config: &Config) -> impl Iterator<Item = (Vec<String>, &SecretRef)> {
    let Config { resources, cluster, .. } = config;
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    let providers = resources.providers.iter().flat_map(move |(name, provider)| {
        let first = provider.api_key.iter().map(move |key| (words(&["providers", name, "api_key"]), key));
        let more = provider.api_keys.iter().enumerate();
        let more = more.map(move |(at, key)| (words(&["providers", name, "api_keys", &at.to_string()]), key));
        first.chain(more).filter(|(_, key)| !key.is_none())
    });
    let keys = resources
        .keys
        .iter()
        .filter_map(move |(name, key)| Some((words(&["keys", name, "secret"]), key.secret.as_ref()?)));
    let secret = cluster.secret.iter().map(move |secret| (words(&["cluster", "secret"]), secret));
    let secrets = cluster.secrets.iter().enumerate();
    let secrets = secrets.map(move |(at, secret)| (words(&["cluster", "secrets", &at.to_string()]), secret));
    providers.chain(keys).chain(secret).chain(secrets)
}
