//! YAML as a tree that remembers where everything was written.
//!
//! Accepts what a configuration needs: maps, lists and scalars. Anchors, aliases, tags and further documents are
//! refused, so a small file cannot become a large tree.

use super::problem::Problem;
use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, Span, Tag};
use std::borrow::Cow;
use std::fmt;

/// Bytes of a file. A larger one is refused before it is parsed.
pub const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Maps and lists inside one another. A deeper file is refused where it goes too deep.
pub const DEPTH_MAX: usize = 32;

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub place: Place,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// Text as written. What it means is decided by what its field expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scalar {
    pub text: String,
    /// Without quotes: may be a number, a boolean or null.
    pub plain: bool,
}

impl Scalar {
    pub fn is_null(&self) -> bool {
        self.plain && matches!(self.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    pub place: Place,
    pub value: Node,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

impl Place {
    pub const START: Self = Self { line: 1, column: 1 };

    pub fn problem(self, path: &Path, message: impl Into<String>) -> Problem {
        Problem { line: self.line, column: self.column, path: path.to_string(), message: message.into() }
    }
}

impl From<Marker> for Place {
    fn from(marker: Marker) -> Self {
        Self { line: marker.line(), column: marker.col() + 1 }
    }
}

/// Where in the tree, from the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Path(pub Vec<Segment>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Segment {
    Key(String),
    Index(usize),
}

impl Path {
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.with(Segment::Key(key.to_owned()))
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.with(Segment::Index(index))
    }

    pub fn last_key(&self) -> Option<&str> {
        match self.0.last() {
            Some(Segment::Key(key)) => Some(key),
            Some(Segment::Index(_)) | None => None,
        }
    }

    pub fn parent(&self) -> Option<Self> {
        self.0.split_last().map(|(_, before)| Self(before.to_vec()))
    }

    pub fn starts_with(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }

    fn with(&self, segment: Segment) -> Self {
        let mut segments = self.0.clone();
        segments.push(segment);
        Self(segments)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(key) => {
                    if position > 0 {
                        f.write_str(".")?;
                    }
                    if key.is_empty() || key.contains(|c: char| c == '.' || c.is_whitespace() || c.is_control()) {
                        write!(f, "{key:?}")?;
                    } else {
                        f.write_str(key)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Node {
    /// The place of what `path` names, or of the last part of it that was written: a key's own place, else the value's.
    pub fn place_of(&self, path: &Path) -> Place {
        let mut node = self;
        let mut place = self.place;
        for segment in &path.0 {
            let next = match (segment, &node.value) {
                (Segment::Key(key), Value::Map(entries)) => {
                    entries.iter().find(|entry| entry.key == *key).map(|entry| (&entry.value, entry.place))
                }
                (Segment::Index(index), Value::List(items)) => items.get(*index).map(|item| (item, item.place)),
                (Segment::Key(_) | Segment::Index(_), Value::Scalar(_) | Value::List(_) | Value::Map(_)) => None,
            };
            let Some((next, at)) = next else { break };
            (node, place) = (next, at);
        }
        place
    }

    /// A path given as plain words, as the rooms' checks give it: a number names a place in a list where there is one.
    /// Places are counted without the items of `left_out`.
    pub fn path_of(&self, words: &[String], left_out: &[Path]) -> Path {
        let mut path = Path::default();
        let mut node = Some(self);
        for word in words {
            let segment = match (node.map(|node| &node.value), word.parse::<usize>()) {
                (Some(Value::List(items)), Ok(index)) => {
                    let mut kept = (0..items.len()).filter(|at| !left_out.contains(&path.index(*at)));
                    Segment::Index(kept.nth(index).unwrap_or(index))
                }
                (_, _) => Segment::Key(word.clone()),
            };
            node = node.and_then(|node| node.child(&segment));
            path.0.push(segment);
        }
        path
    }

    fn child(&self, segment: &Segment) -> Option<&Node> {
        match (segment, &self.value) {
            (Segment::Key(key), Value::Map(entries)) => {
                entries.iter().find(|entry| entry.key == *key).map(|entry| &entry.value)
            }
            (Segment::Index(index), Value::List(items)) => items.get(*index),
            (Segment::Key(_) | Segment::Index(_), Value::Scalar(_) | Value::List(_) | Value::Map(_)) => None,
        }
    }
}

/// Parses one document. A syntax error ends the reading: what follows it cannot be trusted.
pub fn parse(text: &str) -> Result<Node, Vec<Problem>> {
    let mut builder = Builder::default();
    let options = granit_parser::options! {
        emit_comments: false,
        emit_unresolved_aliases: true,
        flow_nesting_limit: DEPTH_MAX + 1,
        block_nesting_limit: DEPTH_MAX + 1,
    };
    for next in Parser::new_from_str_with_options(text, options) {
        match next {
            Ok((event, span)) => builder.event(event, &span),
            Err(error) => {
                let message = if matches!(error.kind(), ErrorKind::RecursionLimitExceeded) {
                    too_deep()
                } else {
                    format!("is not YAML: {}", error.info())
                };
                builder.problem((*error.marker()).into(), message);
                break;
            }
        }
        if builder.stopped {
            break;
        }
    }
    if !builder.problems.is_empty() {
        return Err(builder.problems);
    }
    Ok(builder.root.unwrap_or(Node { place: Place::START, value: Value::Map(Vec::new()) }))
}

fn too_deep() -> String {
    format!("nests deeper than {DEPTH_MAX} levels; nothing here needs that")
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    problems: Vec<Problem>,
    documents: usize,
    /// Nothing that follows would be understood.
    stopped: bool,
}

struct Open {
    place: Place,
    collection: Collection,
}

enum Collection {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, key: Option<(String, Place)> },
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: &Span) {
        let place = Place::from(span.start);
        match event {
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd | Event::Comment(_, _) => {}
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    self.stop(place, "a second document begins here; keep one document in the file");
                }
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                self.problem(place, "aliases (`*name`) are not supported; write the value out");
                self.value(Node { place, value: Value::Scalar(Scalar { text: String::new(), plain: true }) });
            }
            Event::Anchor(_, _) => self.refuse_anchor(1, place),
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_anchor(anchor, place);
                self.refuse_tag(tag.as_ref(), place);
                let plain = style == ScalarStyle::Plain;
                self.scalar(Scalar { text: text.into_owned(), plain }, place);
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.refuse_anchor(anchor, place);
                self.refuse_tag(tag.as_ref(), place);
                self.open(place, Collection::List(Vec::new()));
            }
            Event::MappingStart(_, anchor, tag) => {
                self.refuse_anchor(anchor, place);
                self.refuse_tag(tag.as_ref(), place);
                self.open(place, Collection::Map { entries: Vec::new(), key: None });
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            _ => self.stop(place, "is YAML that is not supported here"),
        }
    }

    fn open(&mut self, place: Place, collection: Collection) {
        if matches!(self.open.last(), Some(Open { collection: Collection::Map { key: None, .. }, .. })) {
            self.stop(place, "a map or list cannot be a key; write a name, and quote it if it begins with `{` or `[`");
            return;
        }
        if self.open.len() >= DEPTH_MAX {
            self.stop(place, too_deep());
            return;
        }
        self.open.push(Open { place, collection });
    }

    fn close(&mut self) {
        let Some(Open { place, collection }) = self.open.pop() else { return };
        let value = match collection {
            Collection::List(items) => Value::List(items),
            Collection::Map { entries, key: _ } => Value::Map(entries),
        };
        self.value(Node { place, value });
    }

    fn scalar(&mut self, scalar: Scalar, place: Place) {
        let waits_for_key = match self.open.last() {
            Some(Open { collection: Collection::Map { entries, key: None }, .. }) => {
                Some(entries.iter().find(|entry| entry.key == scalar.text).map(|entry| entry.place))
            }
            Some(_) | None => None,
        };
        let Some(earlier) = waits_for_key else {
            self.value(Node { place, value: Value::Scalar(scalar) });
            return;
        };
        if let Some(earlier) = earlier {
            let path = self.path().key(&scalar.text);
            let message = format!("is already written at line {}; keep one of the two", earlier.line);
            self.problems.push(place.problem(&path, message));
        }
        if let Some(Open { collection: Collection::Map { key, .. }, .. }) = self.open.last_mut() {
            *key = Some((scalar.text, place));
        }
    }

    fn value(&mut self, node: Node) {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open { collection: Collection::List(items), .. }) => items.push(node),
            Some(Open { collection: Collection::Map { entries, key }, .. }) => match key.take() {
                Some((key, place)) => entries.push(Entry { key, place, value: node }),
                None => self.stop(node.place, "an alias cannot be a key"),
            },
        }
    }

    fn refuse_anchor(&mut self, anchor: usize, place: Place) {
        if anchor != 0 {
            self.problem(place, "anchors (`&name`) are not supported; remove it and write the value where it is used");
        }
    }

    fn refuse_tag(&mut self, tag: Option<&Cow<'_, Tag>>, place: Place) {
        if tag.is_some() {
            self.problem(place, "tags (`!name`) are not supported; remove it, and quote what shall be text");
        }
    }

    fn stop(&mut self, place: Place, message: impl Into<String>) {
        self.problem(place, message);
        self.stopped = true;
    }

    fn problem(&mut self, place: Place, message: impl Into<String>) {
        let path = self.path();
        self.problems.push(place.problem(&path, message));
    }

    /// Of what is being read now.
    fn path(&self) -> Path {
        let segments = self.open.iter().filter_map(|open| match &open.collection {
            Collection::List(items) => Some(Segment::Index(items.len())),
            Collection::Map { key, .. } => key.as_ref().map(|(key, _)| Segment::Key(key.clone())),
        });
        Path(segments.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str =
        "routes:\n  support:\n    targets: [openai/gpt-4.1, local/llama]\nprices:\n  openai/gpt-4.1: { input: $2 }\n";

    fn path(tree: &Node, words: &[&str]) -> Path {
        tree.path_of(&words.iter().map(ToString::to_string).collect::<Vec<_>>(), &[])
    }

    fn refusal(text: &str) -> String {
        let problems = parse(text).expect_err("refused");
        problems
            .iter()
            .map(|p| format!("{}:{} {}: {}", p.line, p.column, p.path, p.message))
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn a_place_is_where_the_key_was_written() {
        let tree = parse(TEXT).unwrap();

        let place = |words: &[&str]| {
            let Place { line, column } = tree.place_of(&path(&tree, words));
            (line, column)
        };
        assert_eq!(place(&["routes", "support"]), (2, 3));
        assert_eq!(place(&["routes", "support", "targets", "1"]), (3, 31));
        assert_eq!(place(&["prices", "openai/gpt-4.1", "input"]), (5, 21));
        assert_eq!(place(&["routes", "support", "cache", "mode"]), (2, 3), "the nearest part that was written");
    }

    #[test]
    fn a_path_with_dots_in_its_keys_is_printed_unmistakably() {
        let tree = parse(TEXT).unwrap();

        let shown = |words: &[&str]| path(&tree, words).to_string();
        assert_eq!(shown(&["prices", "openai/gpt-4.1", "input"]), r#"prices."openai/gpt-4.1".input"#);
        assert_eq!(shown(&["routes", "support", "targets", "0"]), "routes.support.targets[0]");
        assert_eq!(shown(&["not", "there", "3", "at all"]), r#"not.there.3."at all""#);
    }

    #[test]
    fn a_repeated_key_is_told_with_both_lines() {
        assert_eq!(refusal("a:\n  x: 1\n  x: 2\n"), "3:3 a.x: is already written at line 2; keep one of the two");
    }

    #[test]
    fn nothing_that_can_blow_up_is_followed() {
        let laughs = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n";
        assert!(refusal(laughs).contains("2:8 b[0]: aliases (`*name`) are not supported"), "{}", refusal(laughs));

        let deep = format!("a: {}{}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(refusal(&deep).contains("nests deeper than 32 levels"), "{}", refusal(&deep));
    }

    #[test]
    fn what_yaml_has_and_a_configuration_does_not_need_is_refused_with_advice() {
        assert!(
            refusal("a: 1\n---\nb: 2\n").starts_with("2:1 : a second document begins here"),
            "{}",
            refusal("a: 1\n---\nb: 2\n")
        );
        assert!(refusal("a: !!str 1\n").contains("tags (`!name`) are not supported"));
        assert!(refusal("? [a]\n: 1\n").contains("cannot be a key"));
        assert!(refusal("a: *b\n").contains("aliases"));
        assert!(refusal("*b : 1\n").contains("cannot be a key"));
        assert!(refusal("a: [1\nb: 2").contains("is not YAML"));
    }

    #[test]
    fn an_empty_file_is_an_empty_map() {
        assert_eq!(parse("# nothing yet\n").unwrap().value, Value::Map(Vec::new()));
    }

    proptest! {
        /// A file is outside input: whatever it holds, reading it ends with a tree or with problems.
        #[test]
        fn no_text_makes_the_reader_panic(text in "[a-c:\\- \n\\[\\]{},&*!|>'\"#?%0-9$]{0,200}") {
            if let Ok(tree) = parse(&text) {
                let path = path(&tree, &["a", "b", "0", "c"]);
                prop_assert!(tree.place_of(&path).line >= 1);
            }
        }
    }
}
