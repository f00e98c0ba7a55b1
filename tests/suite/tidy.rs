//! The repository checks itself: who may know whom, and what every file keeps to.
//!
//! Each rule is a function of text that returns what is wrong, so that the rule itself has a test in which it fails.

#![expect(clippy::unwrap_used, reason = "a repository that cannot be read fails the test")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Lines a source file may have, tests included.
const LINES_MAX: usize = 800;

/// Calls go down only. A new room or arrow is a decision, and changes `ARCHITECTURE.md` in the same commit.
const ROOMS: &[Room] = &[
    Room { name: "llm", knows: &[], tested_with: &[], outside: Outside::Only(&PURE) },
    Room { name: "semantics", knows: &["llm"], tested_with: &[], outside: Outside::Only(&PURE) },
    Room { name: "storage", knows: &[], tested_with: &[], outside: Outside::Never(&ABOVE_STORAGE) },
    Room { name: "cluster", knows: &["storage"], tested_with: &[], outside: Outside::Never(&ABOVE_CLUSTER) },
    Room {
        name: "actors",
        knows: &["llm", "semantics", "storage", "cluster"],
        tested_with: &[],
        outside: Outside::Never(&["clap", "anyhow"]),
    },
    Room {
        name: "node",
        knows: &["llm", "semantics", "storage", "cluster", "actors"],
        tested_with: &["harness"],
        outside: Outside::Never(&["ractor"]),
    },
    Room { name: "harness", knows: &["llm"], tested_with: &[], outside: Outside::Never(&["ractor"]) },
    Room {
        name: "jepsen",
        knows: &["harness", "node", "actors", "cluster", "storage"],
        tested_with: &[],
        outside: Outside::Never(&[]),
    },
];

/// What a pure room may use: no runtime, no clock, no I/O.
const PURE: [&str; 6] = ["blake3", "bytes", "memchr", "serde", "serde_json", "thiserror"];
/// Nodes call each other over HTTP/2; providers and their clients are nothing `cluster` knows.
const ABOVE_CLUSTER: [&str; 3] = ["hyper-rustls", "ractor", "clap"];
const ABOVE_STORAGE: [&str; 6] = ["hyper", "hyper-util", "hyper-rustls", "http", "ractor", "serde_json"];

/// Files of the path of a request: the only ones in `actors` that know more than their own room.
const PATH_OF_A_REQUEST: [&str; 5] = ["lib", "ingress", "ingress/pipeline", "ingress/relay", "ingress/error"];

/// Rooms within `actors` that every other may name.
const KNOWN_TO_ALL: [&str; 2] = ["supervisor", "metrics"];

const UNSAFE_ALLOWED: [&str; 2] = ["semantics/src/embedding/kernel.rs", "storage/src/cache/vectors/dot.rs"];

const TOP_REQUIRED: [&str; 22] = [
    ".ci",
    ".config",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "NOTICE",
    "README.md",
    "SECURITY.md",
    "actors",
    "clippy.toml",
    "cluster",
    "deny.toml",
    "llm",
    "node",
    "rustfmt.toml",
    "semantics",
    "storage",
    "tests",
];
const TOP_ALLOWED: [&str; 4] = ["deployments", "docs", "jepsen", "sdks"];
const TOP_NOT_OURS: [&str; 2] = [".git", "target"];

/// What is built, downloaded or found, and never committed.
const FOLDERS_NOT_OURS: [&str; 9] =
    [".git", "target", "node_modules", ".venv", "corpus", "artifacts", "__pycache__", ".pytest_cache", ".tools"];

struct Room {
    name: &'static str,
    knows: &'static [&'static str],
    /// Rooms that only its tests may use.
    tested_with: &'static [&'static str],
    outside: Outside,
}

enum Outside {
    Only(&'static [&'static str]),
    Never(&'static [&'static str]),
}

#[test]
fn calls_go_down_only() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();

    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() >= 7, "all rooms are members: {}", packages.len());
    assert_none(packages.iter().flat_map(wrong_arrows));
}

#[test]
fn within_actors_only_the_path_of_a_request_knows_more_than_one_room() {
    let files = files_ending(".rs");
    let rooms = rooms_of_actors(files.keys());
    assert!(rooms.len() > 8, "found {rooms:?}");

    assert_none(files.iter().flat_map(|(path, text)| wrong_neighbours(path, text, &rooms)));
}

