//! JSON from outside, looked at in place: checked once for depth, UTF-8 and shape, then split level by level.
//!
//! Nothing here recurses, and nothing is copied that a caller does not take: a codec walks the levels it knows and has
//! the rest parsed into values.

use std::borrow::Cow;
use std::fmt;

use memchr::memchr2;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde_json::{Number, Value};

use crate::dialect::{BadRequest, BadRequestKind, DEPTH_MAX};
use crate::fault::shortened;

/// Fields of one object. More is refused: no API has so many, and every pair of names is compared.
const MEMBERS_MAX: usize = 128;

/// What another's parser says of a value is cut here.
const REASON_MAX: usize = 256;

/// One value, still text. Its brackets are known to match and to nest at most [`DEPTH_MAX`] deep.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    body: &'a str,
    start: usize,
    end: usize,
}

/// One field of an object.
#[derive(Clone, Debug)]
pub struct Member<'a> {
    pub name: Cow<'a, str>,
    pub value: Raw<'a>,
}

impl<'a> Raw<'a> {
    /// Reads a whole body: one value and nothing after it.
    pub fn parse(body: &'a [u8]) -> Result<Self, BadRequest> {
        let body = std::str::from_utf8(body).map_err(|error| {
            let (line, column) = position(body, error.valid_up_to());
            syntax("the body is not UTF-8", line, column)
        })?;
        let mut scanner = Scanner { body, at: 0 };
        scanner.skip_space();
        let start = scanner.at;
        scanner.skip_value()?;
        let end = scanner.at;
        scanner.skip_space();
        if scanner.at < body.len() {
            return Err(scanner.unexpected("the end of the body"));
        }
        Ok(Self { body, start, end })
    }

