//! The CUDA C++ that gives the bands of a row: `butterfly_ir::rows::RowExpressions` evaluated in
//! registers, or a table in memory.

use butterfly_ir::Rows;
use butterfly_ir::rows::{Expr, ExprId, Function, Input, RowExpressions};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// The text: the struct `Bands` with `bands_of`, the struct `PerLaunch` with `per_launch_of`, and
/// `write_bands`, which writes the list that `Bands` reads in closed form.
pub(super) fn text(rows: &Rows, block: u32) -> String {
    match rows {
        Rows::Table => TABLE.to_string(),
        Rows::ClosedForm(program) => closed_form(&program.lower(block)),
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

__device__ __forceinline__ Bands bands_of(const Launch& launch, unsigned b, unsigned kv_head, unsigned sequence,
                                          const Band*) {
  const unsigned* offsets =
      launch.offsets + (sequence * launch.sequence_rows + kv_head * launch.head_rows + b - launch.first_row);
  const unsigned from = offsets[0];
  return {launch.table + from, static_cast<int>(offsets[1] - from), launch.kv_len};
}

struct PerLaunch {};

__device__ __forceinline__ PerLaunch per_launch_of(const Launch&) { return {}; }

__device__ __forceinline__ void write_bands(const Launch&, const PerLaunch&, unsigned, unsigned, Band*) {}
";

const CLOSED: &str = "\
// ---- Bands of a row, in closed form ----

struct Bands {
  const Band* list;
  __device__ __forceinline__ int count() const { return BANDS; }
  __device__ __forceinline__ Band at(int i) const { return list[i]; }
};

__device__ __forceinline__ Bands bands_of(const Launch&, unsigned, unsigned, unsigned, const Band* list) {
  return {list};
}

";

const DIGITS: &str = "\
// Digits of x in a base; none of 0.
__device__ __forceinline__ unsigned digits_of(unsigned x, unsigned radix) {
  if (radix == 2) return 32 - __clz(x);
  unsigned digits = 0;
  for (; x > 0; x /= radix) ++digits;
  return digits;
}

";

const POWER: &str = "\
__device__ __forceinline__ unsigned power_of(unsigned radix, unsigned exponent) {
  if (radix == 2) return 1u << exponent;
  unsigned power = 1;
  for (unsigned n = 0; n < exponent; ++n) power *= radix;
  return power;
}

";

const REMAINDER: &str = "\
// Divisions are slow, and x is mostly the smaller one.
__device__ __forceinline__ unsigned remainder_of(unsigned x, unsigned y) { return x < y ? x : x % y; }

";

fn closed_form(rows: &RowExpressions) -> String {
    let mut text = CLOSED.to_string();
    let has = |of: fn(&Expr) -> bool| rows.values.iter().any(of);
    for (helper, used) in [
        (DIGITS, has(|x| matches!(x, Expr::Digits { .. }))),
        (POWER, has(|x| matches!(x, Expr::Power { .. }))),
        (
            REMAINDER,
            has(|x| matches!(x, Expr::Apply(Function::Remainder, ..))),
        ),
    ] {
        text += if used { helper } else { "" };
    }
    let fields = fields(rows);
    text += &per_launch(rows, &fields);
    let limits = rows.bands.iter().flat_map(|band| [band.lo, band.hi]);
    let (lines, texts) = Body::new(rows, limits.collect(), &fields).text();
    text += "__device__ __forceinline__ void write_bands(const Launch& launch, const PerLaunch& per_launch, unsigned b,
                                            unsigned kv_head, Band* list) {\n";
    text += &lines;
    for (i, band) in rows.bands.iter().enumerate() {
        let limit = |x: ExprId| match rows.values[x.index()] {
            Expr::Constant(number) => number.to_string(),
            Expr::Input(Input::KvLen) => "launch.kv_len".into(),
            _ => format!("int({})", texts[&x]),
        };
        let (lo, hi) = (limit(band.lo), limit(band.hi));
        let _ = writeln!(
            text,
            "  list[{i}] = {{{lo}, {hi}, {}, {}}};",
            band.first, band.end
        );
    }
    text + "}\n"
}

/// The values that are computed once per launch and kept in registers: values that rows read, that
/// are the same for all rows, and that need a division or a loop.
fn fields(rows: &RowExpressions) -> BTreeSet<ExprId> {
    let varies = rows.varies();
    let mut slow: Vec<bool> = Vec::with_capacity(rows.values.len());
    for value in &rows.values {
        let own = match value {
            Expr::Digits { .. } | Expr::Power { .. } => true,
            Expr::Apply(function, ..) => {
                matches!(function, Function::Divide | Function::Remainder)
            }
            Expr::Constant(_) | Expr::Input(_) | Expr::Reversed(_) | Expr::Choose { .. } => false,
        };
        slow.push(own || value.operands().any(|x| slow[x.index()]));
    }
    let values = rows.values.iter().enumerate();
    let read = values
        .filter(|(i, _)| varies[*i])
        .flat_map(|(_, value)| value.operands());
    let limits = rows.bands.iter().flat_map(|band| [band.lo, band.hi]);
    read.chain(limits)
        .filter(|x| slow[x.index()] && !varies[x.index()])
        .collect()
}

/// The text of `PerLaunch` and `per_launch_of`: the values that are computed once per launch.
fn per_launch(rows: &RowExpressions, fields: &BTreeSet<ExprId>) -> String {
    let (lines, texts) = Body::new(rows, fields.iter().copied().collect(), &BTreeSet::new()).text();
    let names: Vec<String> = fields.iter().map(|x| format!("x{}", x.0)).collect();
    let declared = match names.is_empty() {
        true => String::new(),
        false => format!(" unsigned {}; ", names.join(", ")),
    };
    let values: Vec<&str> = fields.iter().map(|x| texts[x].as_str()).collect();
    format!(
        "// What is the same for all rows of a launch.\nstruct PerLaunch {{{declared}}};\n\n\
         __device__ __forceinline__ PerLaunch per_launch_of(const Launch& launch) {{\n{lines}  \
         return {{{}}};\n}}\n\n",
        values.join(", ")
    )
}

/// The statements of a function that computes some values.
struct Body<'a> {
    rows: &'a RowExpressions,
    roots: Vec<ExprId>,
    /// Values that the function finds in `per_launch`.
    given: &'a BTreeSet<ExprId>,
}