#[test]
fn rust_files_keep_the_house_rules() {
    let files = files_ending(".rs");
    assert!(files.len() > 50, "found {}", files.len());

    assert_none(files.iter().flat_map(|(path, text)| {
        [wrong_name(path), without_doc(path, text), unsafe_where_not_allowed(path, text)].into_iter().flatten()
    }));
}

#[test]
fn files_are_short_finished_and_know_no_machine() {
    let suffixes = [".rs", ".py", ".js", ".toml", ".md", ".yaml", ".yml", ".json", "/run"];
    let files: Vec<_> = suffixes.into_iter().flat_map(files_ending).collect();
    assert!(files.iter().any(|(path, _text)| path == "tests/run"));

    assert_none(files.iter().flat_map(|(path, text)| {
        [too_long(path, text)].into_iter().flatten().chain(unfinished(path, text)).chain(machine_paths(path, text))
    }));
}

#[test]
fn the_top_level_is_as_designed() {
    let entries: Vec<String> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !TOP_NOT_OURS.contains(&name.as_str()))
        .collect();

    assert_none(wrong_top_level(&entries));
}

#[test]
fn no_support_question_stands_twice() {
    let questions = fs::read_to_string(root().join("tests/data/support_questions.json")).unwrap();
    let questions: Value = serde_json::from_str(&questions).unwrap();

    assert_eq!(texts_of(&questions).len(), 60);
    assert_none(repeated(&texts_of(&questions)));
}

// The rules.

/// Dependencies of a package that its room may not have.
fn wrong_arrows(package: &Value) -> Vec<String> {
    let name = package["name"].as_str().unwrap();
    let Some(room) = ROOMS.iter().find(|room| room.name == name) else {
        return vec![format!("`{name}` is a room nobody designed")];
    };
    let mut problems = Vec::new();
    for dependency in package["dependencies"].as_array().unwrap() {
        let other = dependency["name"].as_str().unwrap();
        let for_tests = dependency["kind"] == "dev";
        let allowed = if ROOMS.iter().any(|room| room.name == other) {
            room.knows.contains(&other) || (for_tests && room.tested_with.contains(&other))
        } else {
            for_tests
                || match room.outside {
                    Outside::Only(only) => only.contains(&other),
                    Outside::Never(never) => !never.contains(&other),
                }
        };
        if !allowed {
            problems.push(format!("`{name}` must not depend on `{other}`"));
        }
    }
    problems
}

/// The rooms of `actors`, from the paths of its files.
fn rooms_of_actors<'a>(paths: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut rooms: Vec<String> = paths
        .filter_map(|path| path.strip_prefix("actors/src/")?.strip_suffix(".rs"))
        .filter(|module| !module.contains('/') && *module != "lib")
        .map(str::to_owned)
        .collect();
    rooms.sort();
    rooms
}

/// Rooms of `actors` that a file names and may not know.
fn wrong_neighbours(path: &str, text: &str, rooms: &[String]) -> Vec<String> {
    let Some(module) = path.strip_prefix("actors/src/").and_then(|path| path.strip_suffix(".rs")) else {
        return Vec::new();
    };
    let is_or_is_in = |parent: &str| module == parent || module.starts_with(&format!("{parent}/"));
    let of_the_path = PATH_OF_A_REQUEST.iter().any(|file| match *file {
        // Composition: their own files only, not what lies below.
        "lib" | "ingress" => module == *file,
        file => is_or_is_in(file),
    });
    // The list of everything that is measured names every room, and does nothing else.
    if of_the_path || module == "metrics" {
        return Vec::new();
    }
    let own = module.split('/').next().unwrap_or(module);
    let depth = module.split('/').count();
    let mut problems: Vec<String> = rooms_named(&code_of(text), depth, rooms)
        .into_iter()
        .filter(|room| room != own && !KNOWN_TO_ALL.contains(&room.as_str()))
        .map(|room| format!("{path} names `{room}`"))
        .collect();
    problems.sort();
    problems.dedup();
    problems
}

/// Rooms reached from the crate's root: by `crate::`, or by enough `super::`.
fn rooms_named(code: &str, depth: usize, rooms: &[String]) -> Vec<String> {
    let from_root = code.split("crate::").skip(1);
    let above = "super::".repeat(depth);
    let from_below = code.split(&above).skip(1).map(|rest| {
        let mut rest = rest;
        while let Some(shorter) = rest.strip_prefix("super::") {
            rest = shorter;
        }
        rest
    });
    from_root.chain(from_below).flat_map(first_segments).filter(|segment| rooms.contains(segment)).collect()
}

