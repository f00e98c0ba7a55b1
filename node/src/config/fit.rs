//! Fits the tree to the schema generated from the configuration's types: wrong types and missing values are told here,
//! all of them. What fits comes back as JSON, ready to be deserialized.
//!
//! Names that the schema does not list stay in the JSON with a prepared [`Fitted::complaints`] entry: the types have
//! the last word, because some of them know names of later versions that the reference does not show.
//!
//! Knows the part of JSON Schema that the types produce. What a schema cannot say (durations, sizes, amounts) is left
//! to deserialization.

use super::environment::{self, Lookup};
use super::problem::Problem;
use super::tree::{Entry, Node, Path, Place, Scalar, Value};
use cluster::directory::problems::nearest;
use serde_json::{Map, Number, Value as Json};
use std::collections::HashMap;

/// The definition whose values stay as written: a secret is looked up later and never shown.
pub const SECRET_DEFINITION: &str = "#/$defs/Secret";

pub struct Fitted {
    /// What fits. What does not is left out, so that the rest can be looked at too.
    pub json: Json,
    pub problems: Vec<Problem>,
    /// What to say where deserialization finds a name unknown.
    pub complaints: HashMap<Path, String>,
    /// What does not fit, and each has its problem.
    pub left_out: Vec<Path>,
    /// Names and values of the variables that were filled in.
    pub used: Vec<(String, String)>,
}

pub fn fit(tree: &Node, schema: &Json, lookup: Lookup<'_>) -> Fitted {
    let told = Fitted {
        json: Json::Null,
        problems: Vec::new(),
        complaints: HashMap::new(),
        left_out: Vec::new(),
        used: Vec::new(),
    };
    let mut fitting = Fitting { root: schema, lookup, told };
    let json = fitting.node(tree, tree.place, schema, &Path::default());
    Fitted { json: json.unwrap_or_else(|| Json::Object(Map::new())), ..fitting.told }
}

struct Fitting<'a> {
    root: &'a Json,
    lookup: Lookup<'a>,
    told: Fitted,
}

/// One way a value may look. Choices (`anyOf`, `oneOf`, `null`) are flattened to a list of these.
#[derive(Clone, Copy)]
struct Shape<'a> {
    schema: &'a Json,
    secret: bool,
}

impl<'a> Fitting<'a> {
    /// None when the value must be left out; then a problem says why.
    fn node(&mut self, node: &Node, place: Place, schema: &'a Json, path: &Path) -> Option<Json> {
        let mut shapes = Vec::new();
        self.flatten(schema, false, &mut shapes);
        match &node.value {
            Value::Scalar(scalar) => self.scalar(scalar, place, &shapes, path),
            Value::List(items) => {
                let Some(shape) = shapes.iter().find(|shape| accepts(shape.schema, "array")) else {
                    self.wrong_kind("a list", place, &shapes, path);
                    return None;
                };
                Some(self.list(items, shape.schema, path))
            }
            Value::Map(entries) => {
                let maps: Vec<_> = shapes.iter().filter(|shape| accepts(shape.schema, "object")).copied().collect();
                let Some(shape) = best_map(entries, &maps) else {
                    self.wrong_kind("a map", place, &shapes, path);
                    return None;
                };
                self.map(entries, place, shape.schema, path)
            }
        }
    }

    fn flatten(&self, schema: &'a Json, secret: bool, shapes: &mut Vec<Shape<'a>>) {
        if let Some(reference) = schema.get("$ref").and_then(Json::as_str) {
            let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
            if let Some(target) = target {
                self.flatten(target, secret || reference == SECRET_DEFINITION, shapes);
            }
            return;
        }
        let choices = ["anyOf", "oneOf"].iter().filter_map(|word| schema.get(*word)?.as_array()).flatten();
        let mut chosen = false;
        for choice in choices {
            chosen = true;
            self.flatten(choice, secret, shapes);
        }
        if !chosen {
            shapes.push(Shape { schema, secret });
        }
    }

