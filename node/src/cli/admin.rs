//! `admin …`: what the nodes of a cluster share, looked at and changed through any of them.

mod print;

use super::client::{Answer, Ask, Client, ClientError, PATIENT};
use crate::admin::budgets::{BudgetStanding, Reconciled, Reconciliation, Standings, Used};
use crate::admin::endpoint::{PREFIX, encode};
use crate::config::load::{LoadError, glance};
use crate::config::secret::{Secret, resolve};
use crate::config::{Config, environment};
use crate::output;
use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use cluster::directory::kind::Kind;
use cluster::directory::secret::SecretRef;
use http::header::{HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use http::{Method, Uri};
use serde_json::{Map, Value as Json, json};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The environment variable that a key may stand in.
const KEY_VARIABLE: &str = "LEA_ADMIN_KEY";

/// In the data directory; made with it.
pub const KEY_FILE: &str = "admin.key";

/// Where a node of this machine listens, unless it is told otherwise.
const ADMIN: &str = "http://127.0.0.1:8081";

/// Pages of a list that are asked for; a list is cut after them, and that is said.
const PAGES_MAX: usize = 1_000;

/// Bytes of a resource to be put; the node takes no more.
const SPEC_BYTES_MAX: u64 = 1024 * 1024;

/// Which node is asked, and with which key.
#[derive(Clone, Debug, Args)]
pub struct ReachArgs {
    /// Where the admin listener of a node is; any node of the cluster will do. Left out: as the file of `-c` says, else
    /// `http://127.0.0.1:8081`.
    #[arg(long, value_name = "URL", global = true)]
    pub admin: Option<Uri>,

    /// File with an admin key. Left out: the environment variable `LEA_ADMIN_KEY`, else `admin.key` in the data
    /// directory.
    #[arg(long, value_name = "FILE", global = true)]
    pub key_file: Option<PathBuf>,

    /// The data directory of a node on this machine, for the key in it.
    #[arg(long, value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,

    /// The configuration file of a node on this machine, for its admin address and its data directory.
    #[arg(short, long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    /// Print what the node answers as JSON.
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct AdminArgs {
    #[command(flatten)]
    pub reach: ReachArgs,

    #[command(subcommand)]
    pub command: AdminCommand,
}

#[derive(Clone, Debug, Args)]
pub struct BudgetArgs {
    #[command(flatten)]
    pub reach: ReachArgs,

    #[command(subcommand)]
    pub command: BudgetCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub enum BudgetCommand {
    /// Show what is left of a budget, or of all, as a majority of the nodes knows it now.
    Show {
        /// Left out: all budgets, a line each.
        name: Option<String>,
        /// A window that is over, counted from 0: the last two are kept. Left out: the present one.
        #[arg(long, requires = "name")]
        window: Option<u64>,
        /// Whose share, where each end user has the limit for himself.
        #[arg(long, value_name = "NAME", requires = "name")]
        end_user: Option<String>,
    },
    /// Give back what a process that is over holds of a budget and did not use. Whoever says so answers for it: nobody
    /// checks what was really spent.
    Reconcile {
        name: String,
        /// The node's name or id, as `budget show` names it.
        #[arg(long)]
        node: String,
        /// Which life of the node, as `budget show` names it.
        #[arg(long)]
        incarnation: u64,
        /// What it has really used: `$0.31`, `100k tokens`, `40 requests`.
        #[arg(long, value_name = "AMOUNT", allow_hyphen_values = true)]
        used: String,
        /// A window that is over, counted from 0. Left out: the present one.
        #[arg(long)]
        window: Option<u64>,
        /// Whose share, where each end user has the limit for himself. Left out: that of calls that named nobody.
        #[arg(long, value_name = "NAME")]
        end_user: Option<String>,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum AdminCommand {
    /// Make, list and revoke keys.
    #[command(subcommand)]
    Keys(KeyCommand),
    /// Take a provider out of use on every node, or let it be used again.
    #[command(subcommand)]
    Providers(ProviderCommand),
    /// List the resources of a kind.
    List { kind: Which },
    /// Show one resource.
    Get {
        kind: Which,
        /// Of a team: `TENANT/TEAM`.
        name: String,
    },
    /// Make a resource, or replace it whole.
    Put {
        kind: Which,
        /// Of a team: `TENANT/TEAM`.
        name: String,
        #[command(flatten)]
        spec: SpecArgs,
        #[command(flatten)]
        expected: ExpectedArgs,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Delete a resource.
    Delete {
        kind: Which,
        /// Of a team: `TENANT/TEAM`.
        name: String,
        /// Only if it still has this version.
        #[arg(long = "if-version", value_name = "VERSION")]
        version: Option<u64>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// List the nodes.
    Members,
    /// Have a node finish its requests and end.
    Drain { node: String },
    /// Take a node out of the cluster.
    Remove { node: String },
    /// Show who changed what.
    Audit {
        /// Only from this index on.
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key and print it, this once.
    Create(CreateArgs),
    /// List the keys.
    List,
    /// Show one key, but not its text: nobody has that.
    Get { name: String },
    /// Refuse a key for ever, one that the file declares too. Returns when no node accepts it any more.
    Revoke {
        /// Its name or its hash.
        name: String,
        /// End streams that run with it, too.
        #[arg(long)]
        cut: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Delete a key.
    Delete {
        name: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum ProviderCommand {
    /// Take it out of use. Returns when no node calls it any more.
    Off {
        name: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Let it be used again.
    On {
        name: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

#[derive(Clone, Debug, Args)]
pub struct CreateArgs {
    /// What the key is called in logs, in metrics and here.
    pub name: String,
    /// Who it belongs to.
    #[arg(long)]
    pub tenant: Option<String>,
    /// Which team of the tenant it belongs to.
    #[arg(long)]
    pub team: Option<String>,
    /// A model or route it may use; may be said several times. Left out: all.
    #[arg(long = "model", value_name = "MODEL")]
    pub models: Vec<String>,
    /// Requests a second.
    #[arg(long)]
    pub rps: Option<u32>,
    /// Requests within any 60 seconds.
    #[arg(long)]
    pub rpm: Option<u32>,
    /// Tokens within any 60 seconds.
    #[arg(long)]
    pub tpm: Option<u64>,
    /// Requests at once.
    #[arg(long)]
    pub max_parallel: Option<u32>,
    /// A budget that all its calls must fit in; may be said several times.
    #[arg(long = "budget", value_name = "BUDGET")]
    pub budgets: Vec<String>,
    /// From when on it is refused: `2027-01-01` or `2027-01-01T08:00:00Z`.
    #[arg(long)]
    pub expires: Option<String>,
    /// Makes it a key for this API in place of models; may be said several times.
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<String>,
}

#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub struct SpecArgs {
    /// The resource as JSON.
    #[arg(value_name = "JSON")]
    pub spec: Option<String>,
    /// File with the resource as JSON; `-` is standard input.
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
#[group(multiple = false)]
pub struct ExpectedArgs {
    /// Only if it still has this version.
    #[arg(long = "if-version", value_name = "VERSION")]
    pub version: Option<u64>,
    /// Only if it does not exist.
    #[arg(long)]
    pub new: bool,
}

#[derive(Clone, Copy, Debug, Args)]
pub struct WaitArgs {
    /// Return when it is decided, before every node has it.
    #[arg(long)]
    pub no_wait: bool,
}

/// A kind of resource, as one says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    #[value(alias = "provider")]
    Providers,
    #[value(alias = "model")]
    Models,
    #[value(alias = "price")]
    Prices,
    #[value(alias = "route")]
    Routes,
    #[value(alias = "tenant")]
    Tenants,
    #[value(alias = "team")]
    Teams,
    #[value(alias = "role")]
    Roles,
    #[value(alias = "key")]
    Keys,
    #[value(alias = "budget")]
    Budgets,
}

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error(
        "no key: give `--key-file`, set `{KEY_VARIABLE}`, or say with `--data-dir` or `-c` where a node's `{KEY_FILE}` is"
    )]
    NoKey,
    #[error("the key {0}")]
    Key(String),
    #[error("the key {0}; the first key lies in the data directory of the node that founded the cluster")]
    FirstKey(String),
    #[error(transparent)]
    Config(LoadError),
    #[error("`{}` names no `node.data_dir`, and the key is in it; give `--key-file` or set `{KEY_VARIABLE}`", path.display())]
    NoDataDir { path: PathBuf },
    #[error("a team is named `TENANT/TEAM`, not `{name}`")]
    Team { name: String },
    #[error("list the teams of a tenant with `get tenants NAME`")]
    AllTeams,
    #[error("cannot read `{}`", path.display())]
    Spec {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the resource is larger than {SPEC_BYTES_MAX} bytes")]
    SpecTooLarge,
    #[error("the resource is not JSON")]
    SpecNotJson(#[source] serde_json::Error),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{0}")]
    Refused(String),
    #[error("what answers is no node of this version")]
    Foreign(#[source] serde_json::Error),
    #[error("cannot print")]
    Output(#[source] io::Error),
}

pub async fn budget(args: &BudgetArgs) -> Result<(), AdminError> {
    let client = client(&args.reach, &environment::process)?;
    let answer = about_budget(&client, &args.command).await?;
    let shown = if args.reach.json { json_text(&answer) } else { budget_words(&args.command, answer)? };
    output::line(&shown).map_err(AdminError::Output)
}

async fn about_budget(client: &Client, command: &BudgetCommand) -> Result<Json, AdminError> {
    match command {
        BudgetCommand::Show { name: None, .. } => list(client, "standings".to_owned(), "after").await,
        BudgetCommand::Show { name: Some(name), window, end_user } => {
            let window = window.map(|window| format!("window={window}"));
            let end_user = end_user.as_ref().map(|user| format!("end_user={}", encode(user)));
            let asked: Vec<String> = window.into_iter().chain(end_user).collect();
            let query = if asked.is_empty() { String::new() } else { format!("?{}", asked.join("&")) };
            get(client, &format!("budgets/{}/standing{query}", encode(name))).await
        }
        BudgetCommand::Reconcile { name, node, incarnation, used, window, end_user } => {
            let said = Reconciliation {
                node: node.clone(),
                incarnation: *incarnation,
                used: Used::Text(used.clone()),
                window: *window,
                end_user: end_user.clone(),
            };
            let path = format!("budgets/{}/reconcile", encode(name));
            change(client, Method::POST, &path, WaitArgs { no_wait: false }, json!(said), None).await
        }
    }
}

fn budget_words(command: &BudgetCommand, answer: Json) -> Result<String, AdminError> {
    match command {
        BudgetCommand::Show { name: None, .. } => serde_json::from_value(answer).map(|all: Standings| all.words()),
        BudgetCommand::Show { name: Some(_), .. } => {
            serde_json::from_value(answer).map(|standing: BudgetStanding| standing.words())
        }
        BudgetCommand::Reconcile { .. } => serde_json::from_value(answer).map(|done: Reconciled| done.words()),
    }
    .map_err(AdminError::Foreign)
}

pub async fn admin(args: &AdminArgs) -> Result<(), AdminError> {
    let client = client(&args.reach, &environment::process)?;
    let answer = carry_out(&client, &args.command).await?;
    let shown = if args.reach.json { json_text(&answer) } else { print::shown(&args.command, &answer) };
    output::line(&shown).map_err(AdminError::Output)
}

fn json_text(answer: &Json) -> String {
    format!("{answer:#}")
}

/// Which node, and with which key.
fn client(args: &ReachArgs, lookup: environment::Lookup<'_>) -> Result<Client, AdminError> {
    let config = args.config.as_deref().map(|path| glance(path, lookup)).transpose().map_err(AdminError::Config)?;
    let key = key(args, config.as_ref(), lookup)?;
    let listens = config.map(|config| reachable(&config)).transpose()?;
    let url = args.admin.clone().or(listens).unwrap_or_else(|| Uri::from_static(ADMIN));
    Ok(Client { url, key: Some(key) })
}

/// A node that listens everywhere listens on loopback too.
fn reachable(config: &Config) -> Result<Uri, AdminError> {
    let mut address = config.listen.admin;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    let url = format!("http://{address}").parse();
    url.map_err(|_invalid| AdminError::Client(ClientError::Address { url: Uri::from_static(ADMIN) }))
}

fn key(args: &ReachArgs, config: Option<&Config>, lookup: environment::Lookup<'_>) -> Result<Secret, AdminError> {
    let from_file = |path: &Path| found(&SecretRef::file(path), lookup);
    if let Some(path) = &args.key_file {
        return from_file(path);
    }
    if lookup(KEY_VARIABLE).is_some_and(|key| !key.is_empty()) {
        return found(&SecretRef::text(format!("${{{KEY_VARIABLE}}}")), lookup);
    }
    let first_key =
        |folder: &Path| resolved(&SecretRef::file(folder.join(KEY_FILE)), lookup).map_err(AdminError::FirstKey);
    if let Some(folder) = &args.data_dir {
        return first_key(folder);
    }
    match (config, &args.config) {
        (Some(Config { node, .. }), Some(path)) => match &node.data_dir {
            Some(folder) => first_key(folder),
            None => Err(AdminError::NoDataDir { path: path.clone() }),
        },
        (None, _) | (_, None) => Err(AdminError::NoKey),
    }
}

fn found(reference: &SecretRef, lookup: environment::Lookup<'_>) -> Result<Secret, AdminError> {
    resolved(reference, lookup).map_err(AdminError::Key)
}

fn resolved(reference: &SecretRef, lookup: environment::Lookup<'_>) -> Result<Secret, String> {
    let told = |errors: Vec<_>| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    resolve(reference, lookup).map_err(told)
}

async fn carry_out(client: &Client, command: &AdminCommand) -> Result<Json, AdminError> {
    match command {
        AdminCommand::Keys(command) => keys(client, command).await,
        AdminCommand::Providers(ProviderCommand::Off { name, wait }) => {
            change(client, Method::POST, &format!("providers/{}/off", encode(name)), *wait, Json::Null, None).await
        }
        AdminCommand::Providers(ProviderCommand::On { name, wait }) => {
            change(client, Method::POST, &format!("providers/{}/on", encode(name)), *wait, Json::Null, None).await
        }
        AdminCommand::List { kind } => list(client, kind.path(None)?, "after").await,
        AdminCommand::Get { kind, name } => get(client, &kind.path(Some(name))?).await,
        AdminCommand::Put { kind, name, spec, expected, wait } => {
            let condition = match (expected.version, expected.new) {
                (Some(version), _) => Some(if_version(version)),
                (None, true) => Some((IF_NONE_MATCH, HeaderValue::from_static("*"))),
                (None, false) => None,
            };
            change(client, Method::PUT, &kind.path(Some(name))?, *wait, spec.read()?, condition).await
        }
        AdminCommand::Delete { kind, name, version, wait } => {
            let path = kind.path(Some(name))?;
            change(client, Method::DELETE, &path, *wait, Json::Null, version.map(if_version)).await
        }
        AdminCommand::Members => get(client, "members").await,
        AdminCommand::Drain { node } => {
            let path = format!("members/{}/drain", encode(node));
            change(client, Method::POST, &path, WaitArgs { no_wait: false }, Json::Null, None).await
        }
        AdminCommand::Remove { node } => {
            let path = format!("members/{}/remove", encode(node));
            change(client, Method::POST, &path, WaitArgs { no_wait: false }, Json::Null, None).await
        }
        AdminCommand::Audit { from } => list(client, format!("audit?from={from}"), "from").await,
    }
}

async fn keys(client: &Client, command: &KeyCommand) -> Result<Json, AdminError> {
    match command {
        KeyCommand::Create(args) => {
            let at_once = WaitArgs { no_wait: false };
            change(client, Method::POST, "keys", at_once, args.spec(), None).await
        }
        KeyCommand::List => list(client, "keys".to_owned(), "after").await,
        KeyCommand::Get { name } => get(client, &format!("keys/{}", encode(name))).await,
        KeyCommand::Revoke { name, cut, wait } => {
            let path = format!("keys/{}/revoke", encode(name));
            change(client, Method::POST, &path, *wait, json!({ "cut": cut }), None).await
        }
        KeyCommand::Delete { name, wait } => {
            change(client, Method::DELETE, &format!("keys/{}", encode(name)), *wait, Json::Null, None).await
        }
    }
}

impl CreateArgs {
    fn spec(&self) -> Json {
        let mut spec = Map::new();
        let texts = [
            ("name", Some(&self.name)),
            ("tenant", self.tenant.as_ref()),
            ("team", self.team.as_ref()),
            ("expires", self.expires.as_ref()),
        ];
        for (field, text) in texts.into_iter().filter_map(|(field, text)| Some((field, text?))) {
            spec.insert(field.to_owned(), text.clone().into());
        }
        for (field, list) in [("models", &self.models), ("roles", &self.roles), ("budgets", &self.budgets)] {
            if !list.is_empty() {
                spec.insert(field.to_owned(), json!(list));
            }
        }
        let numbers = [
            ("rps", self.rps.map(u64::from)),
            ("rpm", self.rpm.map(u64::from)),
            ("tpm", self.tpm),
            ("max_parallel", self.max_parallel.map(u64::from)),
        ];
        for (field, number) in numbers {
            if let Some(number) = number {
                spec.insert(field.to_owned(), number.into());
            }
        }
        Json::Object(spec)
    }
}

impl SpecArgs {
    fn read(&self) -> Result<Json, AdminError> {
        let text = match (&self.spec, &self.file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) if path.as_os_str() == "-" => read_text(path, io::stdin().lock())?,
            (None, Some(path)) => {
                let file = std::fs::File::open(path);
                read_text(path, file.map_err(|cause| AdminError::Spec { path: path.clone(), cause })?)?
            }
            (None, None) => String::new(),
        };
        serde_json::from_str(&text).map_err(AdminError::SpecNotJson)
    }
}

fn read_text(path: &Path, from: impl Read) -> Result<String, AdminError> {
    let mut text = String::new();
    let read = from.take(SPEC_BYTES_MAX + 1).read_to_string(&mut text);
    let read = read.map_err(|cause| AdminError::Spec { path: path.to_owned(), cause })?;
    if read as u64 > SPEC_BYTES_MAX { Err(AdminError::SpecTooLarge) } else { Ok(text) }
}

impl Which {
    fn kind(self) -> Option<Kind> {
        match self {
            Self::Providers => Some(Kind::Providers),
            Self::Models => Some(Kind::Models),
            Self::Prices => Some(Kind::Prices),
            Self::Routes => Some(Kind::Routes),
            Self::Tenants => Some(Kind::Tenants),
            Self::Teams => None,
            Self::Roles => Some(Kind::Roles),
            Self::Keys => Some(Kind::Keys),
            Self::Budgets => Some(Kind::Budgets),
        }
    }

    /// Of one resource, or of all of the kind.
    fn path(self, name: Option<&str>) -> Result<String, AdminError> {
        match (self.kind(), name) {
            (Some(kind), Some(name)) => Ok(format!("{kind}/{}", encode(name))),
            (Some(kind), None) => Ok(kind.to_string()),
            (None, Some(name)) => match name.split_once('/') {
                Some((tenant, team)) if !tenant.is_empty() && !team.is_empty() => {
                    Ok(format!("tenants/{}/teams/{}", encode(tenant), encode(team)))
                }
                Some(_) | None => Err(AdminError::Team { name: name.to_owned() }),
            },
            (None, None) => Err(AdminError::AllTeams),
        }
    }
}

fn if_version(version: u64) -> (HeaderName, HeaderValue) {
    (IF_MATCH, crate::admin::http::version_tag(version))
}

async fn get(client: &Client, path: &str) -> Result<Json, AdminError> {
    read_answer(&client.ask(Ask::get(format!("{PREFIX}{path}"))).await?)
}

/// All pages, as one. The next page begins where `next` says, in the query's field `cursor`.
async fn list(client: &Client, path: String, cursor: &str) -> Result<Json, AdminError> {
    let with = if path.contains('?') { '&' } else { '?' };
    let mut page = get(client, &format!("{path}{with}limit=1000")).await?;
    let start = path.split('?').next().unwrap_or_default().to_owned();
    let mut items = Vec::new();
    for _ in 0..PAGES_MAX {
        if let Some(Json::Array(found)) = page.get_mut("items").map(Json::take) {
            items.extend(found);
        }
        let next = match page.get("next") {
            Some(Json::String(name)) => encode(name),
            Some(Json::Number(index)) => index.to_string(),
            Some(Json::Null | Json::Bool(_) | Json::Array(_) | Json::Object(_)) | None => {
                return Ok(json!({ "items": items, "next": null }));
            }
        };
        page = get(client, &format!("{start}?limit=1000&{cursor}={next}")).await?;
    }
    Ok(json!({ "items": items, "next": page["next"], "cut": true }))
}

async fn change(
    client: &Client,
    method: Method,
    path: &str,
    wait: WaitArgs,
    body: Json,
    condition: Option<(HeaderName, HeaderValue)>,
) -> Result<Json, AdminError> {
    let path = format!("{PREFIX}{path}{}", if wait.no_wait { "?wait=none" } else { "" });
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let headers = condition.into_iter().collect();
    read_answer(&client.ask(Ask { method, path, headers, body, patience: PATIENT }).await?)
}

fn read_answer(answer: &Answer) -> Result<Json, AdminError> {
    let body: Json = match serde_json::from_slice(&answer.body) {
        Ok(body) => body,
        Err(error) if answer.status.is_success() => return Err(AdminError::Foreign(error)),
        Err(_) => Json::Null,
    };
    if answer.status.is_success() {
        return Ok(body);
    }
    Err(AdminError::Refused(print::refusal(answer.status, &body)))
}

#[cfg(test)]
mod tests;
