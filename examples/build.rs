//! Compiles the kernels that `aot.rs` holds: for every target, in the types that models run in.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    butterfly_build::Build::new("../tests/fixtures/configs/llama-3.1-8b.json")
        .pattern("causal & (local(1) | partner(causal_shift) | sink(1))")
        .capacity(32768)
        .module("kernels")?;

    // For the test of embedding a folder by its path, which a program would write out.
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let folder = out.join("kernels").display().to_string();
    let embed = format!("butterfly::include_artifacts!({folder:?})\n");
    std::fs::write(out.join("folder.rs"), embed)?;
    Ok(())
}
