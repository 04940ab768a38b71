//! What the texts of all kernels begin with.

use butterfly_ir::{Dtype, KernelSpec, Rows};
use std::fmt::Write;

/// Most bands of a closed form: each is held for as long as its row is computed.
pub(super) const MOST_BANDS: usize = 16;

/// Bands of a closed form, 0 for a table; or why they are not taken.
pub(super) fn bands(spec: &KernelSpec) -> Result<u32, &'static str> {
    match &spec.rows {
        Rows::Table => Ok(0),
        Rows::ClosedForm(program) if program.bands.len() <= MOST_BANDS => {
            Ok(program.bands.len() as u32)
        }
        Rows::ClosedForm(_) => Err("more than 16 bands a row"),
    }
}

/// Constants that the fragments stand on.
pub(super) struct Constants {
    text: String,
    dtype: Dtype,
}

impl Constants {
    /// Those of every kernel.
    pub(super) fn of(what: &str, spec: &KernelSpec) -> Self {
        let mut constants = Self {
            text: format!("// Block-sparse attention, {what}, sm_90a.\n\n"),
            dtype: spec.dtype,
        };
        constants.add("UNBOUNDED", butterfly_ir::band::UNBOUNDED as u32);
        constants.add("BLOCK", spec.block);
        constants.add("GROUP", spec.group);
        constants
    }

    pub(super) fn add(&mut self, name: &str, value: u32) {
        let _ = writeln!(self.text, "constexpr int {name} = {value};");
    }

    /// The text, with further lines and the element type.
    pub(super) fn finish(self, more: &str) -> String {
        let two = match self.dtype {
            Dtype::Bf16 => "bf16x2",
            Dtype::F16 | Dtype::F32 => "f16x2",
        };
        format!(
            "{}{more}\nusing Element = unsigned short;\n\n\
             // Two elements in a register, the first in its low half.\n\
             __device__ __forceinline__ unsigned pack(float low, float high) {{\n  unsigned x;\n  \
             asm(\"cvt.rn.{two}.f32 %0, %1, %2;\" : \"=r\"(x) : \"f\"(high), \"f\"(low));\n  return x;\n}}\n",
            self.text
        )
    }
}

/// The run-time scalars of a launch.
pub(super) fn launch(spec: &KernelSpec) -> String {
    let text = include_str!("launch.cuh");
    match spec.rows {
        Rows::ClosedForm(_) => text.replace("@table", ""),
        Rows::Table => text.replace(
            "@table",
            "\n  const unsigned* offsets;\n  const Band* table;",
        ),
    }
}

/// The entry point with the arguments that this spec has.
pub(super) fn entry(spec: &KernelSpec, text: &str) -> String {
    let (arguments, launch) = match spec.rows {
        Rows::ClosedForm(_) => ("", ""),
        Rows::Table => (
            "\n                        const unsigned* __restrict__ offsets, const Band* __restrict__ table,",
            "\n  launch.offsets = offsets;\n  launch.table = table;",
        ),
    };
    text.replace("@table_arguments", arguments)
        .replace("@table_launch", launch)
}
