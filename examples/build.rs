//! Compiles the kernels that `aot.rs` holds.

fn main() -> Result<(), butterfly_build::BuildError> {
    butterfly_build::Build::new("../tests/fixtures/configs/llama-3.1-8b.json")
        .pattern("causal & (local(1) | partner(causal_shift) | sink(1))")
        .targets("cpu")
        .dtype(butterfly_ir::Dtype::F32)
        .capacity(32768)
        .module("kernels")
}
