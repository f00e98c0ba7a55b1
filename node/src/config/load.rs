//! From a file to a configuration that can be used, or to everything that is wrong with it.

use super::check::{check_cluster_secrets, secret_references};
use super::environment::Lookup;
use super::fit::{Fitted, fit};
use super::problem::{Problem, Report};
use super::secret::{Secrets, resolve};
use super::tree::{FILE_BYTES_MAX, Node, Path, Place, parse};
use super::{Config, schema};
use cluster::directory::Directory;
use cluster::directory::problems::{Problems, words_of};
use cluster::directory::resources::Resources;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

/// Problems of one file that are told; what is wrong beyond them is told once these are solved.
const PROBLEMS_MAX: usize = 200;

/// A configuration that has passed every check, with what it refers to.
pub struct Loaded {
    pub config: Config,
    pub directory: Arc<Directory>,
    pub secrets: Secrets,
    /// BLAKE3 of the file's bytes, shortened: tells two files apart.
    pub hash: String,
    /// Every file it was read from; a change in any of them is a change of the configuration.
    pub files: Vec<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read `{}`", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },

    #[error("`{}` is larger than {FILE_BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },

    #[error(transparent)]
    Invalid(#[from] Report),
}

/// Reads and checks the file. Changes nothing; blocks on the disk.
pub fn load(path: &FilePath, lookup: Lookup<'_>) -> Result<Loaded, LoadError> {
    let mut loaded = read(&path.display().to_string(), &bytes_of(path)?, lookup)?;
    loaded.files.push(path.to_owned());
    Ok(loaded)
}

/// This node's sections as far as they can be read, without the resources, and without looking up a secret: enough to
/// find the node on its machine.
pub fn glance(path: &FilePath, lookup: Lookup<'_>) -> Result<Config, LoadError> {
    let name = path.display().to_string();
    let bytes = bytes_of(path)?;
    let text = std::str::from_utf8(&bytes);
    let text = text.map_err(|error| Report::new(&name, vec![not_utf8(&bytes, error.valid_up_to())]))?;
    let tree = parse(text).map_err(|problems| Report::new(&name, problems))?;
    let Fitted { json, problems, complaints, left_out, .. } = fit(&tree, &schema(), lookup);
    let mut findings = Findings { tree: &tree, problems, complaints, left_out, told: Vec::new() };
    Ok(findings.deserialize(&mut split(json).0))
}

fn bytes_of(path: &FilePath) -> Result<Vec<u8>, LoadError> {
    let unreadable = |cause| LoadError::Unreadable { path: path.to_owned(), cause };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(LoadError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// As [`load`], from bytes. `name` is what the report calls them.
pub fn read(name: &str, bytes: &[u8], lookup: Lookup<'_>) -> Result<Loaded, Report> {
    let text =
        std::str::from_utf8(bytes).map_err(|error| Report::new(name, vec![not_utf8(bytes, error.valid_up_to())]))?;
    let tree = parse(text).map_err(|problems| Report::new(name, problems))?;
    let Fitted { json, problems, complaints, left_out, used } = fit(&tree, &schema(), lookup);
    let mut findings = Findings { tree: &tree, problems, complaints, left_out, told: Vec::new() };
    let (mut node, mut resources) = split(json);
    let mut config: Config = findings.deserialize(&mut node);
    config.resources = findings.deserialize(&mut resources);

    let mut problems = Problems::new();
    config.check(&mut problems);
    let secrets = findings.secrets(&config, lookup);
    check_cluster_secrets(&config, &secrets, &mut problems);
    let text_of = |reference: &_| secrets.get(reference).map(|secret| secret.reveal().to_owned());
    let directory = Directory::build(&config.resources, &text_of);
    findings.add(problems);
    match directory {
        Ok(directory) if findings.problems.is_empty() => {
            let files = secrets.files().map(FilePath::to_owned).collect();
            let hash = blake3::hash(bytes).to_hex()[..12].to_owned();
            return Ok(Loaded { config, directory: Arc::new(directory), secrets, hash, files });
        }
        Ok(_) => {}
        Err(problems) => findings.add(problems),
    }
    Err(findings.report(name, &used))
}

fn not_utf8(bytes: &[u8], valid: usize) -> Problem {
    let before = &bytes[..valid];
    let line = before.split(|byte| *byte == b'\n').count();
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
    Place { line, column }.problem(&Path::default(), "is not UTF-8 text; save the file as UTF-8")
}

/// What is wrong so far, and what was left out because of it.
struct Findings<'a> {
    tree: &'a Node,
    problems: Vec<Problem>,
    complaints: HashMap<Path, String>,
    /// No longer part of what is looked at.
    left_out: Vec<Path>,
    /// Still part of it, but not to be told again.
    told: Vec<Path>,
}

impl Findings<'_> {
    /// Deserializes what fits. What does not is told and left out, and the rest is tried again: one wrong value hides
    /// no other.
    fn deserialize<T: DeserializeOwned + Default>(&mut self, json: &mut Json) -> T {
        while self.problems.len() < PROBLEMS_MAX {
            let error = match serde_path_to_error::deserialize(&*json) {
                Ok(value) => return value,
                Err(error) => error,
            };
            let words = words_of(error.path());
            let path = self.tree.path_of(&words, &self.left_out);
            // A value that lacks what was left out of it has its problem already.
            if !self.left_out.iter().any(|earlier| earlier.starts_with(&path)) {
                let message = self.complaints.get(&path).cloned();
                self.add_at(&path, message.unwrap_or_else(|| in_our_words(&error.into_inner().to_string())));
            }
            self.left_out.push(path);
            if !remove(json, &words) {
                break;
            }
        }
        T::default()
    }

    /// Takes over what the rooms found, except what follows from a problem already told.
    fn add(&mut self, found: Problems) {
        for problem in found.into_vec() {
            let path = self.tree.path_of(&problem.path, &self.left_out);
            let follows = self.left_out.iter().chain(&self.told).any(|out| {
                let named = (out.0.len() == 2).then(|| out.last_key()).flatten();
                let refers = named.is_some_and(|name| {
                    problem.message.contains(&format!("`{name}`")) || problem.message.contains(&format!("`{name}/"))
                });
                path.starts_with(out) || out.parent().is_some_and(|parent| parent == path) || refers
            });
            if !follows {
                self.add_at(&path, problem.message);
            }
        }
    }

    fn add_at(&mut self, path: &Path, message: String) {
        self.problems.push(self.tree.place_of(path).problem(path, message));
    }

    /// Finds every secret that the configuration refers to.
    fn secrets(&mut self, config: &Config, lookup: Lookup<'_>) -> Secrets {
        let mut secrets = Secrets::default();
        for (words, reference) in secret_references(config) {
            match resolve(reference, lookup) {
                Ok(secret) => secrets.insert(reference.clone(), secret),
                Err(errors) => {
                    let path = self.tree.path_of(&words, &self.left_out);
                    for error in errors {
                        self.add_at(&path, error.to_string());
                    }
                    self.told.push(path);
                }
            }
        }
        secrets
    }

    /// A variable may hold a secret that was put in the wrong field: no message repeats a value.
    fn report(mut self, name: &str, used: &[(String, String)]) -> Report {
        for problem in &mut self.problems {
            for (variable, value) in used.iter().filter(|(_, value)| value.len() >= 8) {
                problem.message = problem.message.replace(value, &format!("${{{variable}}}"));
            }
        }
        let mut report = Report::new(name, self.problems);
        report.problems.truncate(PROBLEMS_MAX);
        report
    }
}

/// The sections of this node, and the resources next to them.
fn split(json: Json) -> (Json, Json) {
    let schema = schemars::schema_for!(Resources);
    let names = schema.get("properties").and_then(Json::as_object);
    let (mut node, mut resources) = (Map::new(), Map::new());
    if let Json::Object(entries) = json {
        for (key, value) in entries {
            let belongs = names.is_some_and(|names| names.contains_key(&key));
            (if belongs { &mut resources } else { &mut node }).insert(key, value);
        }
    }
    (Json::Object(node), Json::Object(resources))
}

/// The commonest of serde's sentences, as the other problems are worded.
fn in_our_words(message: &str) -> String {
    let value = message.strip_prefix("invalid value: string ").and_then(|rest| rest.split_once(", expected "));
    match value {
        Some((value, expected)) => format!("is `{}`; expected {expected}", value.trim_matches('"')),
        None => message.to_owned(),
    }
}

/// Takes the value out; of something that is not there, the nearest thing round it. False when nothing was left to
/// take out.
fn remove(json: &mut Json, words: &[String]) -> bool {
    let Some((last, before)) = words.split_last() else {
        return false;
    };
    let mut parent = &mut *json;
    for word in before {
        let next = match parent {
            Json::Object(map) => map.get_mut(word),
            Json::Array(items) => word.parse::<usize>().ok().and_then(|index| items.get_mut(index)),
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => None,
        };
        match next {
            Some(next) => parent = next,
            None => return remove(json, before),
        }
    }
    let taken = match parent {
        Json::Object(map) => map.shift_remove(last).is_some(),
        Json::Array(items) => match last.parse::<usize>() {
            Ok(index) if index < items.len() => {
                items.remove(index);
                true
            }
            Ok(_) | Err(_) => false,
        },
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => false,
    };
    taken || remove(json, before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::directory::key::KeyHash;
    use cluster::peer::trust::ClusterSecret;
    use std::sync::LazyLock;

    const SMALLEST: &str = r#"providers:
  openai: { api_key: "${OPENAI_API_KEY}" }
  anthropic: { api_key: "${ANTHROPIC_API_KEY}" }
keys:
  web: { secret: "${WEB_KEY}" }
"#;

    const SHAPE_OF_THE_REST: &str = r#"listen: { api: 0.0.0.0:8080, admin: 127.0.0.1:8081 }
node: { name: edge-0, zone: a, data_dir: /var/lib/llm-edge-agent }
cluster: { secret: { file: /run/secrets/cluster }, seeds: { edge-0: "edge-0:7947", edge-1: "edge-1:7947", edge-2: "edge-2:7947" } }
resources_revision: 7
providers:
  openai: { api_key: "${OPENAI_API_KEY}" }
  local: { kind: compatible, base_url: "http://10.0.0.5:8000/v1", api_key: none }
routes:
  support: { targets: [openai/gpt-4o-mini, local/llama-3.1-8b], strategy: failover, cache: { mode: semantic, ttl: 1h } }
tenants:
  acme: { budgets: [acme-month] }
budgets:
  acme-month: { limit: $50, window: month, timezone: Europe/Berlin }
keys:
  web: { tenant: acme, hash: "b3:HASH", models: [support, "openai/*"], rpm: 600, tpm: 200000, expires: 2027-01-01 }
"#;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "OPENAI_API_KEY" => Some("sk-openai-very-secret".to_owned()),
            "ANTHROPIC_API_KEY" => Some("sk-anthropic-very-secret".to_owned()),
            "WEB_KEY" => Some("a-key-that-is-long-enough-to-be-one".to_owned()),
            "CLUSTER_SECRET" => Some(CLUSTER_SECRET.clone()),
            "PORT" => Some("9000".to_owned()),
            "RPM" => Some("600".to_owned()),
            _ => None,
        }
    }