    pub fn text(self) -> &'a str {
        self.body.get(self.start..self.end).unwrap_or_default()
    }

    /// Where it stands in the body.
    pub fn range(self) -> std::ops::Range<usize> {
        self.start..self.end
    }

    pub fn is_null(self) -> bool {
        self.text() == "null"
    }

    /// What it is, for an error message.
    pub fn kind(self) -> &'static str {
        match self.first() {
            b'{' => "an object",
            b'[' => "a list",
            b'"' => "a string",
            b't' | b'f' => "a boolean",
            b'n' => "null",
            _ => "a number",
        }
    }

    pub fn is_object(self) -> bool {
        self.first() == b'{'
    }

    pub fn is_list(self) -> bool {
        self.first() == b'['
    }

    pub fn is_string(self) -> bool {
        self.first() == b'"'
    }

    fn first(self) -> u8 {
        self.body.as_bytes().get(self.start).copied().unwrap_or_default()
    }

    /// The fields of an object, in their order, each name once.
    pub fn members(self) -> Result<Vec<Member<'a>>, BadRequest> {
        if !self.is_object() {
            return Err(self.expected("an object"));
        }
        let mut members: Vec<Member<'a>> = Vec::with_capacity(8);
        let mut scanner = Scanner { body: self.body, at: self.start + 1 };
        scanner.skip_space();
        if scanner.peek() == Some(b'}') {
            return Ok(members);
        }
        loop {
            let start = scanner.at;
            if scanner.peek() != Some(b'"') {
                return Err(scanner.unexpected("a field name in quotes"));
            }
            scanner.skip_string()?;
            let name = Raw { body: self.body, start, end: scanner.at }.string()?;
            if members.iter().any(|member| member.name == name) {
                return Err(self.duplicate(&name, start));
            }
            scanner.skip_space();
            scanner.take(b':', "`:`")?;
            let value = scanner.value()?;
            members.push(Member { name, value });
            if members.len() > MEMBERS_MAX {
                return Err(refused(BadRequestKind::Invalid, format!("has more than {MEMBERS_MAX} fields")));
            }
            scanner.skip_space();
            if scanner.peek() == Some(b'}') {
                return Ok(members);
            }
            scanner.take(b',', "`,` or `}`")?;
            scanner.skip_space();
        }
    }

    /// The values of a list, one after the other. After an error there is no more.
    pub fn elements(self) -> Result<Elements<'a>, BadRequest> {
        if !self.is_list() {
            return Err(self.expected("a list"));
        }
        Ok(Elements { scanner: Scanner { body: self.body, at: self.start + 1 }, place: Place::First })
    }

    pub fn string(self) -> Result<Cow<'a, str>, BadRequest> {
        if !self.is_string() {
            return Err(self.expected("a string"));
        }
        let inner = self.body.get(self.start + 1..self.end.saturating_sub(1)).unwrap_or_default();
        // Without a branch, so that it runs on many bytes at once.
        let odd = inner.bytes().fold(0, |odd, byte| odd | u8::from(byte < 0x20) | u8::from(byte == b'\\'));
        if odd == 0 { Ok(Cow::Borrowed(inner)) } else { self.parsed::<String>().map(Cow::Owned) }
    }

    pub fn boolean(self) -> Result<bool, BadRequest> {
        match self.text() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(self.expected("a boolean")),
        }
    }

    pub fn number(self) -> Result<Number, BadRequest> {
        if self.kind() == "a number" { self.parsed() } else { Err(self.expected("a number")) }
    }

    /// A whole number in `least..=most`.
    pub fn integer(self, least: u64, most: u64) -> Result<u64, BadRequest> {
        let number = self.number()?;
        number.as_u64().filter(|whole| (least..=most).contains(whole)).ok_or_else(|| {
            let text = shortened(self.text(), 32);
            refused(BadRequestKind::Invalid, format!("expected a whole number from {least} to {most}, got `{text}`"))
        })
    }

    /// The whole value, for a field this crate does not know.
    pub fn value(self) -> Result<Value, BadRequest> {
        self.parsed()
    }

    pub fn decode<T: Deserialize<'a>>(self) -> Result<T, BadRequest> {
        self.parsed()
    }

    /// That the value is JSON to its last byte, for a field nobody takes.
    pub fn check(self) -> Result<(), BadRequest> {
        self.parsed::<de::IgnoredAny>().map(|_| ())
    }

    pub fn expected(self, wanted: &str) -> BadRequest {
        if self.kind() == "a number" && !self.first().is_ascii_digit() && self.first() != b'-' {
            return Scanner { body: self.body, at: self.start }.unexpected("a value");
        }
        refused(BadRequestKind::Invalid, format!("expected {wanted}, got {}", self.kind()))
    }

    fn parsed<T: Deserialize<'a>>(self) -> Result<T, BadRequest> {
        serde_json::from_str(self.text()).map_err(|error| {
            let text = error.to_string();
            let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
            let reason = shortened(reason, REASON_MAX);
            if error.is_data() {
                return refused(BadRequestKind::Invalid, reason.to_owned());
            }
            let (line, column) = position(self.body.as_bytes(), self.start);
            let column_before = if error.line() == 1 { column } else { 1 };
            let (line, column) =
                (line + error.line().saturating_sub(1), column_before + error.column().saturating_sub(1));
            // The value ends, not the body: what is wrong is the byte behind it.
            if error.is_eof() { syntax("the value breaks off", line, column + 1) } else { syntax(reason, line, column) }
        })
    }

    fn duplicate(self, name: &str, at: usize) -> BadRequest {
        let (line, column) = position(self.body.as_bytes(), at);
        let name = shortened(name, 64);
        BadRequest {
            message: format!("stands twice, again at line {line} column {column}"),
            param: Some(name.to_owned()),
            kind: BadRequestKind::DuplicateKey,
        }
    }
}

/// Walks a list.
#[derive(Debug)]
pub struct Elements<'a> {
    scanner: Scanner<'a>,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    First,
    Later,
    Over,
}

impl<'a> Elements<'a> {
    fn step(&mut self) -> Result<Option<Raw<'a>>, BadRequest> {
        self.scanner.skip_space();
        if self.scanner.peek() == Some(b']') {
            return Ok(None);
        }
        if self.place == Place::Later {
            self.scanner.take(b',', "`,` or `]`")?;
        }
        self.place = Place::Later;
        self.scanner.value().map(Some)
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Raw<'a>, BadRequest>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.place == Place::Over {
            return None;
        }
        let step = self.step().transpose();
        if !matches!(step, Some(Ok(_))) {
            self.place = Place::Over;
        }
        step
    }
}