/// `a` of `a::b`, and `a` and `c` of `{a::{b, x}, c}`.
fn first_segments(path: &str) -> Vec<String> {
    let identifier = |text: &str| -> String {
        text.trim_start().chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
    };
    let Some(group) = path.strip_prefix('{') else {
        return vec![identifier(path)];
    };
    let mut level = 0;
    let mut segments = vec![identifier(group)];
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => level += 1,
            '}' if level == 0 => break,
            '}' => level -= 1,
            ',' if level == 0 => segments.push(identifier(&group[at + 1..])),
            _other => {}
        }
    }
    segments
}

fn wrong_name(path: &str) -> Option<String> {
    path.ends_with("/mod.rs").then(|| format!("{path}: a module is named by its file, not by its folder"))
}

/// A room's own `tests.rs` needs none: the room has said it.
fn without_doc(path: &str, text: &str) -> Option<String> {
    (!text.starts_with("//! ") && !path.ends_with("/tests.rs"))
        .then(|| format!("{path} does not begin by saying what it is for (`//! …`)"))
}

fn unsafe_where_not_allowed(path: &str, text: &str) -> Option<String> {
    let found = words(&code_of(text)).any(|word| word == "unsafe");
    (found && !UNSAFE_ALLOWED.contains(&path)).then(|| format!("{path} is unsafe and may not be"))
}

fn too_long(path: &str, text: &str) -> Option<String> {
    let is_source = Path::new(path).extension().is_some_and(|suffix| ["rs", "py", "js"].iter().any(|is| suffix == *is));
    let lines = text.lines().count();
    (is_source && lines > LINES_MAX).then(|| format!("{path} has {lines} lines, more than {LINES_MAX}"))
}

/// Work put off is an issue: `(#12)` stands right behind the mark.
fn unfinished(path: &str, text: &str) -> Vec<String> {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME")];
    let has_issue =
        |rest: &str| rest.strip_prefix("(#").is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_digit()));
    let in_line = |line: &str| {
        marks.iter().any(|mark| {
            line.match_indices(mark)
                .any(|(at, _mark)| is_word(line, at, mark.len()) && !has_issue(&line[at + mark.len()..]))
        })
    };
    numbered(text)
        .filter(|(_number, line)| in_line(line))
        .map(|(number, _line)| format!("{path}:{number}: work put off without an issue"))
        .collect()
}

/// Absolute paths that exist on one machine only.
fn machine_paths(path: &str, text: &str) -> Vec<String> {
    let roots = [concat!("/ho", "me/"), concat!("/Us", "ers/"), concat!("/ro", "ot/"), concat!("/wo", "rk/")];
    let starts_there = |line: &str, at: usize| {
        line[..at].chars().next_back().is_none_or(|before| before.is_whitespace() || "\"'`(=:[,<>".contains(before))
    };
    let in_line =
        |line: &str| roots.iter().any(|root| line.match_indices(root).any(|(at, _root)| starts_there(line, at)));
    numbered(text)
        .filter(|(_number, line)| in_line(line))
        .map(|(number, _line)| format!("{path}:{number}: a path of one machine"))
        .collect()
}

fn wrong_top_level(entries: &[String]) -> Vec<String> {
    let has = |name: &str| entries.iter().any(|entry| entry == name);
    let missing = TOP_REQUIRED.iter().filter(|name| !has(name)).map(|name| format!("`{name}` is missing"));
    let surplus = entries
        .iter()
        .filter(|name| !TOP_REQUIRED.contains(&name.as_str()) && !TOP_ALLOWED.contains(&name.as_str()))
        .map(|name| format!("`{name}` has no place at the top level"));
    missing.chain(surplus).collect()
}

fn repeated(texts: &[String]) -> Vec<String> {
    let mut sorted: Vec<_> = texts.iter().map(|text| text.to_lowercase()).collect();
    sorted.sort();
    sorted.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0].clone()).collect()
}

// What the rules read.

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Path from the root, with `/`, and text.
fn files_ending(suffix: &str) -> HashMap<String, String> {
    let mut files = HashMap::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() {
                if !FOLDERS_NOT_OURS.contains(&name.as_str()) {
                    folders.push(entry.path());
                }
                continue;
            }
            let path = entry.path().strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
            if path.ends_with(suffix) {
                files.insert(path, fs::read_to_string(entry.path()).unwrap());
            }
        }
    }
    files
}