    fn loaded(text: &str) -> Loaded {
        read("g.yaml", text.as_bytes(), &lookup).unwrap_or_else(|report| panic!("{report}"))
    }

    /// As `line:column path: message`.
    fn problems(text: &str) -> Vec<String> {
        let report = read("g.yaml", text.as_bytes(), &lookup).err().expect("refused");
        report.problems.iter().map(|p| format!("{}:{} {}: {}", p.line, p.column, p.path, p.message)).collect()
    }

    #[test]
    fn the_smallest_useful_file_is_right() {
        let loaded = loaded(SMALLEST);

        assert_eq!(loaded.config.listen.api.to_string(), "127.0.0.1:8080");
        assert_eq!(loaded.directory.key(&KeyHash::of(&lookup("WEB_KEY").unwrap())).unwrap().name, "web");
        let reference = loaded.config.resources.providers["openai"].api_key.as_ref().unwrap();
        assert_eq!(loaded.secrets.get(reference).unwrap().reveal(), "sk-openai-very-secret");
    }

    #[test]
    fn what_a_later_version_will_have_is_refused_by_name_and_nothing_else_is() {
        let text = SHAPE_OF_THE_REST.replace("HASH", &"0".repeat(64));

        assert_eq!(
            problems(&text),
            [
                "3:12 cluster.secret: comes from file `/run/secrets/cluster`, which cannot be read (entity not found); create it, or let this process read it",
                "9:94 routes.support.cache.mode: `mode: semantic` is not available in this version",
            ]
        );
    }