/// Finds the end of values without looking closer than their brackets and quotes.
#[derive(Clone, Debug)]
struct Scanner<'a> {
    body: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.body.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\t' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, wanted: u8, name: &str) -> Result<(), BadRequest> {
        if self.peek() != Some(wanted) {
            return Err(self.unexpected(name));
        }
        self.at += 1;
        Ok(())
    }

    fn value(&mut self) -> Result<Raw<'a>, BadRequest> {
        self.skip_space();
        let start = self.at;
        self.skip_value()?;
        Ok(Raw { body: self.body, start, end: self.at })
    }

    fn skip_value(&mut self) -> Result<(), BadRequest> {
        match self.peek() {
            Some(b'"') => self.skip_string(),
            Some(b'{' | b'[') => self.skip_nested(),
            Some(byte) if byte == b'-' || byte.is_ascii_alphanumeric() => {
                while matches!(self.peek(), Some(byte) if byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) {
                    self.at += 1;
                }
                Ok(())
            }
            Some(_) | None => Err(self.unexpected("a value")),
        }
    }

    /// The kinds of the open brackets are the bits of one word, so [`DEPTH_MAX`] may not pass 64.
    fn skip_nested(&mut self) -> Result<(), BadRequest> {
        const { assert!(DEPTH_MAX <= 64, "one bit for each level") };
        let (mut depth, mut objects) = (0_usize, 0_u64);
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    self.skip_string()?;
                    continue;
                }
                b'{' | b'[' => {
                    if depth == DEPTH_MAX {
                        return Err(self.too_deep());
                    }
                    depth += 1;
                    objects = objects << 1 | u64::from(byte == b'{');
                }
                b'}' | b']' => {
                    if (objects & 1 == 1) != (byte == b'}') {
                        return Err(self.unexpected(if byte == b'}' { "`]`" } else { "`}`" }));
                    }
                    depth -= 1;
                    objects >>= 1;
                    if depth == 0 {
                        self.at += 1;
                        return Ok(());
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
        Err(self.unexpected("a closing bracket"))
    }

    fn skip_string(&mut self) -> Result<(), BadRequest> {
        let start = self.at;
        self.at += 1;
        loop {
            let rest = self.body.as_bytes().get(self.at..).unwrap_or_default();
            match memchr2(b'"', b'\\', rest) {
                Some(found) if rest.get(found) == Some(&b'"') => {
                    self.at += found + 1;
                    return Ok(());
                }
                Some(found) => self.at += found + 2,
                None => {
                    self.at = start;
                    let (line, column) = position(self.body.as_bytes(), start);
                    return Err(syntax("the string is not closed", line, column));
                }
            }
        }
    }

    fn unexpected(&self, wanted: &str) -> BadRequest {
        let (line, column) = position(self.body.as_bytes(), self.at);
        match self.body.get(self.at..).and_then(|rest| rest.chars().next()) {
            Some(found) => syntax(&format!("expected {wanted}, found `{}`", found.escape_default()), line, column),
            None => syntax(&format!("expected {wanted}, found the end"), line, column),
        }
    }

    fn too_deep(&self) -> BadRequest {
        let (line, column) = position(self.body.as_bytes(), self.at);
        refused(
            BadRequestKind::Depth,
            format!("the body nests deeper than {DEPTH_MAX} levels at line {line} column {column}"),
        )
    }
}

/// Counts both from 1; the column in bytes.
fn position(body: &[u8], at: usize) -> (usize, usize) {
    let before = body.get(..at).unwrap_or(body);
    let line = 1 + memchr::memchr_iter(b'\n', before).count();
    let column = 1 + before.len() - memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1);
    (line, column)
}

fn syntax(reason: &str, line: usize, column: usize) -> BadRequest {
    let message = format!("the body is not valid JSON: {reason} at line {line} column {column}");
    refused(BadRequestKind::Syntax { line, column }, message)
}

fn refused(kind: BadRequestKind, message: String) -> BadRequest {
    BadRequest { message, param: None, kind }
}

impl BadRequest {
    /// The same problem, seen from the object that holds the field `name`.
    #[must_use]
    pub fn within(mut self, name: &str) -> Self {
        self.param = match self.param.take() {
            _ if matches!(self.kind, BadRequestKind::Syntax { .. } | BadRequestKind::Depth) => None,
            None => Some(name.to_owned()),
            Some(inner) if inner.starts_with('[') => Some(format!("{name}{inner}")),
            Some(inner) => Some(format!("{name}.{inner}")),
        };
        self
    }

    /// The same problem, seen from the list that holds the value.
    #[must_use]
    pub fn within_element(self, index: usize) -> Self {
        self.within(&format!("[{index}]"))
    }

    /// The message with its field named first, as a client reads it.
    #[must_use]
    pub fn named(mut self) -> Self {
        if let Some(param) = &self.param {
            self.message = format!("`{param}`: {}", self.message);
        }
        self
    }
}

/// A string borrowed from the input where it has no escapes. (Serde alone borrows a `Cow` only outside an `Option`.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text)))
            }
        }

        deserializer.deserialize_str(TextVisitor)
    }
}

/// Appends `text` as a JSON string.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    write(&text, out);
}