fn texts_of(questions: &Value) -> Vec<String> {
    let mut texts = Vec::new();
    for group in questions["groups"].as_array().unwrap() {
        texts.push(&group["original"]);
        texts.extend(group["paraphrases"].as_array().unwrap());
        texts.extend(group["near_misses"].as_array().unwrap().iter().map(|near_miss| &near_miss["text"]));
    }
    texts.into_iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines())
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
}

fn is_word(line: &str, at: usize, length: usize) -> bool {
    let is_letter = |letter: Option<char>| letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
    !is_letter(line[..at].chars().next_back()) && !is_letter(line[at + length..].chars().next())
}

/// Rust without its comments, strings and characters.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let skipped = match letter {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '"' => string_length(rest),
            'r' if !code.ends_with(|before: char| before.is_alphanumeric() || before == '_') => raw_string_length(rest),
            '\'' => character_length(rest),
            _other => 0,
        };
        if skipped == 0 {
            code.push(letter);
            rest = &rest[letter.len_utf8()..];
        } else {
            rest = &rest[skipped..];
        }
    }
    code
}

fn string_length(text: &str) -> usize {
    let mut escaped = true; // so that the opening quote does not close it
    for (at, letter) in text.char_indices() {
        match letter {
            _any if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _other => {}
        }
    }
    text.len()
}

