//! Project automation: demo, test, ci, tidy.
fn main() {}
