//! Parts of the text that several Hopper kernels share.

use butterfly_ir::kernel::signature::{Binding, Operand, Way};
use butterfly_ir::{Dtype, KernelSpec, LaunchScalars, Rows, scalar};

/// Fast arithmetic instructions.
pub(super) const ARITHMETIC: &str = include_str!("arithmetic.cuh");

/// mbarriers, and copies by TMA.
pub(super) const COPIES: &str = include_str!("copies.cuh");

/// Further instructions of warpgroups: stores, named barriers, wgmma.
pub(super) const INSTRUCTIONS: &str = include_str!("instructions.cuh");

/// Stores of matrix fragments by rows.
pub(super) const STORES: &str = include_str!("stores.cuh");

/// The activation of gates.
pub(super) const SILU: &str = include_str!("silu.cuh");

/// Products as they are stored, with gates or without.
pub(super) const GATED: &str = include_str!("gated.cuh");

/// A ring of slots that copies fill and products empty.
pub(super) const RING: &str = include_str!("ring.cuh");

/// Most bytes of shared memory that a thread block can request on sm_90.
pub(super) const SHARED_LIMIT: u32 = 232_448;

/// Most bands of a closed form: the kernel keeps them all while it computes their row.
const MOST_BANDS: usize = 16;

/// The number of bands of a closed form, or 0 for a table; or the reason why there are too many.
pub(super) fn bands(spec: &KernelSpec) -> Result<u32, &'static str> {
    match &spec.rows {
        Rows::Table => Ok(0),
        Rows::ClosedForm(program) if program.bands.len() <= MOST_BANDS => {
            Ok(program.bands.len() as u32)
        }
        Rows::ClosedForm(_) => Err("more than 16 bands a row"),
    }
}

/// The constants to which the fragments refer.
pub(super) struct Constants {
    text: String,
    dtype: Dtype,
}

/// A line that defines a constant.
pub(super) fn constant(name: &str, value: u32) -> String {
    format!("constexpr int {name} = {value};\n")
}

impl Constants {
    /// Starts the text of an attention kernel with the constants that all of them need.
    pub(super) fn of(what: &str, spec: &KernelSpec) -> Self {
        let title = format!("Block-sparse attention, {what}, sm_90a.");
        let mut constants = Self::new(&title, spec.dtype);
        constants.add("UNBOUNDED", butterfly_ir::band::UNBOUNDED as u32);
        constants.add("BLOCK", spec.block);
        constants.add("GROUP", spec.group);
        constants.add("PARAMETERS", LaunchScalars::count_by_value(spec) as u32);
        constants
    }

    /// Starts a text with a title and no constants.
    pub(super) fn new(title: &str, dtype: Dtype) -> Self {
        Self {
            text: format!("// {title}\n\n"),
            dtype,
        }
    }

    pub(super) fn add(&mut self, name: &str, value: u32) {
        self.text += &constant(name, value);
    }

    /// The text with the lines `more`, the element type and its packing function added.
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

/// The text that reads the run-time scalars of a launch and, if needed, applies a softcap.
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

/// Replaces the mark `@sink(head)` in `text` by code that adds the sink logit of q head `head` to
/// a row. From the row's base-2 logit `top` and its sum of weights `sum`, this code computes
/// `highest` and `total`, the same with the sink included, and `fade`, the factor that makes the
/// row's weights relative to `highest`.
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

/// Fills in an entry point: its arguments, one a line, and the pointers that go into `launch`.
pub(super) fn entry(signature: &[Binding], text: &str) -> String {
    let (before, _) = text.split_once("@arguments").expect("a mark");
    let line = before.rsplit('\n').next().unwrap_or_default();
    let indent = format!("\n{:1$}", "", line.chars().count());
    let arguments: Vec<String> = signature.iter().map(declared).collect();
    let mut launch = String::new();
    for binding in signature {
        launch += match binding.operand {
            Operand::Offsets => "\n  launch.offsets = offsets;",
            Operand::Bands => "\n  launch.table = bands;",
            Operand::Sinks => "\n  launch.sinks = sinks;",
            _ => "",
        };
    }
    text.replace("@arguments", &arguments.join(&format!(",{indent}")))
        .replace("@launch", &launch)
}

/// The declaration of an argument in CUDA C++. Buffers behind tensor maps are not used and get no
/// name, except o.
fn declared(Binding { operand, way }: &Binding) -> String {
    let name = operand.name();
    match (way, operand) {
        (Way::Map(_), _) => format!("const __grid_constant__ TensorMap {name}_map"),
        (Way::Value, _) => "const __grid_constant__ Parameters parameters".into(),
        (_, Operand::O) => "Element* __restrict__ o".into(),
        (Way::Mapped, _) => "const void*".into(),
        (Way::Buffer, Operand::Lse) => "float* __restrict__ lse".into(),
        (Way::Buffer, Operand::Partials) => "float* __restrict__ partials".into(),
        (Way::Buffer, Operand::Bands) => "const Band* __restrict__ bands".into(),
        (Way::Buffer, Operand::Sinks) => "const float* __restrict__ sinks".into(),
        (Way::Buffer, _) => format!("const unsigned* __restrict__ {name}"),
    }
}