/// 0 where none begins.
fn raw_string_length(text: &str) -> usize {
    let hashes = text[1..].chars().take_while(|letter| *letter == '#').count();
    if !text[1 + hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let start = 2 + hashes;
    text[start..].find(&end).map_or(text.len(), |at| start + at + end.len())
}

/// 0 for a lifetime.
fn character_length(text: &str) -> usize {
    let mut letters = text[1..].char_indices();
    let Some((_at, first)) = letters.next() else { return 0 };
    if first == '\\' {
        let escaped = text[3..].find('\'');
        return escaped.map_or(0, |at| 3 + at + 1);
    }
    letters.next().filter(|(_at, second)| *second == '\'').map_or(0, |(at, _second)| 1 + at + 1)
}

fn assert_none(problems: impl IntoIterator<Item = String>) {
    let mut problems: Vec<String> = problems.into_iter().collect();
    problems.sort();
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

// Every rule can fail.

#[test]
fn a_wrong_arrow_is_found() {
    let package = |name: &str, dependency: &str, kind: Value| {
        wrong_arrows(&serde_json::json!({ "name": name, "dependencies": [{ "name": dependency, "kind": kind }] }))
    };
    let dev = || Value::from("dev");

    assert_eq!(package("llm", "semantics", Value::Null), ["`llm` must not depend on `semantics`"]);
    assert_eq!(package("llm", "tokio", Value::Null), ["`llm` must not depend on `tokio`"]);
    assert_eq!(package("cluster", "llm", dev()), ["`cluster` must not depend on `llm`"]);
    assert_eq!(package("cluster", "ractor", Value::Null), ["`cluster` must not depend on `ractor`"]);
    assert_eq!(package("node", "harness", Value::Null), ["`node` must not depend on `harness`"]);
    assert_eq!(package("storage", "cluster", dev()), ["`storage` must not depend on `cluster`"]);
    assert_eq!(package("storage", "http", Value::Null), ["`storage` must not depend on `http`"]);
    assert_eq!(package("cluster", "hyper-rustls", Value::Null), ["`cluster` must not depend on `hyper-rustls`"]);
    assert_eq!(package("cluster", "jepsen", dev()), ["`cluster` must not depend on `jepsen`"]);
    assert_eq!(package("node", "jepsen", dev()), ["`node` must not depend on `jepsen`"]);
    assert_eq!(package("jepsen", "llm", Value::Null), ["`jepsen` must not depend on `llm`"]);
    assert_eq!(package("actors", "jepsen", dev()), ["`actors` must not depend on `jepsen`"]);
    assert_eq!(package("common", "serde", Value::Null), ["`common` is a room nobody designed"]);
    assert!(package("node", "harness", dev()).is_empty());
    assert!(package("semantics", "llm", Value::Null).is_empty());
    assert!(package("cluster", "openraft", Value::Null).is_empty());
    assert!(package("cluster", "hyper", Value::Null).is_empty());
    assert!(package("jepsen", "cluster", Value::Null).is_empty());
    assert!(package("llm", "proptest", dev()).is_empty());
}

#[test]
fn a_neighbour_is_found_however_it_is_named() {
    let rooms = ["breaker", "cache", "metrics", "routing", "supervisor"].map(str::to_owned);
    let named = |path: &str, text: &str| !wrong_neighbours(path, text, &rooms).is_empty();

    assert!(named("actors/src/routing.rs", "use crate::breaker::Handle;"));
    assert!(named("actors/src/routing.rs", "fn f(_: &crate::cache::Cache) {}"));
    assert!(named("actors/src/routing.rs", "use crate::{supervisor::{Address, Tasks}, breaker};"));
    assert!(named("actors/src/routing.rs", "use super::breaker::Handle;"));
    assert!(named("actors/src/routing/table.rs", "use super::super::cache;"));
    assert!(named("actors/src/ingress/tls.rs", "use crate::cache;"));
    assert!(!named("actors/src/routing.rs", "use crate::{supervisor::Address, metrics};"));
    assert!(!named("actors/src/routing/table.rs", "use crate::routing::Plan; // as crate::cache::Plan"));
    assert!(!named("actors/src/routing/table.rs", "use super::cache;"));
    assert!(!named("actors/src/ingress/pipeline.rs", "use crate::{breaker, cache};"));
    assert!(!named("actors/src/ingress/pipeline/attempt.rs", "use crate::breaker;"));
    assert!(!named("node/src/lib.rs", "use crate::cache;"));
}

#[test]
fn a_file_that_breaks_the_house_rules_is_found() {
    assert!(wrong_name("llm/src/dialect/mod.rs").is_some());
    assert!(wrong_name("llm/src/dialect.rs").is_none());
    assert!(without_doc("a.rs", "use std::fs;\n//! late").is_some());
    assert!(without_doc("a.rs", "//! What it is for.").is_none());
    assert!(without_doc("a/tests.rs", "use super::*;").is_none());
    assert!(unsafe_where_not_allowed("llm/src/sse.rs", "fn f() { unsafe { g() } }").is_some());
    assert!(unsafe_where_not_allowed(UNSAFE_ALLOWED[0], "unsafe fn f() {}").is_none());
    assert!(unsafe_where_not_allowed("a.rs", "#![deny(unsafe_code)] // unsafe\nconst A: &str = \"unsafe\";").is_none());
    assert!(too_long("a.rs", &"\n".repeat(LINES_MAX + 1)).is_some());
    assert!(too_long("a.rs", &"\n".repeat(LINES_MAX)).is_none());
    assert!(too_long("a.json", &"\n".repeat(LINES_MAX + 1)).is_none());
}

#[test]
fn unfinished_work_and_machine_paths_are_found() {
    let mark = concat!("TO", "DO");

    assert_eq!(unfinished("a.rs", &format!("\n// {mark}: later")).len(), 1);
    assert!(unfinished("a.rs", &format!("// {mark}(#12): later")).is_empty());
    assert!(unfinished("a.rs", &format!("{mark}S_MAX")).is_empty());
    assert_eq!(machine_paths("a.md", concat!("see `/ho", "me/me/x`")).len(), 1);
    assert_eq!(machine_paths("a.sh", concat!("/wo", "rk/x")).len(), 1);
    assert!(machine_paths("a.md", concat!("https://example.org/ho", "me/x")).is_empty());
}

#[test]
fn a_wrong_top_level_is_found() {
    let designed: Vec<String> = TOP_REQUIRED.iter().map(|name| (*name).to_owned()).collect();
    let with_utils: Vec<String> = designed.iter().cloned().chain(["utils".to_owned()]).collect();

    assert!(wrong_top_level(&designed).is_empty());
    assert_eq!(wrong_top_level(&with_utils), ["`utils` has no place at the top level"]);
    assert_eq!(wrong_top_level(&designed[1..]), ["`.ci` is missing"]);
    assert_eq!(repeated(&["a".to_owned(), "b".to_owned(), "A".to_owned()]), ["a"]);
}

#[test]
fn code_is_told_from_what_is_said_in_it() {
    let code = code_of("a /* b */ c // d\n\"e \\\" f\" g r#\"h\"#; 'i' '\\'' &'j k");

    assert_eq!(words(&code).filter(|word| !word.is_empty()).collect::<Vec<_>>(), ["a", "c", "g", "j", "k"]);
}
