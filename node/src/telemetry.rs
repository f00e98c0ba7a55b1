//! Logs and metrics of this process.

pub mod metrics;

use ::metrics::SetRecorderError;
use actors::metrics::{Described, Kind};
use cluster::directory::problems::Problems;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_util::MetricKindMask;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// What this node tells about itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// How a log line looks. Logs go to standard error.
    pub log: LogFormat,

    /// The least severe level that is logged: `error`, `warn`, `info`, `debug` or `trace`. One module may differ:
    /// `info,actors::cache=debug`. Changes at a reload.
    pub level: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For a person at a terminal.
    #[default]
    Human,
    /// One JSON object a line, for a log collector.
    Json,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { log: LogFormat::Human, level: "info".to_owned() }
    }
}

impl TelemetryConfig {
    pub fn check(&self, problems: &mut Problems) {
        let wrong = self.level.split(',').find(|directive| !is_directive(directive.trim()));
        if wrong.is_some() || EnvFilter::try_new(&self.level).is_err() {
            let wrong = wrong.unwrap_or(&self.level);
            let message = format!("`{wrong}` is no log level; write `info`, `debug`, or `info,actors::cache=debug`");
            problems.add("level", message);
        }
    }
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A level, or a module's. The filter itself takes any word for a module, and a level with a typo switches the log off.
fn is_directive(text: &str) -> bool {
    let level = text.rsplit_once('=').map_or(text, |(_module, level)| level);
    LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level))
}

/// A counter or histogram that nothing touched for so long is forgotten: the key or model it is about may be gone.
/// Gauges stay, because they are set only when something changes, and counters that are [`KeptCounter`](actors::metrics::KeptCounter).
const IDLE_MAX: Duration = Duration::from_hours(24);

/// Log lines written at once. The thread writes what it has as soon as no further line waits.
const LINES_BYTES: usize = 64 * 1024;

/// Log lines that wait to be written. Beyond it lines are dropped, and counted.
const LINES_MAX: usize = 16_384;

/// How often histograms are moved to where they are rendered from. Between two, each observation takes memory.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Bounds of buckets for durations, in seconds: from the gateway's own share of a request to a long generation.
const SECONDS: &[f64] = &[
    0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0,
];

/// Bounds of buckets for sizes, in bytes: 256 B to 16 MiB.
const BYTES: &[f64] = &[256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];

/// Bounds of buckets for anything counted: tokens, attempts, places in a queue.
const COUNTS: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0];

/// The running telemetry of the process. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    level: Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
    metrics: PrometheusHandle,
    log: Arc<Log>,
}

/// The thread that writes log lines: a standard error that nobody reads must not hold up requests.
struct Log {
    dropped: ErrorCounter,
    /// Dropped last, it writes what is left.
    _flush: WorkerGuard,
}