    /// A dollar sign before a digit is no variable; what is wrong has its line and column, in teams too.
    #[test]
    fn what_is_wrong_with_budgets_has_its_place() {
        let text = r"auth: none
providers: { openai: { api_key: none } }
tenants:
  acme:
    budgets: [acme-moth]
    teams:
      a.b: { budgets: [acme-month, acme-month] }
budgets:
  acme-month: { limit: $50, window: month, timezone: Europe/Berlin }
  bare: {}
  number: { limit: 50, window: fortnight }
  zone: { limit: 5000 requests, window: hour, timezone: UTC }
";

        let told = problems(text);

        let wanted = [
            "5:15 tenants.acme.budgets[0]: there is no budget `acme-moth`; did you mean `acme-month`?",
            "7:36 tenants.acme.teams.\"a.b\".budgets[1]: `acme-month` is listed twice",
            "10:3 budgets.bare.limit: is missing; write `$50`, `100k tokens` or `5000 requests`",
            "10:3 budgets.bare.window: is missing; write `minute`, `hour`, `day`, `week`, `month` or `total`",
            "11:13 budgets.number.limit: `50` does not say of what; wanted something like `$50`, `100k tokens` or `5000 requests`",
            "11:24 budgets.number.window: `fortnight` is not known here",
            "12:47 budgets.zone.timezone: says nothing for this `window`; leave it out",
        ];
        assert_eq!(told.len(), wanted.len(), "{told:#?}");
        for (told, wanted) in told.iter().zip(wanted) {
            assert!(told.starts_with(wanted), "told   {told}\nwanted {wanted}");
        }
    }

