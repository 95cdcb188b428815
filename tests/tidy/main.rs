//! Style as a test: the layers of DESIGN.md, the one module with `unsafe`, sizes and habits.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod graph;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a folder: path from the root, and text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                files.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    assert!(!files.is_empty());
    files
}

/// The rows of the table of layers in DESIGN.md: pattern of modules to row. `ops/*/engine` is any engine.
fn layers() -> BTreeMap<String, usize> {
    let design = std::fs::read_to_string(root().join("DESIGN.md")).unwrap();
    let (_, rest) = design.split_once("<!-- layers -->").expect("the table of layers");
    let (table, _) = rest.split_once("<!-- end of layers -->").unwrap();
    let mut layers = BTreeMap::new();
    let rows = table.lines().filter(|line| line.starts_with("| ") && !line.contains("---"));
    for (row, line) in rows.enumerate().skip(1) {
        let cell = line.split('|').nth(1).unwrap();
        for module in cell.split('`').skip(1).step_by(2) {
            assert!(layers.insert(module.to_owned(), row).is_none(), "{module} stands twice");
        }
    }
    assert!(layers.len() > 15, "{layers:?}");
    layers
}

/// The pattern that is the closest to a module.
fn layer_of<'a>(layers: &'a BTreeMap<String, usize>, module: &str) -> Option<(&'a str, usize)> {
    let names: Vec<&str> = module.split("::").collect();
    let fits = |pattern: &&str| {
        let pattern: Vec<&str> = pattern.split('/').collect();
        pattern.len() <= names.len() && pattern.iter().zip(&names).all(|(p, n)| *p == "*" || p == n)
    };
    let found = layers.keys().map(String::as_str).filter(fits);
    let closest = found.max_by_key(|pattern| (pattern.split('/').count(), !pattern.contains('*')));
    closest.map(|pattern| (pattern, layers[pattern]))
}

/// The verb that a module is a part of.
fn verb_of(module: &str) -> Option<&str> {
    module.strip_prefix("ops::").map(|rest| rest.split("::").next().unwrap_or(rest))
}

