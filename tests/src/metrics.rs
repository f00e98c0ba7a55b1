//! A scrape of `/metrics`, to be asked.

use std::collections::BTreeMap;

/// All series of one scrape.
#[derive(Clone, Debug)]
pub struct Metrics {
    series: Vec<Series>,
}

#[derive(Clone, Debug)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads the Prometheus text format; what is not in it ends the test.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let series = lines.map(|line| series(line).unwrap_or_else(|| panic!("not a series: {line}"))).collect();
        Self { series }
    }

    /// The sum of the series `name` that have all of `labels`; `None` if there is none.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found = self.matching(name, labels).map(|series| series.value).peekable();
        found.peek()?;
        Some(found.sum())
    }

    /// As [`Metrics::value`] for a counter, 0 while it was never counted.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.value(name, labels).unwrap_or(0.0)
    }

    /// How many series `name` has: what a bound on label values is held against.
    pub fn cardinality(&self, name: &str) -> usize {
        self.matching(name, &[]).count()
    }

    fn matching<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Series> {
        let has_all = |series: &&Series| {
            labels.iter().all(|(label, value)| series.labels.get(*label).is_some_and(|is| is == value))
        };
        self.series.iter().filter(move |series| series.name == name).filter(has_all)
    }
}

fn series(line: &str) -> Option<Series> {
    let name_end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while let Some((label, value, after)) = label(rest) {
            labels.insert(label.to_owned(), value);
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = rest.strip_prefix('}')?;
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Series { name: name.to_owned(), labels, value })
}

/// `label="value"`, unescaped, and what comes after it.
fn label(text: &str) -> Option<(&str, String, &str)> {
    let (label, quoted) = text.split_once("=\"")?;
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((label, value, &quoted[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_found_by_name_and_labels() {
        let text = "# HELP a_total things\n# TYPE a_total counter\na_total{x=\"1\",y=\"a \\\"b\\\", {c}\"} 2\na_total{x=\"2\"} 3 1700000\n\nb 0.5\nc_bucket{le=\"+Inf\"} +Inf\n";
        let metrics = Metrics::parse(text);

        assert_eq!(metrics.value("a_total", &[]), Some(5.0));
        assert_eq!(metrics.value("a_total", &[("y", "a \"b\", {c}")]), Some(2.0));
        assert_eq!(metrics.value("b", &[]), Some(0.5));
        assert_eq!((metrics.value("b", &[("x", "1")]), metrics.count("zero", &[])), (None, 0.0));
        assert_eq!(metrics.cardinality("a_total"), 2);
    }
}
