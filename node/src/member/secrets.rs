//! Which secrets of this machine a provider made through the admin API may use. Pure.
//!
//! Whoever may make providers chooses where their credentials are sent. What is not meant for providers must not be
//! nameable there: the cluster's secret stands in the same environment.

use std::path::{Component, Path};

use cluster::directory::problems::Problems;
use cluster::directory::provider::ProviderSpec;
use cluster::directory::secret::SecretRef;

use crate::config::Config;

/// Adds a problem for each credential that is not to be had this way.
pub fn check(config: &Config, spec: &ProviderSpec, problems: &mut Problems) {
    let single = spec.api_key.iter().map(|reference| ("api_key".to_owned(), reference));
    let several = spec.api_keys.iter().enumerate().map(|(index, reference)| (format!("api_keys.{index}"), reference));
    for (path, reference) in single.chain(several) {
        if !is_allowed(config, reference) {
            let place = reference.place();
            let message =
                format!("comes from {place}, which `admin.provider_secrets` of this node's file does not name");
            problems.add(&path, message);
        }
    }
}

/// Whether this node lets such a provider have it.
pub fn is_allowed(config: &Config, reference: &SecretRef) -> bool {
    // A text in the request itself is refused elsewhere, with better words.
    if reference.is_none() || reference.literal().is_some() {
        return true;
    }
    let mut providers = config.resources.providers.values();
    let in_file =
        providers.any(|provider| provider.api_key.iter().chain(&provider.api_keys).any(|own| own == reference));
    in_file || config.admin.provider_secrets.iter().any(|allowed| covers(allowed, reference))
}

fn covers(allowed: &str, reference: &SecretRef) -> bool {
    if let Some(name) = reference.pure_variable() {
        return match allowed.strip_suffix('*') {
            Some(start) => !start.contains('/') && name.starts_with(start),
            None => name == allowed,
        };
    }
    let Some(path) = reference.source().path() else { return false };
    // `..` would lead out of the folder that is named.
    let plain = path.components().all(|part| !matches!(part, Component::ParentDir));
    let covered = if allowed.ends_with('/') { path.starts_with(allowed) } else { path == Path::new(allowed) };
    allowed.starts_with('/') && plain && covered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(allowed: &[&str], reference: SecretRef) -> bool {
        let mut config = Config::default();
        config.admin.provider_secrets = allowed.iter().map(ToString::to_string).collect();
        let own = ProviderSpec { api_key: Some(SecretRef::text("${OWN_KEY}")), ..ProviderSpec::default() };
        config.resources.providers.insert("own".to_owned(), own);
        let spec = ProviderSpec { api_key: Some(reference), ..ProviderSpec::default() };
        let mut problems = Problems::new();
        check(&config, &spec, &mut problems);
        !problems.is_empty()
    }

    #[test]
    fn without_a_word_only_what_the_files_own_providers_use_is_to_be_had() {
        assert!(!refused(&[], SecretRef::text("none")));
        assert!(!refused(&[], SecretRef::text("${OWN_KEY}")));
        assert!(refused(&[], SecretRef::text("${CLUSTER_SECRET}")));
        assert!(refused(&[], SecretRef::file("/run/secrets/cluster")));
    }

    #[test]
    fn variables_are_named_whole_or_by_their_start() {
        assert!(!refused(&["GROQ_KEY"], SecretRef::text("${GROQ_KEY}")));
        assert!(refused(&["GROQ_KEY"], SecretRef::text("${GROQ_KEY_2}")));
        assert!(!refused(&["PROVIDER_*"], SecretRef::text("${PROVIDER_A}")));
        assert!(refused(&["PROVIDER_*"], SecretRef::text("${CLUSTER_SECRET:-x}")));
        assert!(refused(&["PROVIDER_*"], SecretRef::text("${PROVIDER_A}${CLUSTER_SECRET}")));
    }

    #[test]
    fn files_are_named_one_by_one_or_by_their_folder() {
        let folder = ["/run/secrets/providers/"];
        assert!(!refused(&folder, SecretRef::file("/run/secrets/providers/groq")));
        assert!(refused(&folder, SecretRef::file("/run/secrets/providers/../cluster")));
        assert!(refused(&folder, SecretRef::file("/run/secrets/providers-other/x")));
        assert!(!refused(&["/run/groq"], SecretRef::file("/run/groq")));
        assert!(refused(&["run/"], SecretRef::file("run/x")), "a folder is named from the root");
    }
}