    #[test]
    fn budgets_are_read_as_they_are_written() {
        let loaded = loaded(
            "auth: none\nproviders: { openai: { api_key: none } }\nbudgets:\n  a: { limit: $0.002, window: day }\n  b: { limit: 100k tokens, window: total }\n",
        );

        let limit = |name| loaded.directory.budget(name).unwrap().limit.to_string();
        assert_eq!((limit("a"), limit("b")), ("$0.002".to_owned(), "100000 tokens".to_owned()));
    }

    static CLUSTER_SECRET: LazyLock<String> = LazyLock::new(|| ClusterSecret::new_text().unwrap());

    const MEMBER: &str = r#"listen: { api: 0.0.0.0:8080, peer: 0.0.0.0:7947, gossip: 0.0.0.0:7946 }
node: { name: edge-1, data_dir: /var/lib/llm-edge-agent }
cluster: { secret: "${CLUSTER_SECRET}", seeds: { edge-0: "edge-0:7947", edge-1: "edge-1:7947" } }
resources_revision: 7
providers: { openai: { api_key: none } }
"#;

    #[test]
    fn a_member_of_a_cluster_is_right_and_its_secret_is_found() {
        let loaded = loaded(MEMBER);

        let secret = loaded.config.cluster.all_secrets().next().unwrap();
        assert_eq!(loaded.secrets.get(secret).unwrap().reveal(), CLUSTER_SECRET.as_str());
        assert_eq!(loaded.config.cluster.seeds.len(), 2);
        let phrase = problems(&MEMBER.replace("${CLUSTER_SECRET}", "correct horse battery staple"));
        assert!(matches!(&phrase[..], [one] if one.starts_with("3:12 cluster.secret: a cluster secret begins with")));
        assert!(!phrase[0].contains("horse"), "{phrase:?}");
        let printed = format!("{:?} {}", loaded.config, serde_json::to_string(&loaded.config).unwrap());
        assert!(!printed.contains("CLUSTER_SECRET") && !printed.contains(CLUSTER_SECRET.as_str()), "{printed}");
    }

