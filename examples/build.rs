//! Compiles the kernels that `aot.rs` embeds: for every target, in the default element types.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    butterfly_build::Build::new("../tests/fixtures/configs/llama-3.1-8b.json")
        .pattern("causal & (local(1) | partner(causal_shift) | sink(1))")
        .capacity(32768)
        .module("kernels")?;

    // `tests/embedded.rs` embeds the same folder by its path. The path is only known here, so the
    // macro call is generated; a program would write it out.
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let folder = out.join("kernels").display().to_string();
    let embed = format!("butterfly::include_artifacts!({folder:?})\n");
    std::fs::write(out.join("folder.rs"), embed)?;
    Ok(())
}
