//! The examples of the documentation are read by the parser that they describe.

use super::super::{ConfigErrors, parse};

const PAGE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md"));

const README: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"));

/// The fenced blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    blocks_of(PAGE, language)
}

fn blocks_of(page: &'static str, language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    page.split(&fence).skip(1).map(|rest| rest.split("```").next().expect("split gives one at least")).collect()
}

#[test]
fn every_example_is_valid_and_needs_no_advice() {
    let examples = blocks("yaml");
    assert!(examples.len() >= 3, "{} examples", examples.len());
    let readme = blocks_of(README, "yaml");
    assert!(readme.len() >= 2, "{} examples in the README", readme.len());
    for example in examples.into_iter().chain(readme) {
        let config = parse(example, "an example").unwrap_or_else(|errors| panic!("{errors}\n{example}"));
        assert_eq!(config.advice(), [""; 0], "{example}");
    }
}

#[test]
fn the_page_shows_what_is_said_about_a_broken_file() {
    let [broken] = blocks("yaml broken")[..] else { panic!("one broken example") };
    let ConfigErrors { errors, .. } = parse(broken, "lb.yaml").expect_err("a broken file");
    let said = ConfigErrors { file: "lb.yaml".into(), errors }.to_string();
    assert!(blocks("text").iter().any(|block| block.contains(&said)), "the page does not show:\n{said}");
}

#[test]
fn every_field_is_described() {
    let lines = blocks("yaml")[0].lines().map(|line| line.split('#').next().unwrap_or_default());
    let parts = lines.flat_map(|line| line.split(['{', '[', ',']));
    let keys = parts.filter_map(|part| part.split_once(':')).map(|(key, _)| key.trim_start_matches([' ', '-']));
    let fields: Vec<_> = keys.filter(|key| !key.is_empty() && key.chars().all(char::is_alphabetic)).collect();
    assert!(fields.len() > 40, "{fields:?}");
    for field in fields {
        assert!(PAGE.contains(&format!("{field}` |")), "no row of a table for {field}");
    }
}
