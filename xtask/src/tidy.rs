//! Holds the tree against its own rules, all of them at once, so that one run names every offence.
//!
//! The arrows between crates are allowed by the table in `ARCHITECTURE.md`, which is read here: the page that people
//! read and the rule that the gate enforces are the same text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Crates that decide without doing: no I/O, no clock, no threads.
const CORES: &[&str] = &["types", "placement", "meta-core", "meta-raft", "osd-core", "client-core", "nbd", "wire"];

/// Crates a core may not depend on, and words that may not stand in it.
const IMPURE_CRATES: &[&str] = &["tokio", "mio", "rustix", "libc", "tonic", "rocksdb"];
const IMPURE_WORDS: &[&str] =
    &["Instant::now", "SystemTime::now", "std::thread", "std::fs", "std::net", "HashMap", "HashSet", "rand::rng()"];

/// The only crates with `unsafe`.
const UNSAFE: &[&str] = &["disk", "attach"];

/// Product lines beyond which a file's header must say why it is one room.
const LONG_FILE: usize = 600;

/// Runs every rule.
pub(crate) fn run() -> Result<()> {
    let root = cairn_tests::root();
    let mut offences = Vec::new();
    arrows(&root, &mut offences)?;
    for file in rust_files(&root)? {
        source(&root, &file, &mut offences)?;
    }
    if offences.is_empty() {
        println!("tidy: the tree keeps its rules");
        return Ok(());
    }
    for offence in &offences {
        println!("tidy: {offence}");
    }
    bail!("{} offences against the rules of the house", offences.len())
}

/// Every dependency between members stands in the table, and every member has a row.
fn arrows(root: &Path, offences: &mut Vec<String>) -> Result<()> {
    let page = std::fs::read_to_string(root.join("ARCHITECTURE.md")).context("cannot read ARCHITECTURE.md")?;
    let allowed = allowed_arrows(&page);
    let metadata = cairn_tests::capture(&mut cairn_tests::cargo(&["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata is not JSON")?;
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = room(package["name"].as_str().unwrap_or_default());
        let Some(may) = allowed.get(&name) else {
            offences.push(format!("crate `{name}` has no row in ARCHITECTURE.md's table of arrows"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            let dev = dependency["kind"].as_str() == Some("dev");
            if CORES.contains(&name.as_str()) && !dev && IMPURE_CRATES.contains(&to) {
                offences.push(format!("core `{name}` depends on `{to}`: cores do no I/O"));
            }
            if dependency["path"].is_string() && !dev && !may.contains(&room(to)) {
                offences.push(format!("arrow {name} -> {} is not allowed by ARCHITECTURE.md", room(to)));
            }
        }
    }
    Ok(())
}

/// Reads the rows `| crate | may import | .. |` below the heading "Allowed arrows".
fn allowed_arrows(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    page.lines()
        .skip_while(|line| !line.starts_with("## Allowed arrows"))
        .filter(|line| line.starts_with("| `"))
        .filter_map(|line| {
            let mut cells = line.split('|').skip(1);
            let name = cells.next()?.trim().trim_matches('`').to_owned();
            let may = cells.next()?.split(',').map(|cell| cell.trim().trim_matches('`').to_owned());
            Some((name, may.filter(|cell| !cell.is_empty()).collect()))
        })
        .collect()
}

/// `cairn-osd-core` lives in the room `osd-core`.
fn room(package: &str) -> String {
    package.strip_prefix("cairn-").unwrap_or(package).to_owned()
}

fn source(root: &Path, file: &Path, offences: &mut Vec<String>) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let shown = file.strip_prefix(root).unwrap_or(file).display().to_string();
    let room = shown.strip_prefix("crates/").and_then(|rest| rest.split('/').next()).unwrap_or_default().to_owned();
    if !text.starts_with("//!") {
        offences.push(format!("{shown}: does not open with `//!`, what this room is for"));
    }
    let product = text.split("#[cfg(test)]").next().unwrap_or_default();
    let is_test = shown.contains("/tests/") || shown.starts_with("tests/");
    let header: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
    if !is_test && product.lines().count() > LONG_FILE && !header.contains("one room") {
        offences.push(format!("{shown}: over {LONG_FILE} lines, and its header does not say why it is one room"));
    }
    let root_file = shown.ends_with("src/lib.rs") || shown.ends_with("src/main.rs");
    if root_file && !UNSAFE.contains(&room.as_str()) && !text.contains("#![forbid(unsafe_code)]") {
        offences.push(format!("{shown}: lacks #![forbid(unsafe_code)]"));
    }
    for (number, line) in text.lines().enumerate() {
        words(&shown, number + 1, line, offences);
    }
    if CORES.contains(&room.as_str()) && !is_test {
        for word in IMPURE_WORDS.iter().filter(|word| code(product).any(|line| line.contains(**word))) {
            offences.push(format!("{shown}: `{word}` in a core: time, threads and files come in at the doors"));
        }
    }
    Ok(())
}

/// Words that may not stand in code, each spelled here in two halves so that this file passes its own rule.
fn words(shown: &str, number: usize, line: &str, offences: &mut Vec<String>) {
    const BANNED: &[(&str, &str)] = &[
        (concat!("todo", "!("), "finish it, or refuse it in words"),
        (concat!("unimple", "mented!("), "finish it, or refuse it in words"),
        (concat!("FIX", "ME"), "mend it now, or write an issue"),
        (concat!("#[ig", "nore"), "a test runs, or it is deleted"),
        (concat!("dbg", "!("), "log through tracing"),
    ];
    for (word, remedy) in BANNED {
        if line.contains(word) {
            offences.push(format!("{shown}:{number}: `{word}`: {remedy}"));
        }
    }
    if line.chars().count() > 130 && !line.contains("http") && !line.trim_start().starts_with('"') {
        offences.push(format!("{shown}:{number}: over 130 columns"));
    }
}

fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with("//"))
}

fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let listed = cairn_tests::capture(std::process::Command::new("git").current_dir(root).args([
        "ls-files",
        "-co",
        "--exclude-standard",
        "*.rs",
    ]))?;
    Ok(listed.lines().map(|line| root.join(line)).filter(|file| file.is_file()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_as_people_read_it() {
        let page = "# A\n## Allowed arrows\n| crate | may import |\n|---|---|\n| `osd` | `types`, `store` | x |\n| `types` | |\n";
        let allowed = allowed_arrows(page);
        assert_eq!(allowed["osd"], ["store", "types"].map(str::to_owned).into());
        assert!(allowed["types"].is_empty());
        assert_eq!(allowed.len(), 2);
    }

    #[test]
    fn a_banned_word_is_found() {
        let mut offences = Vec::new();
        words("a.rs", 3, concat!("    todo", "!(\"later\")"), &mut offences);
        assert_eq!(offences.len(), 1);
    }
}
