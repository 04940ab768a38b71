//! What the texts of all kernels begin with.

use butterfly_ir::kernel::signature::{self, Binding, Role, Way};
use butterfly_ir::{Dtype, Geometry, KernelSpec, LaunchScalars, Rows, scalar};
use std::fmt::Write;

/// What all kernels compute with.
pub(super) const ARITHMETIC: &str = include_str!("arithmetic.cuh");

/// Barriers, and copies by tensor maps.
pub(super) const COPIES: &str = include_str!("copies.cuh");

/// What warpgroups do beside: stores, turns, matrix instructions.
pub(super) const INSTRUCTIONS: &str = include_str!("instructions.cuh");

/// How rows of matrix fragments are stored.
pub(super) const STORES: &str = include_str!("stores.cuh");

/// Shared memory that a thread block can ask for on sm_90, in bytes.
pub(super) const SHARED_LIMIT: u32 = 232_448;

/// Most bands of a closed form: each is held for as long as its row is computed.
const MOST_BANDS: usize = 16;

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
        let title = format!("Block-sparse attention, {what}, sm_90a.");
        let mut constants = Self::new(&title, spec.dtype);
        constants.add("UNBOUNDED", butterfly_ir::band::UNBOUNDED as u32);
        constants.add("BLOCK", spec.block);
        constants.add("GROUP", spec.group);
        constants.add("PARAMETERS", LaunchScalars::BY_VALUE as u32);
        constants
    }

    /// None yet.
    pub(super) fn new(title: &str, dtype: Dtype) -> Self {
        Self {
            text: format!("// {title}\n\n"),
            dtype,
        }
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

/// The run-time scalars of a launch, and what is done to logits beside scale and mask.
pub(super) fn launch(spec: &KernelSpec) -> String {
    let mut fields = String::new();
    let mut read = String::new();
    let mut score = String::new();
    if spec.score.softcap {
        fields += "\n  float softcap;";
        read += "\n  launch.softcap = __uint_as_float(params[@SOFTCAP]);";
        score += SOFTCAP;
    }
    if spec.score.sinks {
        fields += "\n  const float* sinks;";
    }
    let table = match spec.rows {
        Rows::ClosedForm(_) => "",
        Rows::Table => "\n  const unsigned* offsets;\n  const Band* table;",
    };
    let text = include_str!("launch.cuh")
        .replace("@score_fields", &fields)
        .replace("@score_read", &read)
        .replace("@score\n", &score)
        .replace("@table", table);
    let places = scalar::ALL.iter();
    places.fold(text, |text, (name, place)| {
        text.replace(&format!("[@{name}]"), &format!("[{place}]"))
    })
}

const SOFTCAP: &str = "
// `c tanh(x / c)` of a logit `x / factor`, where `factor` is 2 log2(e) / c.
__device__ __forceinline__ float capped(float x, float cap, float factor) {
  return fmaf(-2.0f * cap, reciprocal_fast(exp2_fast(x * factor) + 1.0f), cap);
}
";

/// What a row ends with: `top` and `sum` in powers of two, and the text that adds the logit of
/// the sink of q head `head`. `fade` is what the sink leaves of the sum.
pub(super) fn with_sink(spec: &KernelSpec, text: &str) -> String {
    let sink = "\
    const float sink = launch.sinks[HEAD] * 1.44269504f;
    const float highest = fmaxf(top, sink);
    const float fade = top > minus_infinity() ? exp2_fast(top - highest) : 0.0f;
    const float total = sink > minus_infinity() ? fmaf(sum, fade, exp2_fast(sink - highest)) : sum;
";
    let plain = "    const float highest = top, fade = 1.0f, total = sum;\n";
    let (before, rest) = text.split_once("@sink(").expect("a mark");
    let (head, after) = rest.split_once(")\n").expect("its end");
    let added = match spec.score.sinks {
        true => sink.replace("HEAD", head),
        false => plain.to_string(),
    };
    format!("{before}{added}{after}")
}

/// The entry point with the arguments of this kernel: a line for each in the text's indentation.
pub(super) fn entry(spec: &KernelSpec, geometry: &Geometry, text: &str) -> String {
    let (before, _) = text.split_once("@arguments").expect("a mark");
    let line = before.rsplit('\n').next().unwrap_or_default();
    let indent = format!("\n{:1$}", "", line.chars().count());
    let signature = signature::of(spec, geometry);
    let arguments: Vec<String> = signature.iter().map(declared).collect();
    let mut launch = String::new();
    for binding in &signature {
        launch += match binding.role {
            Role::Offsets => "\n  launch.offsets = offsets;",
            Role::Bands => "\n  launch.table = bands;",
            Role::Sinks => "\n  launch.sinks = sinks;",
            _ => "",
        };
    }
    text.replace("@arguments", &arguments.join(&format!(",{indent}")))
        .replace("@launch", &launch)
}

/// An argument in CUDA C++. Tensors behind tensor maps have no name, but for o.
fn declared(Binding { role, way }: &Binding) -> String {
    let name = role.name();
    match (way, role) {
        (Way::Map(_), _) => format!("const __grid_constant__ TensorMap {name}_map"),
        (Way::Value, _) => "const __grid_constant__ Parameters parameters".into(),
        (_, Role::O) => "Element* __restrict__ o".into(),
        (Way::Mapped, _) => "const void*".into(),
        (Way::Buffer, Role::Lse) => "float* __restrict__ lse".into(),
        (Way::Buffer, Role::Bands) => "const Band* __restrict__ bands".into(),
        (Way::Buffer, Role::Sinks) => "const float* __restrict__ sinks".into(),
        (Way::Buffer, _) => format!("const unsigned* __restrict__ {name}"),
    }
}