/// Appends `value` as JSON. A value that cannot be said in JSON (there is none in this crate) is said as `null`.
pub fn write<T: serde::Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    let before = out.len();
    if serde_json::to_writer(&mut *out, value).is_err() {
        out.truncate(before);
        out.extend_from_slice(b"null");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn problem(body: &[u8]) -> BadRequest {
        Raw::parse(body).and_then(Raw::members).and_then(read_members).unwrap_err()
    }

    fn read_members(members: Vec<Member<'_>>) -> Result<(), BadRequest> {
        members.into_iter().try_for_each(|member| member.value.check())
    }

    #[test]
    fn a_problem_is_found_where_it_stands() {
        for (body, line, column) in [
            (&b"{\"a\": 1,\n \"b\": }"[..], 2, 7),
            (b"{\"a\": tru}", 1, 10),
            (b"{\"a\": [1, 2}", 1, 12),
            (b"{\"a\": \"x", 1, 7),
            (b"{\"a\": 1} 2", 1, 10),
            (b"{\"a\" 1}", 1, 6),
            (b"{,}", 1, 2),
            (b"{\"a\": 01}", 1, 8),
            (b"{\"a\": \"\xff\"}", 1, 8),
            (b"", 1, 1),
            (b"{\"a\":\n\n \"\\x\"}", 3, 4),
        ] {
            let problem = problem(body);
            let text = String::from_utf8_lossy(body);
            assert_eq!(problem.kind, BadRequestKind::Syntax { line, column }, "{text}: {problem}");
            assert!(problem.message.ends_with(&format!("at line {line} column {column}")), "{problem}");
        }
    }

    #[test]
    fn depth_is_bounded_without_recursion() {
        for depth in [DEPTH_MAX, DEPTH_MAX + 1, 10_000, 1_000_000] {
            for open in ["[", "{\"a\":"] {
                let body = open.repeat(depth) + "1" + &if open == "[" { "]" } else { "}" }.repeat(depth);
                let outcome = Raw::parse(body.as_bytes()).map(|_| ()).map_err(|problem| problem.kind);
                let wanted = if depth <= DEPTH_MAX { Ok(()) } else { Err(BadRequestKind::Depth) };
                assert_eq!(outcome, wanted, "{depth}");
            }
            assert!(Raw::parse("[".repeat(depth).as_bytes()).is_err());
        }
    }

    #[test]
    fn a_field_may_not_stand_twice_however_it_is_written() {
        let problem = problem(b"{\"model\": \"a\",\n\"mod\\u0065l\": \"b\"}");

        assert_eq!(problem.kind, BadRequestKind::DuplicateKey);
        assert_eq!(problem.param.as_deref(), Some("model"));
        assert_eq!(problem.message, "stands twice, again at line 2 column 1");
    }

    #[test]
    fn an_object_has_a_bound() {
        let fields: Vec<String> = (0..=MEMBERS_MAX).map(|index| format!("\"{index}\":0")).collect();

        assert_eq!(problem(format!("{{{}}}", fields.join(",")).as_bytes()).kind, BadRequestKind::Invalid);
        assert!(Raw::parse(format!("{{{}}}", fields[1..].join(",")).as_bytes()).and_then(Raw::members).is_ok());
    }

    fn read(raw: Raw<'_>) -> Result<Value, BadRequest> {
        if raw.is_object() {
            let fields = raw.members()?.into_iter().map(|member| Ok((member.name.into_owned(), read(member.value)?)));
            return fields.collect::<Result<serde_json::Map<_, _>, _>>().map(Value::Object);
        }
        if raw.is_list() {
            return raw.elements()?.map(|element| element.and_then(read)).collect::<Result<_, _>>().map(Value::Array);
        }
        if raw.is_string() {
            return raw.string().map(|text| json!(text));
        }
        raw.value()
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::hash_map(".*", inner, 0..5).prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Read level by level, a value is what serde reads at once.
        #[test]
        fn whatever_is_json_is_read_as_it_is(value in value(), pretty in any::<bool>()) {
            let body = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();

            prop_assert_eq!(Raw::parse(&body).and_then(read).unwrap(), value);
        }

        /// What is accepted here is JSON to everybody, so that nobody behind us reads something else.
        #[test]
        fn whatever_is_read_is_json(body in "[\\[\\]{},:\" \\\\0-9a-fnrtule.+-]{0,24}") {
            if let Ok(value) = Raw::parse(body.as_bytes()).and_then(read) {
                prop_assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), value);
            }
        }

        #[test]
        fn any_bytes_are_survived(body in prop::collection::vec(any::<u8>(), 0..64)) {
            let outcome = Raw::parse(&body).and_then(read);
            prop_assert_eq!(outcome.is_ok(), serde_json::from_slice::<Value>(&body).is_ok());
        }
    }
}