impl<'a> Body<'a> {
    fn new(rows: &'a RowExpressions, roots: Vec<ExprId>, given: &'a BTreeSet<ExprId>) -> Self {
        Self { rows, roots, given }
    }

    /// Statements for the values that are read more than once, and the expression of each value,
    /// roots without outer parentheses.
    fn text(&self) -> (String, BTreeMap<ExprId, String>) {
        let mut uses: BTreeMap<ExprId, u32> = BTreeMap::new();
        for x in &self.roots {
            *uses.entry(*x).or_default() += 1;
        }
        for i in (0..self.rows.values.len() as u32).rev() {
            let x = ExprId(i);
            if uses.contains_key(&x) && !self.given.contains(&x) {
                for operand in self.rows.values[x.index()].operands() {
                    *uses.entry(operand).or_default() += 1;
                }
            }
        }
        let (mut lines, mut texts) = (String::new(), BTreeMap::new());
        for (x, uses) in uses {
            let value = &self.rows.values[x.index()];
            let plain = matches!(value, Expr::Constant(_) | Expr::Input(_));
            let text = match self.given.contains(&x) {
                true => format!("per_launch.x{}", x.0),
                false => expression(value, &texts),
            };
            if uses > 1 && !plain && !self.given.contains(&x) {
                let _ = writeln!(lines, "  const unsigned x{} = {};", x.0, bare(&text));
                texts.insert(x, format!("x{}", x.0));
            } else {
                texts.insert(x, text);
            }
        }
        for x in &self.roots {
            let text = bare(&texts[x]).to_string();
            texts.insert(*x, text);
        }
        (lines, texts)
    }
}

/// The text without parentheses around the whole of it.
fn bare(text: &str) -> &str {
    let inner = text.strip_prefix('(').and_then(|x| x.strip_suffix(')'));
    // The opening parenthesis must close at the end, not before.
    let balanced = |x: &&str| {
        let mut depth = 0;
        x.chars().all(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth >= 0
        })
    };
    inner.filter(balanced).unwrap_or(text)
}

/// A value in terms of its operands' texts.
fn expression(value: &Expr, texts: &BTreeMap<ExprId, String>) -> String {
    let of = |x: &ExprId| texts[x].as_str();
    let plain = |x: &ExprId| bare(&texts[x]).to_string();
    match value {
        Expr::Constant(number) => format!("{number}u"),
        Expr::Input(input) => match input {
            Input::Block => "b".into(),
            Input::KvHead => "kv_head".into(),
            Input::KvLen => "unsigned(launch.kv_len)".into(),
            Input::Blocks => "launch.blocks".into(),
            Input::Index => "launch.index".into(),
            Input::Prompt => "launch.prompt".into(),
        },
        Expr::Apply(function, x, y) => {
            let infix = |sign: &str| format!("({} {sign} {})", of(x), of(y));
            let call = |name: &str| format!("{name}({}, {})", plain(x), plain(y));
            match function {
                Function::Add => infix("+"),
                Function::Subtract => infix("-"),
                Function::Multiply => infix("*"),
                Function::Divide => infix("/"),
                Function::Xor => infix("^"),
                Function::ShiftLeft => infix("<<"),
                Function::ShiftRight => infix(">>"),
                Function::Minimum => call("min"),
                Function::Maximum => call("max"),
                Function::Remainder => call("remainder_of"),
            }
        }
        Expr::Digits { of: x, radix } => format!("digits_of({}, {radix}u)", plain(x)),
        Expr::Power { radix, exponent } => format!("power_of({radix}u, {})", plain(exponent)),
        Expr::Reversed(x) => format!("__brev({})", plain(x)),
        Expr::Choose {
            less: [x, y],
            then,
            otherwise,
        } => format!("({} < {} ? {} : {})", of(x), of(y), of(then), of(otherwise)),
    }
}
