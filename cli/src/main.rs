//! The `butterfly` command.

fn main() {}