#[test]
fn a_file_uses_only_what_stands_above_it_in_the_table_of_layers() {
    let (layers, graph) = (layers(), graph::graph());
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for (module, used) in graph.iter().filter(|(module, _)| *module != "lib") {
        let (pattern, row) =
            layer_of(&layers, module).unwrap_or_else(|| panic!("{module} is in no row"));
        seen.insert(pattern);
        for other in used {
            let Some((_, below)) = layer_of(&layers, other) else { continue };
            let verbs = (verb_of(module), verb_of(other));
            let is_verb_beside = below == row && verbs.0 != verbs.1 && verbs.1.is_some();
            if below > row || is_verb_beside {
                wrong.push(format!("{module} (row {row}) uses {other} (row {below})"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let unknown: Vec<_> =
        layers.keys().filter(|pattern| !seen.contains(pattern.as_str())).collect();
    assert!(unknown.is_empty(), "in the table, but not in src: {unknown:?}");
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let graph = graph::graph();
    assert!(graph["ops::restore"].contains("view::restore"), "the graph is wrong: {graph:#?}");
    let circles = graph::circles(&graph);
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn the_methods_of_a_repository_stand_in_one_place_for_data_and_one_for_verbs() {
    let homes: Vec<String> = sources("src")
        .into_iter()
        .filter(|(_, text)| text.contains("\nimpl Repository {"))
        .map(|(path, _)| path)
        .collect();
    assert_eq!(
        homes,
        [
            "src/facade.rs",
            "src/facade/keys.rs",
            "src/facade/owning.rs",
            "src/facade/taking.rs",
            "src/facade/working.rs",
            "src/repo/repository.rs"
        ]
    );
}

#[test]
fn bytes_are_decoded_without_io_and_the_command_line_uses_the_public_interface_alone() {
    for (path, text) in sources("src/format") {
        assert!(!text.contains("std::io") && !text.contains("std::fs"), "{path} knows of I/O");
    }
    for (path, text) in sources("src/cli") {
        assert!(!text.contains("crate::"), "{path} reaches into the crate");
    }
}

/// What can be typed is data in the library (`base/message.rs`); the command line words it.
#[test]
fn the_library_has_no_text_of_the_command_line() {
    let others = ["nbdinfo", "rbd diff", "qemu-img", "lvs"];
    // The others have options of QEMU's and libvirt's programs, and what ssh is to start.
    let with_options = [
        "src/cli",
        "src/image/qemu",
        "src/libvirt",
        "src/machine/scope.rs",
        "src/store/ssh/connection.rs",
    ];
    let library = sources("src").into_iter();
    let library =
        library.filter(|(path, _)| !with_options.iter().any(|folder| path.starts_with(folder)));
    for (path, text) in library {
        let text = text.split("#[cfg(test)]").next().unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code.filter(|line| !others.iter().any(|other| line.contains(other))) {
            let is_option = [" --", "\"--", "(--"].iter().any(|start| {
                let found = line.split_once(start).and_then(|(_, rest)| rest.chars().next());
                found.is_some_and(|next| next.is_ascii_lowercase())
            });
            assert!(!is_option && !line.contains("\\\"imgsnap "), "{path}: {line}");
        }
    }
}

#[test]
fn unsafe_code_stands_in_one_module_and_is_argued() {
    for (path, text) in sources("src") {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let blocks = code.filter(|l| l.contains("unsafe {") || l.contains("unsafe fn")).count();
        if path == "src/base/sys.rs" || path.starts_with("src/base/sys/") {
            assert!(text.matches("// SAFETY:").count() >= blocks, "{path}");
        } else {
            assert_eq!(blocks, 0, "{path} has unsafe code");
        }
    }
}

#[test]
fn files_stay_small_and_say_what_they_own() {
    for (path, text) in sources("src") {
        let lines = text.lines().count();
        assert!(lines <= 500, "{path} has {lines} lines: would two files be clearer?");
        assert!(text.starts_with("//!"), "{path} does not say what it owns");
        let long = text.lines().find(|line| line.chars().count() > 110);
        assert_eq!(long, None, "{path} has a line that is too long");
    }
}

#[test]
fn errors_are_not_dropped_and_nothing_is_left_for_later() {
    for (path, text) in sources("src") {
        for word in ["let _ =", "todo!", "unimplemented!", "FIXME", "XXX"] {
            assert!(!text.contains(word), "{path} has {word}");
        }
    }
}

/// `Path::display` shows what is not UTF-8 as what it is not; `Shown` does it as `--json` does.
#[test]
fn paths_in_messages_are_shown_in_one_way() {
    for (path, text) in sources("src").iter().filter(|(path, _)| !path.ends_with("/uri.rs")) {
        let (code, _) = text.split_once("#[cfg(test)]").unwrap_or((text, ""));
        assert!(!code.contains(".display()"), "{path} has display()");
    }
}

#[test]
fn every_matches_stands_in_an_assertion_or_a_condition() {
    for (path, text) in sources("tests") {
        for (number, line) in text.lines().enumerate() {
            let bare = line.trim_start().starts_with("matches!(");
            assert!(!bare, "{path}:{}: a matches! that nobody looks at", number + 1);
        }
    }
}

#[test]
fn the_change_log_knows_the_version() {
    let log = std::fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    assert!(log.contains(&format!("## {}", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn dependencies_are_argued_in_the_design() {
    let design = std::fs::read_to_string(root().join("DESIGN.md")).unwrap();
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, rest) = manifest.split_once("[dependencies]").unwrap();
    for line in rest.lines().take_while(|line| !line.starts_with('[')) {
        if let Some((name, _)) = line.split_once(" = ") {
            assert!(design.contains(&format!("`{name}`")), "{name} is not argued");
        }
    }
}
