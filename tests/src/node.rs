//! A node as a process: a configuration in, addresses and output back.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::process::{Finished, Process};
use crate::{Client, FakeProvider, Metrics, RawConnection};

/// What every configuration starts with unless it has a `listen` of its own.
const LISTEN: &str = "listen: { api: 127.0.0.1:0, admin: 127.0.0.1:0 }\n";

/// A running node. Dropped, it is killed and its folder removed.
#[derive(Debug)]
pub struct TestNode {
    process: Process,
    api: SocketAddr,
    admin: SocketAddr,
    places: Vec<(String, String)>,
    folder: TempDir,
}

#[derive(Debug)]
pub struct TestNodeBuilder {
    binary: String,
    config: String,
    places: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
}

impl TestNodeBuilder {
    /// The configuration, in YAML. `{NAME}` stands for what [`TestNodeBuilder::provider`] and [`TestNodeBuilder::place`] say.
    #[must_use]
    pub fn config(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.config);
        self
    }

    /// `{name}` in the configuration stands for the URL of `provider`, without a path.
    #[must_use]
    pub fn provider(self, name: &str, provider: &FakeProvider) -> Self {
        self.place(name, &provider.url())
    }

    /// `{name}` in the configuration stands for `text`.
    #[must_use]
    pub fn place(mut self, name: &str, text: &str) -> Self {
        self.places.push((format!("{{{name}}}"), text.to_owned()));
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds an argument of the `run` command.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts the node and waits until it is ready.
    pub async fn start(self) -> TestNode {
        self.try_start().await.unwrap_or_else(|error| panic!("the node {error}"))
    }

    /// As [`TestNodeBuilder::start`], for a node that is expected not to start: the error has its exit status and all it printed.
    pub async fn try_start(self) -> Result<TestNode, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.yaml");
        std::fs::write(&path, filled(&self.config, &self.places)).expect("a folder to write to");
        let addresses = folder.path().join("addresses.json");
        let mut command = Command::new(&self.binary);
        command.arg("run").arg("--config").arg(&path).arg("--addresses-file").arg(&addresses);
        // What it leaves behind when it is killed goes with the folder.
        command.env("TMPDIR", folder.path());
        command.args(&self.arguments).envs(self.environment).current_dir(folder.path());
        let mut process = Process::spawn(command);
        let addresses = process.addresses(&addresses).await?;
        let (api, admin) = (addresses.get("api"), addresses.get("admin"));
        Ok(TestNode { process, api, admin, places: self.places, folder })
    }
}

/// The configuration as the node reads it.
fn filled(config: &str, places: &[(String, String)]) -> String {
    let mut text = config.to_owned();
    for (place, value) in places {
        text = text.replace(place, value);
    }
    let has_listen = text.lines().any(|line| line.starts_with("listen:"));
    if has_listen { text } else { LISTEN.to_owned() + &text }
}

impl TestNode {
    pub fn builder(binary: &str) -> TestNodeBuilder {
        TestNodeBuilder {
            binary: binary.to_owned(),
            config: String::new(),
            places: Vec::new(),
            environment: Vec::new(),
            arguments: Vec::new(),
        }
    }

    /// A client of the API, without a key.
    pub fn client(&self) -> Client {
        Client::new(self.api)
    }

    /// A client of the API that presents `key`.
    pub fn as_key(&self, key: &str) -> Client {
        self.client().with_key(key)
    }

    /// A client of the API over HTTP/2.
    pub fn http2(&self) -> Client {
        Client::http2(self.api)
    }

    /// A client of the admin listener.
    pub fn admin(&self) -> Client {
        Client::new(self.admin)
    }

    /// A connection to the API for bytes of any kind.
    pub async fn raw(&self) -> RawConnection {
        RawConnection::open(self.api).await
    }

    pub fn api_address(&self) -> SocketAddr {
        self.api
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// What `/metrics` says now.
    pub async fn metrics(&self) -> Metrics {
        let reply = self.admin().get("/metrics").await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        Metrics::parse(&reply.text())
    }

    /// The file the node reads its configuration from.
    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    /// Replaces the configuration file atomically, as an editor or an orchestrator would. The listeners stay the same.
    pub fn write_config(&self, yaml: &str) {
        let next = self.folder.path().join("config.yaml.next");
        std::fs::write(&next, filled(yaml, &self.places)).expect("a folder to write to");
        std::fs::rename(next, self.config_path()).expect("a folder to write to");
    }

    /// Asks the node to read its configuration again.
    pub fn reload(&self) {
        self.process.hang_up();
    }

    /// Everything the node printed so far.
    pub fn printed(&self) -> String {
        self.process.printed()
    }

    /// Fails the test if anything the node printed so far has one of `secrets` in it.
    pub fn assert_never_printed(&self, secrets: &[&str]) {
        let printed = self.printed();
        for secret in secrets {
            let line = printed.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "the node printed the secret `{secret}`: {line:?}");
        }
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Asks the node to end; it may still finish what it does.
    pub fn terminate(&self) {
        self.process.terminate();
    }

    /// Waits for the node to end by itself.
    pub async fn wait(self) -> Finished {
        self.process.wait().await
    }

    /// Ends the node as an operator would, and waits for it.
    pub async fn stop(self) -> Finished {
        self.terminate();
        self.wait().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_filled_and_flow_maps_are_not() {
        let places = [("{provider}".to_owned(), "http://127.0.0.1:1".to_owned())];

        let text = filled("providers: { openai: { base_url: \"{provider}/v1\" } }", &places);

        assert_eq!(text, LISTEN.to_owned() + "providers: { openai: { base_url: \"http://127.0.0.1:1/v1\" } }");
        assert_eq!(filled("listen: { api: 1.2.3.4:5 }", &places), "listen: { api: 1.2.3.4:5 }");
    }
}
