//! What `--json` prints: one object a line.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use serde_json::Value;

const VERBS: [&str; 24] = [
    "apply", "config", "delete", "diff", "export", "flatten", "heads", "import", "init", "join",
    "key", "label", "list", "part", "plan", "protect", "prune", "repair", "requests", "restore",
    "rollback", "show", "snapshot", "stats",
];

/// Of a verb that prints one for each of several things an array; of another one its only object.
#[track_caller]
pub fn parsed(what: &str, out: &[u8]) -> Value {
    let text = std::str::from_utf8(out).unwrap();
    let values: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{what}: {e}: {text}")))
        .collect();
    // What is wrong stands beside the results.
    let is_result = |value: &&Value| value["error"]["exit_code"].is_null();
    let results: Vec<Value> = values.iter().filter(is_result).cloned().collect();
    let values = if results.is_empty() { values } else { results };
    let words: Vec<&str> = what.split_whitespace().collect();
    let at = words.iter().position(|word| VERBS.contains(word));
    let rest = at.map_or(&[][..], |at| &words[at..]);
    let is_each = match rest {
        ["plan", more @ ..] => more.contains(&"list"),
        ["join", ..] => {
            values.iter().all(|v| v.get("image").is_some() && v.get("target").is_none())
        }
        // A domain and its disks.
        ["list", domain, ..] if domain.starts_with("libvirt:") => false,
        [verb, ..] => ["list", "stats", "prune"].contains(verb),
        [] => false,
    };
    if is_each {
        return Value::Array(values);
    }
    let [value] = values.as_slice() else { panic!("{what}: not one line: {text}") };
    value.clone()
}

/// True if nothing was printed, or, for programs, nothing but what is wrong.
pub fn is_only_errors(out: &[u8]) -> bool {
    let text = String::from_utf8_lossy(out);
    text.lines().all(|line| {
        let value = serde_json::from_str::<Value>(line);
        value.is_ok_and(|value| value["error"]["exit_code"].is_u64())
    })
}
