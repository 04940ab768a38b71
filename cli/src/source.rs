//! Reads a pattern argument: a file, or the text itself.

use crate::args::PatternArg;
use crate::failure::Failure;
use butterfly_compiler::classify::{self, ClassifyError};
#[cfg(feature = "models")]
use butterfly_compiler::config;
use butterfly_compiler::work;
use butterfly_ir::model::ModelConfig;
use butterfly_ir::pattern::Parsed;
use butterfly_ir::pattern::limits::MAX_LENGTH;
use butterfly_ir::{Context, Pattern, Sparsity, Topology};
#[cfg(feature = "models")]
use butterfly_models::PolicyFile;
use std::path::Path;

impl PatternArg {
    /// The pattern with its headers.
    pub(crate) fn read(&self) -> Result<Parsed, Failure> {
        #[cfg(feature = "models")]
        if let Some(path) = &self.policy {
            return Ok(read_policy(path)?.1);
        }
        // Without a policy the pattern is required.
        read(self.pattern.as_deref().unwrap_or_default())
    }

    /// Checks that a policy, if the pattern is that of one, was calibrated for the model whose config
    /// has the path and text of `config`.
    pub(crate) fn check_model(
        &self,
        model: &ModelConfig,
        config: (&Path, &str),
    ) -> Result<(), Failure> {
        #[cfg(feature = "models")]
        if let Some(path) = &self.policy {
            let name = config.0.display().to_string();
            let sizes = config::sizes(&name, config.1, model).map_err(Failure::bad)?;
            let policy = read_policy(path)?.0;
            return policy.check(path, model, &sizes).map_err(Failure::bad);
        }
        let _ = (model, config);
        Ok(())
    }

    /// The context in which the pattern is resolved: block size, lengths, and the index that picks
    /// the stage.
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
            capacity,
            ..Context::new(parsed.sparsity.block, kv_len, index)
        })
    }
}

/// Whether a path is that of a policy file, and not of a pattern in JSON.
#[cfg(feature = "models")]
pub(crate) fn is_policy(path: &Path) -> bool {
    let json = path
        .extension()
        .is_some_and(|extension| extension == "json");
    let read =
        || -> Option<serde_json::Value> { serde_json::from_str(&read_text(path).ok()?).ok() };
    json && read().is_some_and(|value| value.get("schema").is_some())
}

/// A policy file, and its pattern.
#[cfg(feature = "models")]
pub(crate) fn read_policy(path: &Path) -> Result<(PolicyFile, Parsed), Failure> {
    let (policy, sparsity) = PolicyFile::read(path).map_err(Failure::bad)?;
    Ok((policy, sparsity.into()))
}

/// The pattern of an argument: a file, or the text itself.
pub(crate) fn read(pattern: &str) -> Result<Parsed, Failure> {
    let path = Path::new(pattern);
    let named = path
        .extension()
        .is_some_and(|e| e == "pattern" || e == "json" || e == "wf");
    let (name, text) = if named || path.is_file() {
        let length = std::fs::metadata(path).map_or(0, |file| file.len());
        if length > MAX_LENGTH as u64 {
            let what = format!("{length} bytes; a pattern has at most {MAX_LENGTH}");
            return Err(Failure::file(path, what));
        }
        (pattern, read_text(path)?)
    } else {
        ("--pattern", pattern.to_string())
    };
    Sparsity::parse_any(name, &text).map_err(Failure::bad)
}

/// Checks for each of `kv_heads` heads that every query sees a key, and none sees a later one; the
/// layer is that of the context.
pub(crate) fn check(parsed: &Parsed, context: &Context, kv_heads: u32) -> Result<(), Failure> {
    let pattern = parsed.sparsity.pattern.of_layer(context.layer);
    for (_, heads) in pattern.head_classes(kv_heads) {
        check_one(parsed, &context.of_head(heads[0]))?;
    }
    Ok(())
}

/// Checks the same for the head and layer of the context.
pub(crate) fn check_one(parsed: &Parsed, context: &Context) -> Result<(), Failure> {
    check_tables(parsed, context)?;
    let pattern = parsed.sparsity.pattern.of_layer(context.layer);
    classify::check(&pattern.of_head(context.kv_head), context)
        .map_err(|error| blame(parsed, context, &error))
}

/// Checks that the tail of a prompt of `tokens` tokens leaves some of it to the rest of the pattern.
pub(crate) fn check_tail(pattern: &Pattern, tokens: usize) -> Result<(), Failure> {
    match pattern.tail() {
        tail if tail > 0 && tail as usize >= tokens => Err(Failure::Bad(format!(
            "tail({tail}) of the pattern covers all {tokens} tokens of the prompt, so that nothing else of it counts; give a longer prompt, or a shorter tail"
        ))),
        _ => Ok(()),
    }
}

/// Checks that cases of the pattern name heads below `kv_heads`.
pub(crate) fn check_heads(parsed: &Parsed, kv_heads: u32) -> Result<(), Failure> {
    match parsed.sparsity.pattern.named_heads() {
        named if named > kv_heads => Err(Failure::Bad(format!(
            "the pattern names kv head {}, but there are {kv_heads}, counted from 0; leave it out of the pattern",
            named - 1
        ))),
        _ => Ok(()),
    }
}

/// Most rows or blocks of a listing.
pub(crate) const LISTED: u64 = 1 << 23;

/// The topology of a pattern, with every row and block; an error if it has more than `most` rows or
/// blocks.
pub(crate) fn listed(pattern: &Pattern, context: &Context, most: u64) -> Result<Topology, Failure> {
    let blocks = match u64::from(context.rows()) {
        rows if rows > most => rows,
        rows => rows.max(work::count(pattern, context).map_err(Failure::bad)?.blocks),
    };
    match blocks <= most {
        true => Ok(classify::lower(pattern, context)),
        false => Err(Failure::Bad(format!(
            "{} tokens: {blocks} blocks to list, at most {most} can be; give fewer tokens or a larger block",
            context.kv_len
        ))),
    }
}

/// Checks the pattern's tables against the number of blocks.
pub(crate) fn check_tables(parsed: &Parsed, context: &Context) -> Result<(), Failure> {
    classify::check_tables(&parsed.sparsity.pattern, context)
        .map_err(|error| blame(parsed, context, &error))
}

/// The failure for `error`, which points at the leaf of the pattern that caused it.
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