    fn scalar(&mut self, scalar: &Scalar, place: Place, shapes: &[Shape<'a>], path: &Path) -> Option<Json> {
        if scalar.is_null() {
            return self.null(place, shapes, path);
        }
        if shapes.iter().any(|shape| shape.secret) {
            return Some(Json::String(scalar.text.clone()));
        }
        let (text, bare) = match environment::expand(&scalar.text, self.lookup) {
            Ok(expanded) => {
                // Quotes round a variable are there for YAML's sake and say nothing about its value.
                let bare = scalar.plain || !expanded.used.is_empty();
                self.told.used.extend(expanded.used);
                (expanded.text, bare)
            }
            Err(errors) => {
                self.told.problems.extend(errors.iter().map(|error| place.problem(path, error.to_string())));
                return None;
            }
        };
        let words = words(shapes);
        if words.contains(&text.as_str()) {
            return Some(Json::String(text));
        }
        let mut complaint = None;
        for shape in shapes {
            match read(&text, bare, shape.schema) {
                Read::Fits(value) => return Some(value),
                Read::Wrong(message) => complaint = complaint.or(Some(message)),
                Read::OtherKind => {}
            }
        }
        if complaint.is_none() && !words.is_empty() {
            let near = nearest(&text, words.iter().copied());
            let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            let message = format!("`{}` is not known here; {}{near}", clip(&text), expectation(shapes));
            self.told.complaints.insert(path.clone(), message);
            return Some(Json::String(text));
        }
        let message = complaint.unwrap_or_else(|| format!("is `{}`; {}", clip(&text), expectation(shapes)));
        self.told.problems.push(place.problem(path, message));
        None
    }

    /// `key:` with nothing behind it means the default where there is one; an empty map or list where one is expected.
    fn null(&mut self, place: Place, shapes: &[Shape<'a>], path: &Path) -> Option<Json> {
        if shapes.iter().any(|shape| accepts(shape.schema, "null")) {
            return Some(Json::Null);
        }
        if let Some(shape) = shapes.iter().find(|shape| accepts(shape.schema, "object")) {
            return self.map(&[], place, shape.schema, path);
        }
        let message = format!("has no value; {}, or remove the line", expectation(shapes));
        self.told.problems.push(place.problem(path, message));
        None
    }

    fn list(&mut self, items: &[Node], schema: &'a Json, path: &Path) -> Json {
        let item_schema = schema.get("items").unwrap_or(&Json::Null);
        let mut list = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = path.index(index);
            match self.node(item, item.place, item_schema, &path) {
                Some(value) => list.push(value),
                None => self.told.left_out.push(path),
            }
        }
        Json::Array(list)
    }

    fn map(&mut self, entries: &[Entry], place: Place, schema: &'a Json, path: &Path) -> Option<Json> {
        let mut map = Map::new();
        let properties = schema.get("properties").and_then(Json::as_object);
        for entry in entries {
            let path = path.key(&entry.key);
            let known = properties.and_then(|properties| properties.get(&entry.key));
            let others = schema.get("additionalProperties").filter(|others| others.is_object());
            let Some(expected) = known.or(others) else {
                self.told.complaints.insert(path, unknown_key(&entry.key, schema));
                map.insert(entry.key.clone(), Json::Null);
                continue;
            };
            match self.node(&entry.value, entry.place, expected, &path) {
                Some(value) => {
                    map.insert(entry.key.clone(), value);
                }
                None => self.told.left_out.push(path),
            }
        }
        let required = schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str);
        let mut whole = true;
        for name in required.filter(|name| !map.contains_key(*name)) {
            whole = false;
            // What was written but does not fit has its problem already.
            if !entries.iter().any(|entry| entry.key == name) {
                self.told.problems.push(place.problem(path, format!("lacks `{name}`; add it")));
            }
        }
        whole.then_some(Json::Object(map))
    }

    fn wrong_kind(&mut self, written: &str, place: Place, shapes: &[Shape<'a>], path: &Path) {
        self.told.problems.push(place.problem(path, format!("is {written}; {}", expectation(shapes))));
    }
}

/// Of several kinds of map, the one whose fixed values match what is written, else the one that knows most keys.
fn best_map<'a>(entries: &[Entry], maps: &[Shape<'a>]) -> Option<Shape<'a>> {
    let known = |shape: &Shape<'a>| {
        let properties = shape.schema.get("properties").and_then(Json::as_object);
        entries
            .iter()
            .filter_map(|entry| Some((entry, properties?.get(&entry.key)?)))
            .map(|(entry, expected)| match (expected.get("const").and_then(Json::as_str), &entry.value.value) {
                (Some(tag), Value::Scalar(scalar)) if scalar.text == tag => 100,
                (Some(_), _) => 0,
                (None, _) => 1,
            })
            .sum::<usize>()
    };
    // Of equals the first, as it is written in the type.
    maps.iter().rev().max_by_key(|shape| known(shape)).copied()
}

fn unknown_key(key: &str, schema: &Json) -> String {
    let properties = schema.get("properties").and_then(Json::as_object);
    let known: Vec<&str> = properties.map(|known| known.keys().map(String::as_str).collect()).unwrap_or_default();
    match nearest(key, known.iter().copied()) {
        Some(near) => format!("`{}` is not known; did you mean `{near}`?", clip(key)),
        None if known.is_empty() => format!("`{}` is not known; nothing is expected here", clip(key)),
        None => format!("`{}` is not known; known here: {}", clip(key), known.join(", ")),
    }
}

enum Read {
    Fits(Json),
    /// The right kind, out of range.
    Wrong(String),
    OtherKind,
}