    #[test]
    fn an_overdraft_needs_a_node_that_serves_long_enough_to_spend_it() {
        let budget = "budgets: { b: { limit: $1, window: day, on_no_quorum: open, overdraft: $1 } }\n";
        let member = MEMBER.to_owned() + budget;
        loaded(&member);
        let told = problems(&member.replace("cluster: {", "cluster: { stale_max: 5s,"));
        assert!(
            matches!(&told[..], [one] if one.contains("budgets.b.on_no_quorum: ") && one.contains("5s")),
            "{told:#?}"
        );
    }

    /// Without them a restarted node is another one, and nobody can tell which of two files is the newer.
    #[test]
    fn a_member_remembers_and_its_resources_have_a_revision() {
        let told = problems(&MEMBER.replace(", data_dir: /var/lib/llm-edge-agent", ""));
        assert!(told.iter().any(|told| told.starts_with("2:1 node: lacks `data_dir`")), "{told:#?}");
        let told = problems(&MEMBER.replace("resources_revision: 7\n", ""));
        assert!(matches!(&told[..], [one] if one.starts_with("1:1 : lacks `resources_revision`")), "{told:#?}");

        let bare = MEMBER.replace("resources_revision: 7\nproviders: { openai: { api_key: none } }\n", "");
        assert!(loaded(&bare).config.resources_revision.is_none(), "it takes what the cluster has");
        loaded(
            "node: { data_dir: /x }\ncluster: { secret: \"${CLUSTER_SECRET}\", advertise: \"edge-0:7947\" }\nproviders: { openai: { api_key: none } }\n",
        );
    }

    #[test]
    fn what_is_wrong_with_a_cluster_has_its_place() {
        let told = problems(
            &MEMBER.replace("edge-1: \"edge-1:7947\"", "edge-2: \"edge-2\"").replace("${CLUSTER_SECRET}", "${ABSENT}"),
        );

        assert_eq!(told.len(), 4, "{told:#?}");
        assert!(
            told[0].starts_with("3:1 cluster.advertise: is missing, and `listen.peer` is 0.0.0.0:7947"),
            "{told:#?}"
        );
        assert!(told[1].starts_with("3:12 cluster.secret: environment variable `ABSENT` is not set"), "{told:#?}");
        assert!(
            told[2].contains(" cluster.seeds: has edge-0, edge-2 and not this node, which is called `edge-1`"),
            "{told:#?}"
        );
        assert!(told[3].contains(" cluster.seeds.edge-2: is `edge-2`; expected `host:port`"), "{told:#?}");
        let told = problems(&MEMBER.replace("api: 0.0.0.0:8080", "api: 127.0.0.1:7947"));
        assert_eq!(told, ["1:32 listen.peer: is 0.0.0.0:7947, and `api` is 127.0.0.1:7947; give each its own port"]);
        loaded("listen: { api: 127.0.0.1:7947 }\nproviders: { openai: { api_key: none } }\n");
    }

