//! What is checked before a change is proposed: what resources mean, alone and together. Pure.

use std::collections::BTreeMap;

use super::command::{Kind, Origin};
use super::file::FileResources;
use super::{Register, Stored};
use crate::directory::problems::Problems;
use crate::directory::provider::{ProviderSpec, is_private};
use crate::directory::resources::Resources;
use crate::directory::secret::{SecretRef, SecretSource};
use crate::directory::wire::Spec;

/// A change that someone wants to make.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// `spec` is JSON as a client of the admin API wrote it.
    Put {
        kind: Kind,
        name: &'a str,
        spec: &'a str,
    },
    Delete {
        kind: Kind,
        name: &'a str,
    },
    /// Everything a file declares takes the place of what files declared before.
    File(&'a FileResources),
}

/// What only higher rooms know.
#[derive(Clone, Copy)]
pub struct Policy<'a> {
    /// Whether providers made through the API may be at private addresses. A file's may.
    pub allow_private_providers: bool,
    /// More about a provider made through the API: whether its kind exists.
    pub check_provider: &'a dyn Fn(&str, &ProviderSpec, &mut Problems),
}

/// A change that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What it was checked against: belongs into the command, which is refused if that has changed.
    pub shape: u64,
    /// Of [`Change::Put`]: the canonical text, which is what to propose.
    pub spec: Option<String>,
}

/// Everything that would be wrong after the change and is not wrong already. Whether the resource exists, at which
/// version and who declared it is for [`Register::apply`] to say.
pub fn validate(register: &Register, change: Change<'_>, policy: Policy<'_>) -> Result<Checked, Problems> {
    let mut resources = shape_of(register.shape());
    let before = problems_of(&resources);
    let mut problems = Problems::new();
    let mut spec = None;
    match change {
        Change::Put { kind, name, spec: text } => {
            let read = problems.within(kind.name(), |problems| {
                problems.within(name, |problems| check_put(kind, name, text, policy, problems))
            });
            if let Some((read, text)) = read {
                read.put(name, &mut resources);
                spec = Some(text);
            }
        }
        Change::Delete { kind, name } => {
            let kept = |(of, stored): &(Kind, Stored<'_>)| *of != kind || stored.name != name;
            resources = shape_of(register.shape().filter(kept));
        }
        Change::File(file) => {
            let kept = |(_kind, stored): &(Kind, Stored<'_>)| stored.origin == Origin::Api;
            resources = shape_of(register.shape().filter(kept));
            for ((kind, name), text) in file.declared() {
                match Spec::read(*kind, text) {
                    Ok(spec) => spec.put(name, &mut resources),
                    Err(error) => problems.within(kind.name(), |problems| {
                        problems.within(name, |problems| problems.add(&error.path, error.message()));
                    }),
                }
            }
        }
    }
    let mut after = Problems::new();
    resources.check(&mut after);
    for problem in after.into_vec() {
        let known = problems.iter().chain(before.iter()).any(|known| *known == problem);
        if !known {
            problems.push(problem);
        }
    }
    if problems.is_empty() { Ok(Checked { shape: register.shape_version(), spec }) } else { Err(problems) }
}

/// The resource alone, made through the API.
fn check_put(
    kind: Kind,
    name: &str,
    text: &str,
    policy: Policy<'_>,
    problems: &mut Problems,
) -> Option<(Spec, String)> {
    let spec = match Spec::read(kind, text) {
        Ok(spec) => spec,
        Err(error) => {
            problems.add(&error.path, error.message());
            return None;
        }
    };
    match &spec {
        Spec::Provider(provider) => {
            check_credentials(provider, problems);
            if let Some(base_url) = &provider.base_url
                && !policy.allow_private_providers
                && is_private(base_url)
            {
                let advice = "declare the provider in the file, or allow private addresses there";
                problems.add("base_url", format!("`{base_url}` is at a private address; {advice}"));
            }
            (policy.check_provider)(name, provider, problems);
        }
        Spec::Key(key) if key.secret.is_some() => {
            problems.add("secret", "never enters the directory; give the `hash` of the key's text");
        }
        Spec::Key(_)
        | Spec::Model(_)
        | Spec::Price(_)
        | Spec::Route(_)
        | Spec::Tenant(_)
        | Spec::Role(_)
        | Spec::Budget(_) => {}
    }
    match spec.write(name) {
        Ok(text) => Some((spec, text)),
        Err(error) => {
            problems.add("", error.to_string());
            None
        }
    }
}

/// Only references: a text would be on every node's disk.
fn check_credentials(provider: &ProviderSpec, problems: &mut Problems) {
    let check = |path: &str, secret: &SecretRef, problems: &mut Problems| {
        let reference = match secret.source() {
            SecretSource::File(_) => true,
            SecretSource::Text(_) => secret.is_none() || secret.pure_variable().is_some(),
            SecretSource::Local { .. } => false,
        };
        if !reference {
            let wanted = "wanted `${NAME}`, `{\"file\": PATH}` or `none`, which each node resolves";
            problems.add(path, format!("is not a reference, and no secret enters the directory; {wanted}"));
        }
    };
    if let Some(secret) = &provider.api_key {
        check("api_key", secret, problems);
    }
    problems.within("api_keys", |problems| {
        for (index, secret) in provider.api_keys.iter().enumerate() {
            check(&index.to_string(), secret, problems);
        }
    });
}

fn problems_of(resources: &Resources) -> Problems {
    let mut problems = Problems::new();
    resources.check(&mut problems);
    problems
}

/// What this program can read of them.
fn shape_of<'a>(stored: impl Iterator<Item = (Kind, Stored<'a>)>) -> Resources {
    let mut resources = Resources::default();
    for (kind, stored) in stored {
        if let Ok(spec) = Spec::read(kind, stored.spec) {
            spec.put(stored.name, &mut resources);
        }
    }
    resources
}

/// The first key in which a file differs from the one in force: `routes.support.targets`, or `routes.support` where
/// only one of them has that.
pub fn difference(register: &Register, file: &FileResources) -> Option<String> {
    let in_force = register.all().filter(|(_, stored)| stored.origin == Origin::File);
    let in_force: BTreeMap<_, _> =
        in_force.map(|(kind, stored)| ((kind, stored.name.to_owned()), stored.spec)).collect();
    let missing = in_force.keys().find(|key| !file.declared().contains_key(key));
    let differing = file.declared().iter().find(|(key, spec)| in_force.get(key) != Some(&spec.as_str()));
    let ((kind, name), field) = match (missing, differing) {
        (None, None) => return None,
        (Some(key), None) => (key, None),
        (missing, Some((key, spec))) => match missing {
            Some(missing) if missing < key => (missing, None),
            Some(_) | None => (key, in_force.get(key).and_then(|other| differing_field(spec, other))),
        },
    };
    Some(match field {
        Some(field) => format!("{kind}.{name}.{field}"),
        None => format!("{kind}.{name}"),
    })
}

fn differing_field(one: &str, other: &str) -> Option<String> {
    let read = |text: &str| serde_json::from_str::<BTreeMap<String, serde_json::Value>>(text).ok();
    let (one, other) = (read(one)?, read(other)?);
    one.keys().chain(other.keys()).find(|field| one.get(*field) != other.get(*field)).cloned()
}
