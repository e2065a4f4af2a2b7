//! The `beeline` binary.
fn main() {}