fn read(text: &str, bare: bool, schema: &Json) -> Read {
    if bare && accepts(schema, "boolean") {
        match text {
            "true" | "True" | "TRUE" => return Read::Fits(Json::Bool(true)),
            "false" | "False" | "FALSE" => return Read::Fits(Json::Bool(false)),
            _ => {}
        }
    }
    if bare && accepts(schema, "integer") && looks_like_a_number(text) {
        return integer(text, schema);
    }
    if bare
        && accepts(schema, "number")
        && looks_like_a_number(text)
        && let Some(number) = text.parse().ok().and_then(Number::from_f64)
    {
        return match out_of_range(text.parse().unwrap_or(f64::NAN), schema) {
            None => Read::Fits(Json::Number(number)),
            Some(message) => Read::Wrong(format!("is {}; {message}", clip(text))),
        };
    }
    // A scalar where text is expected is that text, whatever it looks like: `4.10` stays `4.10`.
    let words_only = schema.get("enum").is_some() || schema.get("const").is_some();
    if accepts(schema, "string") && !words_only {
        return Read::Fits(Json::String(text.to_owned()));
    }
    Read::OtherKind
}

fn looks_like_a_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+'))
}

fn integer(text: &str, schema: &Json) -> Read {
    let digits = text.replace('_', "");
    let Ok(value) = digits.parse::<i128>() else {
        return Read::Wrong(format!("is `{}`; a whole number is expected", clip(text)));
    };
    let (least, most) = bounds_of_format(schema);
    #[expect(clippy::cast_precision_loss, reason = "limits written in a schema are small")]
    if value < least || value > most {
        let least = schema.get("minimum").and_then(Json::as_i64).map_or(least, i128::from).max(least);
        return Read::Wrong(format!("is {value}; a whole number from {least} to {most} is expected"));
    } else if let Some(message) = out_of_range(value as f64, schema) {
        return Read::Wrong(format!("is {value}; {message}"));
    }
    let number = u64::try_from(value).map(Number::from).or_else(|_| i64::try_from(value).map(Number::from));
    number.map_or(Read::OtherKind, |number| Read::Fits(Json::Number(number)))
}

fn bounds_of_format(schema: &Json) -> (i128, i128) {
    match schema.get("format").and_then(Json::as_str) {
        Some("uint8") => (0, u8::MAX.into()),
        Some("uint16") => (0, u16::MAX.into()),
        Some("uint32") => (0, u32::MAX.into()),
        Some("uint64" | "uint") => (0, u64::MAX.into()),
        Some("int32") => (i32::MIN.into(), i32::MAX.into()),
        _ => (i64::MIN.into(), i64::MAX.into()),
    }
}

fn out_of_range(value: f64, schema: &Json) -> Option<String> {
    let least = schema.get("minimum").and_then(Json::as_f64);
    let most = schema.get("maximum").and_then(Json::as_f64);
    if least.is_none_or(|least| value >= least) && most.is_none_or(|most| value <= most) {
        return None;
    }
    Some(match (least, most) {
        (Some(least), Some(most)) => format!("{least} to {most} is expected"),
        (Some(least), None) => format!("at least {least} is expected"),
        (None, _) => format!("at most {} is expected", most.unwrap_or(f64::MAX)),
    })
}

/// Whether a value of this JSON type may stand here.
fn accepts(schema: &Json, kind: &str) -> bool {
    match schema.get("type") {
        Some(Json::String(only)) => only == kind,
        Some(Json::Array(several)) => several.iter().any(|one| one == kind),
        _ => match schema.get("const").or_else(|| schema.get("enum")?.get(0)) {
            Some(word) => word.is_string() && kind == "string",
            // `true` and `{}`: anything.
            None => !schema.is_null() && schema.get("not").is_none(),
        },
    }
}

/// Of a choice of words, the words.
fn words<'a>(shapes: &[Shape<'a>]) -> Vec<&'a str> {
    let words = shapes.iter().flat_map(|shape| {
        let several = shape.schema.get("enum").and_then(Json::as_array).into_iter().flatten();
        several.chain(shape.schema.get("const")).filter_map(Json::as_str)
    });
    words.collect()
}

/// What would be right, as the end of a sentence.
fn expectation(shapes: &[Shape<'_>]) -> String {
    let mut kinds: Vec<String> = Vec::new();
    let words = words(shapes);
    if !words.is_empty() {
        kinds.push(format!("one of {}", words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")));
    }
    for shape in shapes {
        let is_word = shape.schema.get("enum").is_some() || shape.schema.get("const").is_some();
        let names: [(&str, &str); 6] = [
            ("string", "a text"),
            ("integer", "a whole number"),
            ("number", "a number"),
            ("boolean", "`true` or `false`"),
            ("array", "a list"),
            ("object", "a map"),
        ];
        for (kind, name) in names {
            if accepts(shape.schema, kind) && !(is_word && kind == "string") && !kinds.iter().any(|known| known == name)
            {
                kinds.push(name.to_owned());
            }
        }
    }
    format!("expected {}", kinds.join(" or "))
}

/// A message stays one readable line whatever the file holds.
fn clip(text: &str) -> String {
    let short: String = text.chars().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < text.len() { format!("{short}…") } else { short }
}
