//! The text that evaluates the rows: `butterfly_ir::RowProgram` as CUDA C++, or a table.
//!
//! Same meaning, statement by statement, as `butterfly_ir::{row_program, stage}`.

use butterfly_ir::{Atom, Bound, PartnerRule, RowProgram, Rows, band::UNBOUNDED};
use std::fmt::Write;

/// Struct `Bands` with `bands_of`, and `write_bands`, which fills the list that they read.
pub(super) fn text(rows: &Rows, block: u32) -> String {
    match rows {
        Rows::Table => TABLE.to_string(),
        Rows::ClosedForm(program) => closed_form(program, block),
    }
}

const TABLE: &str = "\
// ---- Bands of a row, from the table ----

struct Bands {
  const Band* list;
  int length, kv_len;
  __device__ __forceinline__ int count() const { return length; }
  __device__ __forceinline__ Band at(int i) const {
    Band band = list[i];
    band.lo = max(band.lo, 0);
    band.hi = min(band.hi, kv_len);
    return band;
  }
};

__device__ __forceinline__ Bands bands_of(const Launch& launch, int b, const Band*) {
  const unsigned from = launch.offsets[b];
  return {launch.table + from, static_cast<int>(launch.offsets[b + 1] - from), launch.kv_len};
}

struct Stages {};

__device__ __forceinline__ Stages stages_of(const Launch&) { return {}; }

__device__ __forceinline__ void write_bands(const Launch&, const Stages&, int, Band*) {}
";

const CLOSED: &str = "\
// ---- Bands of a row, in closed form ----

struct Bands {
  const Band* list;
  __device__ __forceinline__ int count() const { return BANDS; }
  __device__ __forceinline__ Band at(int i) const { return list[i]; }
};

__device__ __forceinline__ Bands bands_of(const Launch&, int, const Band* list) { return {list}; }

";

const DIGIT: &str = "\
// The digit that a partner differs in, at the stage of this launch.
__device__ __forceinline__ unsigned digit_of(const Launch& launch, unsigned radix, unsigned offset,
                                             bool there_and_back) {
  const unsigned last = max(launch.blocks, 1u) - 1;
  unsigned width = 0;
  if (radix == 2) width = 32 - __clz(last);
  else
    for (unsigned rest = last; rest > 0; rest /= radix) ++width;
  width = max(width, 1u);
  const unsigned turn = 2 * width - 2;
  const unsigned count = there_and_back ? max(turn, 1u) : width;
  // Divisions are slow, and stages mostly below the count.
  unsigned position = launch.index;
  if (position >= count) position %= count;
  position += offset;
  if (offset > 0 && position >= count) position %= count;
  return !there_and_back || position < width ? position : turn - position;
}

__device__ __forceinline__ unsigned power_of(unsigned radix, unsigned exponent) {
  if (radix == 2) return 1u << exponent;
  unsigned power = 1;
  for (unsigned n = 0; n < exponent; ++n) power *= radix;
  return power;
}

";

fn closed_form(program: &RowProgram, block: u32) -> String {
    let mut text = CLOSED.to_string();
    let staged = |atom: &Atom| matches!(atom, Atom::Partner { .. });
    if program.atoms.iter().any(staged) {
        text += DIGIT;
    }
    text += &stages(program);
    text += "__device__ __forceinline__ void write_bands(const Launch& launch, const Stages& stages, int row,\n                                            Band* list) {\n";
    if !program.atoms.is_empty() {
        text += "  const unsigned b = row;\n";
    }
    for (i, atom) in program.atoms.iter().enumerate() {
        text += &range(i, atom, block);
    }
    for (i, band) in program.bands.iter().enumerate() {
        let fold = |start: &str, name: &str, bounds: &[Bound]| {
            bounds
                .iter()
                .fold(start.to_string(), |text, bound| match bound {
                    Bound::Start(i) => format!("{name}({text}, start_{i})"),
                    Bound::Stop(i) => format!("{name}({text}, stop_{i})"),
                })
        };
        let lo = fold("0", "max", &band.lo);
        let hi = fold("launch.kv_len", "min", &band.hi);
        let _ = writeln!(
            text,
            "  list[{i}] = {{{lo}, {hi}, {}, {}}};",
            band.first, band.end
        );
    }
    text + "}\n"
}

