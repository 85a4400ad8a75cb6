//! The one binary: every role and the admin verbs.
fn main() {}
