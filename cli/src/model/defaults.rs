//! `generation_config.json`: what of it is not followed.

use crate::args::Draw;
use crate::output;
use butterfly_models::Defaults;
use std::path::Path;

/// Notes the settings of `generation_config.json` that are not followed. Without flags the most
/// likely token is taken, so that a command always gives the same text.
pub(super) fn note(model: &Path, defaults: &Defaults, draw: &Draw) {
    let path = model.join("generation_config.json");
    if defaults.ends.as_ref().is_some_and(Vec::is_empty) {
        output::note(format_args!(
            "note: {}: no token ends a text",
            path.display()
        ));
    }
    if !defaults.sampling.is_empty() && draw.temperature == 0.0 {
        let named = |name| defaults.sampling.iter().any(|(other, _)| other == name);
        let mut flags = match named("temperature") {
            true => String::new(),
            false => " --temperature 1".into(),
        };
        for (name, value) in &defaults.sampling {
            flags += &format!(" --{} {value}", name.replace('_', "-"));
        }
        output::note(format_args!(
            "note: {} asks for sampling; the most likely token is taken: give{flags} for what it asks",
            path.display()
        ));
    }
    if !defaults.ignored.is_empty() {
        let ignored = defaults.ignored.iter();
        let ignored: Vec<_> = ignored
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        output::note(format_args!(
            "note: {}: {} not followed: there is nothing like it here",
            path.display(),
            ignored.join(", ")
        ));
    }
}