/// What partners need of the launch, computed once.
fn stages(program: &RowProgram) -> String {
    let mut fields = String::new();
    let mut values = String::new();
    for (i, atom) in program.atoms.iter().enumerate() {
        let Atom::Partner {
            rule,
            radix,
            offset,
            ..
        } = *atom
        else {
            continue;
        };
        let mut put = |field: &str, value: String| {
            let _ = writeln!(fields, "  unsigned {field}_{i};");
            let _ = writeln!(values, "  stages.{field}_{i} = {value};");
        };
        let back = rule == PartnerRule::Benes;
        let digit = format!("digit_of(launch, {radix}u, {offset}u, {back})");
        match rule {
            PartnerRule::FixedStride => {}
            PartnerRule::Xor | PartnerRule::Benes | PartnerRule::Random => put("digit", digit),
            PartnerRule::BitReversal => {
                put("digit", digit);
                put(
                    "unused",
                    "min(__clz(max(launch.blocks, 1u) - 1), 31)".to_string(),
                );
            }
            PartnerRule::CausalShift => put("power", format!("power_of({radix}u, {digit})")),
        }
    }
    format!(
        "struct Stages {{\n{fields}}};\n\n\
         __device__ __forceinline__ Stages stages_of(const Launch& launch) {{\n  \
         Stages stages;\n{values}  return stages;\n}}\n\n"
    )
}

/// `start_i` and `stop_i`: `Atom::range`.
fn range(i: usize, atom: &Atom, block: u32) -> String {
    let tokens = |blocks: u32| (u64::from(blocks) * u64::from(block)).min(UNBOUNDED as u64);
    let both = |start: String, stop: String| {
        format!("  const int start_{i} = {start};\n  const int stop_{i} = {stop};\n")
    };
    match *atom {
        Atom::Local { before, after } => both(
            format!("(b - min(b, {before}u)) * {block}u"),
            format!(
                "min(b * {block}u + {}u, {UNBOUNDED}u)",
                tokens(after) + u64::from(block)
            ),
        ),
        Atom::Sink { blocks } => both("0".into(), format!("min(b + 1, {blocks}u) * {block}u")),
        Atom::Tokens { tokens } => both("0".into(), format!("{}", tokens.min(UNBOUNDED as u32))),
        Atom::Columns { blocks } => both("0".into(), format!("{}", tokens(blocks))),
        Atom::Rows { blocks } => both("0".into(), format!("b < {blocks}u ? launch.kv_len : 0")),
        Atom::Partner { rule, step, .. } => {
            let found = partner(i, rule, step);
            let mut text = found;
            let _ = writeln!(
                text,
                "  const bool has_{i} = exists_{i} && partner_{i} < launch.blocks && partner_{i} <= b;"
            );
            text += &both(
                format!("has_{i} ? partner_{i} * {block}u : 0"),
                format!("has_{i} ? start_{i} + {block} : 0"),
            );
            text
        }
    }
}

/// `partner_i` and `exists_i`: `stage::partner` before its checks.
fn partner(i: usize, rule: PartnerRule, step: u32) -> String {
    let (exists, found) = match rule {
        PartnerRule::Xor | PartnerRule::Benes => {
            ("true".to_string(), format!("b ^ (1u << stages.digit_{i})"))
        }
        PartnerRule::BitReversal => (
            "true".to_string(),
            format!(
                "__brev((__brev(b) >> stages.unused_{i}) ^ (1u << stages.digit_{i})) >> stages.unused_{i}"
            ),
        ),
        PartnerRule::CausalShift => (
            format!("stages.power_{i} <= b / {step}u"),
            format!("b - {step}u * stages.power_{i}"),
        ),
        PartnerRule::FixedStride => ("b > 0".to_string(), "b - 1".to_string()),
        PartnerRule::Random => (
            "b > 0".to_string(),
            format!("(b * 2654435761u + stages.digit_{i} * 374761393u) % max(b, 1u)"),
        ),
    };
    format!("  const bool exists_{i} = {exists};\n  const unsigned partner_{i} = {found};\n")
}