/// Why telemetry could not be started or changed. The process can do nothing about it but say so.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("`{level}` is no log level")]
    Level {
        level: String,
        #[source]
        cause: tracing_subscriber::filter::ParseError,
    },
    #[error("logging is already set up in this process")]
    LogTaken(#[source] TryInitError),
    #[error("the log level cannot be changed")]
    Reload(#[source] reload::Error),
    #[error("a metric has no usable buckets")]
    Buckets(#[source] BuildError),
    #[error("metrics are already set up in this process")]
    MetricsTaken(#[source] Box<SetRecorderError<PrometheusRecorder>>),
}

impl Telemetry {
    /// Takes over the process's logs and metrics. To be called once.
    pub fn start(config: &TelemetryConfig) -> Result<Self, TelemetryError> {
        let (layer, level) = reload::Layer::new(filter(&config.level)?);
        let (writer, flush) = NonBlockingBuilder::default()
            .buffered_lines_limit(LINES_MAX)
            .lossy(true)
            .thread_name("log")
            .finish(io::BufWriter::with_capacity(LINES_BYTES, io::stderr()));
        let log = Arc::new(Log { dropped: writer.error_counter(), _flush: flush });
        let lines: Box<dyn Layer<_> + Send + Sync> = lines(config.log, writer);
        tracing_subscriber::registry().with(lines.with_filter(layer)).try_init().map_err(TelemetryError::LogTaken)?;

        let recorder = recorder(IDLE_MAX).map_err(TelemetryError::Buckets)?;
        let metrics = recorder.handle();
        ::metrics::set_global_recorder(recorder).map_err(|error| TelemetryError::MetricsTaken(Box::new(error)))?;
        actors::metrics::describe_all();
        metrics::describe();
        Ok(Self { level: Arc::new(move |filter| level.reload(filter)), metrics, log })
    }

    /// From now on logs what `config` says. The format stays until a restart.
    pub fn set_level(&self, config: &TelemetryConfig) -> Result<(), TelemetryError> {
        (self.level)(filter(&config.level)?).map_err(TelemetryError::Reload)
    }

    /// All metrics, in Prometheus' text format.
    pub fn render(&self) -> String {
        let dropped = u64::try_from(self.log.dropped.dropped_lines()).unwrap_or(u64::MAX);
        ::metrics::counter!(metrics::LOG_LINES_DROPPED).absolute(dropped);
        actors::metrics::touch_kept();
        self.metrics.render()
    }

    /// Keeps the memory of metrics bounded. Never returns: to be spawned for as long as the process runs.
    pub async fn upkeep(self) {
        let mut ticks = tokio::time::interval(UPKEEP_EVERY);
        loop {
            ticks.tick().await;
            self.metrics.run_upkeep();
        }
    }
}

/// Libraries that are heard only when the level names them. To openraft each call that a node does not answer is an error,
/// many a second while it is away, and so is each call under way when it is stopped; nobody has to act. The rooms say once
/// that a node cannot be reached, and that Raft has ended.
const QUIET: &str = "openraft=off,chitchat=error,sled=error,h2=warn,hyper=warn";

fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    // What these libraries find worth a line says nothing to an operator; what matters of it, the rooms say themselves.
    let quiet = ["error", "warn", "info", "debug"].contains(&level.trim());
    let directives = if quiet { format!("{level},{QUIET}") } else { level.to_owned() };
    EnvFilter::try_new(directives).map_err(|cause| TelemetryError::Level { level: level.to_owned(), cause })
}

fn lines<W>(format: LogFormat, to: W) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // A log that cannot be written must not bring down or fill up anything else.
    let layer = fmt::layer().with_writer(to).log_internal_errors(false);
    match format {
        LogFormat::Human => layer.with_ansi(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    }
}

/// Every histogram with buckets; without them it would become a summary, which cannot be added up over nodes.
fn recorder(idle_max: Duration) -> Result<PrometheusRecorder, BuildError> {
    let mut builder = PrometheusBuilder::new()
        .idle_timeout(MetricKindMask::COUNTER | MetricKindMask::HISTOGRAM, Some(idle_max))
        .set_buckets(COUNTS)?;
    for histogram in metrics::all().into_iter().filter(|described| described.kind == Kind::Histogram) {
        builder = builder.set_buckets_for_metric(Matcher::Full(histogram.name.to_owned()), buckets(histogram))?;
    }
    Ok(builder.build_recorder())
}

fn buckets(histogram: &Described) -> &'static [f64] {
    use ::metrics::Unit;
    match histogram.unit {
        Unit::Seconds => SECONDS,
        Unit::Bytes => BYTES,
        Unit::Count
        | Unit::Percent
        | Unit::Milliseconds
        | Unit::Microseconds
        | Unit::Nanoseconds
        | Unit::Tebibytes
        | Unit::Gibibytes
        | Unit::Mebibytes
        | Unit::Kibibytes
        | Unit::TerabitsPerSecond
        | Unit::GigabitsPerSecond
        | Unit::MegabitsPerSecond
        | Unit::KilobitsPerSecond
        | Unit::BitsPerSecond
        | Unit::CountPerSecond => COUNTS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: &str) -> String {
        let written = Lines::default();
        let to = written.clone();
        let layer = lines(format, move || to.clone()).with_filter(filter(level).unwrap());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(provider = "openai", "provider is slow");
            tracing::debug!("not worth a line");
            tracing::error!(target: "openraft::replication", "nobody answers");
        });
        let bytes = written.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_json_line_has_its_facts_at_the_top() {
        let line: serde_json::Value = serde_json::from_str(&logged(LogFormat::Json, "info")).unwrap();

        assert_eq!(line["message"], "provider is slow");
        assert_eq!(line["provider"], "openai");
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn a_level_hides_what_is_less_severe() {
        assert_eq!(logged(LogFormat::Human, "info").lines().count(), 1);
        assert_eq!(logged(LogFormat::Human, "debug").lines().count(), 2);
        assert_eq!(logged(LogFormat::Human, "error"), "");
    }

    /// A summary cannot be added up over nodes, so a histogram without buckets is a defect.
    #[test]
    fn every_histogram_is_rendered_with_buckets() {
        let recorder = recorder(IDLE_MAX).unwrap();
        let handle = recorder.handle();
        let histograms: Vec<_> = metrics::all().into_iter().filter(|one| one.kind == Kind::Histogram).collect();

        ::metrics::with_local_recorder(&recorder, || {
            for histogram in &histograms {
                ::metrics::histogram!(histogram.name).record(0.3);
            }
        });

        let text = handle.render();
        for histogram in &histograms {
            assert!(text.contains(&format!("# TYPE {} histogram", histogram.name)), "{}", histogram.name);
        }
        assert!(!text.contains("quantile="), "{text}");
    }

    #[test]
    fn a_counter_whose_handle_is_kept_is_shown_however_long_it_idles() {
        let recorder = recorder(Duration::ZERO).unwrap();
        let handle = recorder.handle();
        let made = || ::metrics::with_local_recorder(&recorder, || ::metrics::counter!("lea_test_total", "of" => "it"));
        let shown = || {
            actors::metrics::touch_kept();
            handle.render().contains("lea_test_total{of=\"it\"} ")
        };

        let kept = actors::metrics::KeptCounter::new(made());
        assert!(shown() && shown() && shown(), "idle as it is");
        drop(kept);
        made().increment(1);
        assert!((0..3).any(|_read| !shown()), "nobody holds it, so it is forgotten");
    }

    #[test]
    fn a_level_that_is_none_is_a_problem() {
        let mut problems = Problems::new();
        TelemetryConfig { level: "info,actors==".to_owned(), ..TelemetryConfig::default() }.check(&mut problems);
        assert_eq!(problems.len(), 1);

        let mut none = Problems::new();
        TelemetryConfig { level: "warn,actors::cache=debug".to_owned(), ..TelemetryConfig::default() }.check(&mut none);
        assert!(none.is_empty(), "{none}");
    }
}