    /// One reading tells all: spelling, types, words, ranges, texts that are none, and what only the rooms know.
    #[test]
    fn every_problem_is_told_at_once_in_the_order_of_the_file() {
        let text = r#"lisen: { api: 127.0.0.1:8080 }
node: [edge-0]
limits: { connections_max: 0, header_timeout: soon, body_max: 5 miles }
telemetry: { log: jsn }
providers:
  openai: { api_kye: "${OPENAI_API_KEY}", timeouts: { connect: 1 lightyear } }
  mine: { base_url: "http://10.0.0.5/v1" }
routes:
  support:
    targets: [opnai/gpt-4o, { target: openai/gpt-4o, wieght: 2 }]
    strategy: round_robbin
keys:
  web: { secret: "${ABSENT}", rpm: many, tenant: acme }
"#;

        let told = problems(text);

        let expected = [
            "1:1 lisen: `lisen` is not known; did you mean `listen`?",
            "2:1 node: is a list; expected a map",
            "3:11 limits.connections_max: is 0; at least 1 is expected",
            "3:31 limits.header_timeout: is `soon`; expected a duration",
            "3:53 limits.body_max: ",
            "4:14 telemetry.log: `jsn` is not known here; expected one of `human`, `json`; did you mean `json`?",
            "6:13 providers.openai.api_kye: `api_kye` is not known; did you mean `api_key`?",
            "6:55 providers.openai.timeouts.connect: ",
            "7:3 providers.mine: lacks `kind`, and `mine` is no known one",
            "10:15 routes.support.targets[0]: there is no provider `opnai`; did you mean `openai`?",
            "10:54 routes.support.targets[1].wieght: `wieght` is not known; did you mean `weight`?",
            "11:5 routes.support.strategy: `round_robbin` is not known here; expected one of `failover`, `round_robin`, `weighted`; did you mean `round_robin`?",
            "13:10 keys.web.secret: environment variable `ABSENT` is not set",
            "13:31 keys.web.rpm: is `many`; expected a whole number",
            "13:42 keys.web.tenant: there is no tenant `acme`",
        ];
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, expected) in told.iter().zip(expected) {
            println!("{told}");
            assert!(told.starts_with(expected), "{told}\n  should start with\n{expected}");
        }
    }

    #[test]
    fn a_thing_that_cannot_be_read_does_not_make_others_wrong() {
        let told = problems(
            "auth: none\nproviders: { openai: [] }\nroutes:\n  a: { targets: [openai/gpt-4o] }\n  b: { targets: [3, {}] }\n",
        );

        assert_eq!(told.len(), 3, "{told:#?}");
        assert!(told[0].starts_with("2:14 providers.openai: is a list; expected a map"), "{told:#?}");
        assert!(told[1].starts_with("5:18 routes.b.targets[0]: `3` is not of the form `provider/model`"), "{told:#?}");
        assert!(told[2].starts_with("5:21 routes.b.targets[1]: lacks `target`; add it"), "{told:#?}");
    }

    #[test]
    fn an_api_open_to_others_needs_keys_or_the_word_that_it_does_not() {
        let open = "listen: { api: 0.0.0.0:8080 }\nproviders: { openai: { api_key: none } }\n";

        let told = problems(open);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(
            told[0].starts_with("1:11 listen.api: is reachable from other machines, and there are no keys"),
            "{told:?}"
        );
        loaded(&format!("{open}auth: none\n"));
        loaded(&format!("{open}keys: {{ web: {{ secret: \"${{WEB_KEY}}\" }} }}\n"));
        loaded(&open.replace("0.0.0.0", "127.0.0.1"));
    }

    #[test]
    fn variables_become_what_their_field_expects() {
        let loaded = loaded(
            "listen: { api: \"127.0.0.1:${PORT}\" }\nproviders: { openai: { api_key: none } }\nkeys:\n  web: { secret: \"${WEB_KEY}\", rpm: \"${RPM}\", tpm: \"${TPM:-1000}\" }\n",
        );

        assert_eq!(loaded.config.listen.api.port(), 9000);
        assert_eq!(loaded.config.resources.keys["web"].rpm, Some(600));
        assert_eq!(loaded.config.resources.keys["web"].tpm, Some(1000));
        assert_eq!(
            problems("node: { name: \"${ABSENT}\" }\n"),
            ["1:9 node.name: environment variable `ABSENT` is not set; set it, or write `${ABSENT:-default}`"]
        );
    }

    /// A secret in the wrong place is still a secret.
    #[test]
    fn no_message_repeats_the_value_of_a_variable() {
        let told = problems(
            "listen: { api: \"${OPENAI_API_KEY}\" }\nproviders:\n  openai: { api_key: none, kind: \"${OPENAI_API_KEY}\", base_url: \"${OPENAI_API_KEY}\" }\ntelemetry: { log: \"${OPENAI_API_KEY}\", level: \"${OPENAI_API_KEY}==\" }\n",
        );

        assert!(told.len() >= 4, "{told:#?}");
        assert!(!told.concat().contains("very-secret"), "{told:#?}");
    }

    #[test]
    fn secrets_are_told_by_their_place_only() {
        let told = problems(
            "providers:\n  openai: { api_keys: [\"${ABSENT}\", { file: /nowhere/key }, { files: x }] }\nkeys:\n  web: { secret: too-short-secret }\n",
        );

        assert_eq!(told.len(), 4, "{told:#?}");
        assert!(told[0].starts_with("2:24 providers.openai.api_keys[0]: environment variable `ABSENT`"), "{told:#?}");
        assert!(told[1].starts_with("2:37 providers.openai.api_keys[1]: comes from file `/nowhere/key`"), "{told:#?}");
        assert!(told[2].starts_with("2:61 providers.openai.api_keys[2]"), "{told:#?}");
        assert!(told[3].starts_with("4:10 keys.web.secret: has 16 characters"), "{told:#?}");
        assert!(!told.concat().contains("too-short-secret"), "{told:#?}");
    }

    #[test]
    fn a_file_that_is_no_text_is_told_with_its_place() {
        let report = read("g.yaml", b"auth: none\nnode: { name: \xff }\n", &lookup).err().unwrap();
        assert_eq!(report.to_string(), "g.yaml:2:15: is not UTF-8 text; save the file as UTF-8");
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.yaml");
        std::fs::write(&path, vec![b'#'; FILE_BYTES_MAX + 1]).unwrap();

        assert!(matches!(load(&path, &lookup), Err(LoadError::TooLarge { .. })));
    }

    /// Whoever only looks for the node need not have the secrets that the node has.
    #[test]
    fn a_glance_finds_the_node_without_its_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("g.yaml");
        std::fs::write(&path, MEMBER.replace("CLUSTER_SECRET", "ABSENT")).unwrap();

        let config = glance(&path, &lookup).unwrap();

        assert_eq!(config.node.data_dir.as_deref(), Some(FilePath::new("/var/lib/llm-edge-agent")));
        assert_eq!(config.listen.admin.to_string(), "127.0.0.1:8081");
        assert!(load(&path, &lookup).is_err());
    }

    #[test]
    fn a_file_full_of_mistakes_is_told_up_to_a_bound() {
        let routes: Vec<_> = (0..2_000).map(|at| format!("  r{at}: {{ targets: [x], unknown_{at}: 1 }}")).collect();

        assert_eq!(problems(&format!("routes:\n{}\n", routes.join("\n"))).len(), PROBLEMS_MAX);
    }

    /// The reader trusts the types to refuse what they do not know.
    #[test]
    fn every_section_refuses_unknown_keys() {
        fn walk(path: &str, schema: &Json, open: &mut Vec<String>) {
            if schema.get("properties").is_some() && schema.get("additionalProperties") != Some(&Json::Bool(false)) {
                open.push(path.to_owned());
            }
            match schema {
                Json::Object(map) => map.iter().for_each(|(key, value)| walk(&format!("{path}/{key}"), value, open)),
                Json::Array(list) => list.iter().for_each(|value| walk(path, value, open)),
                Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
            }
        }
        let mut open = Vec::new();
        walk("", &schema(), &mut open);

        assert_eq!(open, Vec::<String>::new());
    }
}
