//! Files that went wrong in some way: reading them never panics, and what is refused has a reason.

use proptest::prelude::*;

use super::super::parse;
use super::accepted::WHOLE;
use crate::model::from_file::desired;

/// What takes the place of a word: other types, values at and past bounds, and pieces of syntax.
const WORDS: [&str; 28] = [
    "",
    "~",
    "0",
    "-1",
    "1.5",
    "1e999",
    ".nan",
    "true",
    "[]",
    "{}",
    "[~]",
    "{<<: 1}",
    "{a: b}",
    "\"\"",
    "\"0\"",
    "::",
    "[",
    "}",
    "*a",
    "&a x",
    "!!int x",
    "10.0.0.11",
    "198.51.100.10",
    "0.0.0.0/0",
    "::/0",
    "18446744073709551616",
    "\u{85}",
    "---",
];

/// The text with some of its words, which colons, commas, brackets and spaces part, replaced.
fn mutated(changes: &[(usize, usize)]) -> String {
    let mut words: Vec<_> = WHOLE.split_inclusive([' ', '\n', ',', '{', '}', '[', ']']).map(str::to_owned).collect();
    for (place, word) in changes {
        let place = place % words.len();
        let end = words[place].pop().map(String::from).unwrap_or_default();
        words[place] = format!("{}{end}", WORDS[word % WORDS.len()]);
    }
    words.concat()
}

proptest! {
    #[test]
    fn a_mutated_file_is_read_or_refused_with_a_reason(changes in prop::collection::vec(any::<(usize, usize)>(), 1..5)) {
        let text = mutated(&changes);
        match parse(&text, "lb.yaml") {
            Ok(config) => {
                let ports = config.services.iter().map(|service| service.ports.len()).sum::<usize>();
                prop_assert_eq!(desired(&config).services.len(), ports);
                let _ = config.advice();
            }
            Err(errors) => {
                prop_assert!(!errors.errors.is_empty());
                prop_assert_eq!(errors.to_string().lines().count(), errors.errors.len());
            }
        }
    }

    #[test]
    fn any_text_is_read_or_refused_with_a_reason(text in "\\PC*") {
        if let Err(errors) = parse(&text, "lb.yaml") {
            prop_assert!(!errors.errors.is_empty());
        }
    }
}
