//! The binary as a process: started, heard, stopped.

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{eventually, eventually_some};

/// A running binary. Dropped, it is killed.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: Output,
    readers: Vec<std::thread::JoinHandle<()>>,
}

/// A binary that has ended by itself.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Everything printed so far.
#[derive(Clone, Debug, Default)]
struct Output {
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
}

/// Runs the binary to its end.
pub async fn run(binary: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Finished {
    let mut command = Command::new(binary);
    command.args(arguments).envs(environment.iter().copied());
    Process::spawn(command).wait().await
}

impl Process {
    /// Starts `command` with nothing to read and everything it prints kept.
    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let output = Output::default();
        let readers = vec![
            keep(child.stdout.take().expect("a pipe"), Arc::clone(&output.stdout)),
            keep(child.stderr.take().expect("a pipe"), Arc::clone(&output.stderr)),
        ];
        Self { child, output, readers }
    }

    /// Waits for the file that says where the process listens. The process may end instead: then the error has what it printed.
    pub async fn addresses(&mut self, file: &Path) -> Result<Addresses, String> {
        eventually_some("the process says where it listens", async || {
            if let Ok(text) = std::fs::read_to_string(file) {
                return Some(Ok(Addresses(serde_json::from_str(&text).expect("addresses are JSON"))));
            }
            let status = self.child.try_wait().expect("a child of ours")?;
            self.join_readers();
            Some(Err(format!("ended with {status}\n{}", self.printed())))
        })
        .await
    }

    /// Everything printed so far, standard output first.
    pub fn printed(&self) -> String {
        [self.stdout(), self.stderr()].concat()
    }

    pub fn stdout(&self) -> String {
        text(&self.output.stdout)
    }

    pub fn stderr(&self) -> String {
        text(&self.output.stderr)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_none()
    }

    /// Asks the process to end, as an operator would.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// As ctrl-C does.
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Asks the process to read its configuration again.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(id, signal).expect("a child of ours");
    }

    /// Waits for the process to end by itself.
    pub async fn wait(mut self) -> Finished {
        eventually("the process ends", async || !self.is_running()).await;
        self.join_readers();
        let status = self.child.wait().expect("a child of ours");
        Finished { status, stdout: self.stdout(), stderr: self.stderr() }
    }

    fn join_readers(&mut self) {
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader does not panic");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Neither fails for a child that has already ended, and nothing could be done if one did.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            let mut printed = self.printed();
            let start = printed.len().saturating_sub(PRINTED_MAX);
            let start = printed.ceil_char_boundary(start);
            report(&printed.split_off(start));
        }
    }
}

/// Bytes of a process's output that a failed test shows.
const PRINTED_MAX: usize = 8 << 10;

#[expect(clippy::print_stderr, reason = "shown by the test runner for a failed test only")]
fn report(printed: &str) {
    eprintln!("--- the process printed:\n{printed}\n---");
}

/// Where a process listens, by name.
#[derive(Clone, Debug)]
pub struct Addresses(Value);

impl Addresses {
    pub fn get(&self, name: &str) -> SocketAddr {
        let address = self.0[name].as_str().and_then(|address| address.parse().ok());
        address.unwrap_or_else(|| panic!("no address `{name}` in {}", self.0))
    }
}

fn keep(mut pipe: impl Read + Send + 'static, into: Arc<Mutex<Vec<u8>>>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 8 << 10];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            into.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
        }
    })
}

fn text(bytes: &Mutex<Vec<u8>>) -> String {
    String::from_utf8_lossy(&bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}
