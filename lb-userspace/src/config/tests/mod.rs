//! The file from outside: text in, configuration or exact messages out.

mod accepted;
mod documentation;
mod mutated;
mod pods;
mod refused;
mod refused_services;

use super::{Config, parse};

/// The first three lines of every file: what a test adds begins in line 4.
const HEAD: &str = "apiVersion: beeline.dev/v1\nkind: Config\nhashSeed: 7\n";

fn accepted(rest: &str) -> Config {
    parse(&format!("{HEAD}{rest}"), "lb.yaml").unwrap_or_else(|errors| panic!("{errors}"))
}

/// The messages for a whole file, one line each.
fn messages(text: &str) -> Vec<String> {
    let errors = parse(text, "lb.yaml").expect_err("a file that is refused");
    assert!(!errors.errors.is_empty());
    errors.to_string().lines().map(str::to_owned).collect()
}

/// That each text after the head gives exactly the one message beside it.
fn assert_refused(cases: &[(&str, &str)]) {
    for (rest, message) in cases {
        assert_eq!(messages(&format!("{HEAD}{rest}")), [*message], "{rest}");
    }
}
