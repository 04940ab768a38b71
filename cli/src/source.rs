//! Reads a pattern argument: a file, or the text itself.

use crate::args::PatternArg;
use crate::failure::Failure;
use butterfly_compiler::classify::{self, ClassifyError};
use butterfly_ir::pattern::Parsed;
use butterfly_ir::{Context, Sparsity, Topology};
use std::path::Path;

impl PatternArg {
    /// The pattern with its headers.
    pub(crate) fn read(&self) -> Result<Parsed, Failure> {
        read(&self.pattern)
    }

    /// What to read the pattern with.
    pub(crate) fn context(
        &self,
        parsed: &Parsed,
        kv_len: u32,
        index: u32,
    ) -> Result<Context, Failure> {
        let capacity = self.capacity.unwrap_or(kv_len);
        if capacity < kv_len {
            let message = format!(
                "--capacity {capacity} is less than the {kv_len} keys; give at least {kv_len}"
            );
            return Err(Failure::Bad(message));
        }
        Ok(Context {
            block: parsed.sparsity.block,
            kv_len,
            capacity,
            index,
        })
    }
}

/// The pattern of an argument: a file, or the text itself.
pub(crate) fn read(pattern: &str) -> Result<Parsed, Failure> {
    let path = Path::new(pattern);
    let named = path
        .extension()
        .is_some_and(|e| e == "pattern" || e == "json" || e == "wf");
    let (name, text) = if named || path.is_file() {
        (pattern, read_text(path)?)
    } else {
        ("--pattern", pattern.to_string())
    };
    Sparsity::parse_any(name, &text).map_err(Failure::bad)
}

/// The topology of a pattern, which must serve every query, and causally.
pub(crate) fn topology(parsed: &Parsed, context: &Context) -> Result<Topology, Failure> {
    let pattern = &parsed.sparsity.pattern;
    check_tables(parsed, context)?;
    let topology = classify::lower(pattern, context);
    classify::check(&topology).map_err(|error| blame(parsed, context, &error))?;
    Ok(topology)
}

/// Checks the pattern's tables against the number of blocks.
pub(crate) fn check_tables(parsed: &Parsed, context: &Context) -> Result<(), Failure> {
    classify::check_tables(&parsed.sparsity.pattern, context)
        .map_err(|error| blame(parsed, context, &error))
}

/// Points at the leaf that is to blame.
pub(crate) fn blame(parsed: &Parsed, context: &Context, error: &ClassifyError) -> Failure {
    match classify::culprit(&parsed.sparsity.pattern, context, error) {
        Some((leaf, label)) => Failure::bad(parsed.at_leaf(leaf, &error.to_string(), label)),
        None => Failure::bad(parsed.at_leaf(usize::MAX, &error.to_string(), "")),
    }
}

/// The text of a file.
pub(crate) fn read_text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::file(path, format!("cannot read: {error}")))
}
