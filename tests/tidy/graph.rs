//! Which file of `src` uses which: from the paths in their code, re-exports followed to where a thing is defined.

use super::sources;
use std::collections::{BTreeMap, BTreeSet};

/// Modules by path (`ops::restore::engine`), each with the modules that it uses.
pub type Graph = BTreeMap<String, BTreeSet<String>>;

/// The code of a module, and what its `use` statements call by which name.
struct Module {
    code: String,
    is_folder: bool,
    /// Name, absolute path, and whether it is passed on.
    uses: Vec<(String, Vec<String>, bool)>,
}

pub fn graph() -> Graph {
    let mut modules = BTreeMap::new();
    for (path, text) in sources("src") {
        let code = without_tests_and_comments(&text);
        let is_folder = path.ends_with("/mod.rs");
        modules.insert(module_path(&path), Module { code, is_folder, uses: Vec::new() });
    }
    let names: BTreeSet<String> = modules.keys().cloned().collect();
    for (name, module) in &mut modules {
        for (path, alias, is_public) in use_statements(&module.code) {
            if let Some(path) = absolute(name, &path, &names) {
                let known_as = alias.or_else(|| path.last().cloned()).unwrap_or_default();
                module.uses.push((known_as, path, is_public));
            }
        }
    }
    let mut graph = Graph::new();
    for (name, module) in &modules {
        let mut used = BTreeSet::new();
        // What the root or a folder passes on is no use of its own.
        let passed_on = |is_public: &bool| *is_public && (module.is_folder || name == "lib");
        for (_, path, _) in module.uses.iter().filter(|(.., is_public)| !passed_on(is_public)) {
            used.extend(home(path, &modules, 0));
        }
        for path in paths_in(&without_uses(&module.code)) {
            let first = path.first().map_or("", String::as_str);
            let known = module.uses.iter().find(|(known_as, ..)| known_as == first);
            let path = match known {
                Some((_, target, _)) => Some([target.as_slice(), &path[1..]].concat()),
                None => absolute(name, &path, &names),
            };
            used.extend(path.and_then(|path| home(&path, &modules, 0)));
        }
        used.remove(name);
        graph.insert(name.clone(), used);
    }
    graph
}

/// Modules that use each other, directly or by way of others.
pub fn circles(graph: &Graph) -> Vec<BTreeSet<String>> {
    let reach: BTreeMap<&String, BTreeSet<String>> =
        graph.keys().map(|from| (from, reachable(graph, from))).collect();
    let mut circles: Vec<BTreeSet<String>> = Vec::new();
    for (from, reached) in &reach {
        let is_back = |to: &&String| reach.get(to).is_some_and(|back| back.contains(*from));
        let circle: BTreeSet<String> = reached.iter().filter(is_back).cloned().collect();
        if !circle.is_empty() && !circles.contains(&circle) {
            circles.push(circle);
        }
    }
    circles
}

fn reachable(graph: &Graph, from: &String) -> BTreeSet<String> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(module) = open.pop() {
        for used in graph.get(module).into_iter().flatten() {
            if reached.insert(used.clone()) {
                open.push(used);
            }
        }
    }
    reached
}

/// `src/ops/restore/mod.rs` is `ops::restore`.
fn module_path(file: &str) -> String {
    let inside = file.trim_start_matches("src/").trim_end_matches(".rs");
    inside.strip_suffix("/mod").unwrap_or(inside).replace('/', "::")
}

fn without_tests_and_comments(text: &str) -> String {
    let text = text.split_once("#[cfg(test)]\nmod tests").map_or(text, |(code, _)| code);
    let code = |line: &&str| !line.trim_start().starts_with("//");
    text.lines().filter(code).fold(String::new(), |text, line| text + line + "\n")
}

/// Each statement: where it begins and ends.
fn uses_in(code: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    for line in code.split_inclusive('\n') {
        let bare = line.trim_start();
        let is_use = bare.starts_with("use ")
            || bare.starts_with("pub") && bare.split_whitespace().nth(1) == Some("use");
        if is_use && found.last().is_none_or(|(_, end)| at >= *end) {
            found.push((at, at + code[at..].find(';').expect("the end of a use") + 1));
        }
        at += line.len();
    }
    found
}

