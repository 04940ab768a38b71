//! Tests of the text and JSON forms against tables of good and bad input.

mod json;
mod round_trip;
mod text;

use super::Sparsity;
use std::fmt::Write;

/// Compares the diagnostics of `parse_any` with a file of cases.
///
/// A case is its input, a line `-----`, and the whole diagnostic; a line `=====` separates
/// cases. In the input, `␉` means a tab and `␍` a carriage return.
fn check_errors(name: &str, cases: &str) {
    let mut found = String::new();
    for case in cases.trim_end().split("\n=====\n") {
        let (input, _) = case.split_once("\n-----\n").expect("a case has two parts");
        let text = input.replace('␉', "\t").replace('␍', "\r");
        let outcome = match Sparsity::parse_any(name, &text) {
            Ok(parsed) => format!("accepted: {}", parsed.sparsity),
            Err(error) => error.to_string(),
        };
        let between = if found.is_empty() { "" } else { "\n=====\n" };
        write!(found, "{between}{input}\n-----\n{outcome}").expect("a string takes text");
    }
    if found != cases.trim_end() {
        let path = std::env::temp_dir().join(format!("{name}.found.txt"));
        std::fs::write(&path, found + "\n").expect("the temporary folder takes a file");
        panic!("diagnostics changed: compare with {}", path.display());
    }
}
