//! What was measured, for people and for programs.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// A number and what it is compared with.
pub struct Row {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    /// Of the same unit and the same run.
    pub baseline: f64,
    pub beside: &'static str,
    /// What else was seen.
    pub more: String,
}

pub struct Report {
    rows: Vec<Value>,
}

impl Report {
    pub fn new(run: Duration, keys: usize) -> Self {
        println!("each measurement {run:?}, {keys} keys; all nodes are in one process, on this machine's cores\n");
        println!("{:<52} {:>12} {:<8} {:>8}  beside", "", "", "", "ratio");
        Self { rows: Vec::new() }
    }

    pub fn row(&mut self, row: Row) {
        let Row { name, value, unit, baseline, beside, more } = row;
        let ratio = value / baseline;
        println!("{name:<52} {value:>12.1} {unit:<8} {ratio:>8.2}  {beside}: {baseline:.1} {unit}{more}");
        self.rows.push(json!({
            "name": name, "value": value, "unit": unit, "ratio": ratio, "beside": beside, "baseline": baseline,
            "more": more.trim_start_matches("; "),
        }));
    }

    pub fn write(self) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/benches/results");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("cluster.json"), serde_json::to_vec_pretty(&self.rows).unwrap()).unwrap();
        println!("\nwritten: tests/benches/results/cluster.json");
    }
}

/// The value below which this share of all is.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of a vector")]
    let at = (values.len() as f64 * share) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