fn without_uses(code: &str) -> String {
    let mut rest = code.to_owned();
    for (start, end) in uses_in(code).into_iter().rev() {
        rest.replace_range(start..end, "");
    }
    rest
}

/// Each path that is named in a `use`, its other name, and whether it is public.
fn use_statements(code: &str) -> Vec<(Vec<String>, Option<String>, bool)> {
    let mut found = Vec::new();
    for (start, end) in uses_in(code) {
        let statement = code[start..end].trim_end_matches(';');
        let is_public = statement.trim_start().starts_with("pub");
        let (_, tree) = statement.split_once("use ").expect("a use");
        let mut paths = Vec::new();
        flatten(&[], tree, &mut paths);
        found.extend(paths.into_iter().map(|(path, alias)| (path, alias, is_public)));
    }
    found
}

fn flatten(before: &[String], tree: &str, paths: &mut Vec<(Vec<String>, Option<String>)>) {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in tree.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&tree[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tree[start..]);
    let names = |text: &str| -> Vec<String> {
        text.split("::").map(|name| name.trim().to_owned()).filter(|n| !n.is_empty()).collect()
    };
    for part in parts.into_iter().map(str::trim).filter(|part| !part.is_empty()) {
        if let Some((head, rest)) = part.split_once('{') {
            let inside = rest.trim_end().strip_suffix('}').expect("a closed brace");
            flatten(&[before, &names(head)].concat(), inside, paths);
        } else {
            let (path, alias) = part.split_once(" as ").unwrap_or((part, ""));
            let mut path = [before, &names(path)].concat();
            if path.last().is_some_and(|last| last == "self") {
                path.pop();
            }
            paths.push((path, Some(alias.trim().to_owned()).filter(|a| !a.is_empty())));
        }
    }
}

/// A path from the root of the crate; none for one that leads elsewhere.
fn absolute(module: &str, path: &[String], modules: &BTreeSet<String>) -> Option<Vec<String>> {
    let here: Vec<String> = match module {
        "lib" | "main" => Vec::new(),
        _ => module.split("::").map(str::to_owned).collect(),
    };
    let first = path.first()?;
    match first.as_str() {
        "crate" | "imgsnap" => Some(path[1..].to_vec()),
        "self" => Some([here.as_slice(), &path[1..]].concat()),
        "super" => {
            let ups = path.iter().take_while(|name| *name == "super").count();
            Some([&here[..here.len().checked_sub(ups)?], &path[ups..]].concat())
        }
        _ => {
            let child = [here.as_slice(), std::slice::from_ref(first)].concat().join("::");
            modules.contains(&child).then(|| [here.as_slice(), path].concat())
        }
    }
}

/// The module in which what a path names is defined.
fn home(path: &[String], modules: &BTreeMap<String, Module>, depth: usize) -> Option<String> {
    for length in (0..=path.len()).rev() {
        let name = if length == 0 { "lib".to_owned() } else { path[..length].join("::") };
        let Some(module) = modules.get(&name) else { continue };
        let next = path.get(length).and_then(|wanted| {
            // What a module uses is known to the modules below it, too.
            module.uses.iter().find(|(known_as, ..)| known_as == wanted)
        });
        return match next {
            Some((_, target, _)) if depth < 8 && target != path => {
                let path = [target.as_slice(), &path[length + 1..]].concat();
                home(&path, modules, depth + 1)
            }
            _ => (length > 0).then_some(name),
        };
    }
    None
}

/// Everything that looks like a path with at least two names.
fn paths_in(code: &str) -> Vec<Vec<String>> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = code.split(|c: char| !is_name(c));
    words
        .filter(|word| word.contains("::") && !word.starts_with(':'))
        .map(|word| word.split("::").map(str::to_owned).filter(|n| !n.is_empty()).collect())
        .filter(|path: &Vec<String>| !path.is_empty())
        .collect()
}

#[test]
fn a_circle_of_modules_is_found() {
    let graph: Graph = [("a", vec!["b"]), ("b", vec!["c"]), ("c", vec!["b"]), ("d", vec!["a"])]
        .into_iter()
        .map(|(from, to)| (from.to_owned(), to.into_iter().map(str::to_owned).collect()))
        .collect();
    let circle: BTreeSet<String> = ["b", "c"].map(str::to_owned).into();
    assert_eq!(circles(&graph), [circle]);
}
