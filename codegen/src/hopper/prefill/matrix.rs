//! The text of the wgmma instructions, whose operands depend on the spec.

use butterfly_ir::Dtype;
use std::fmt::Write;

/// `mma_scores` (Q by K, both in shared memory) and `mma_values` (weights in registers by V).
pub(super) fn text(dtype: Dtype, k_tile: u32, v_columns: u32) -> String {
    let mut text = instruction("mma_scores", dtype, k_tile);
    text.push('\n');
    text += &register_instruction("mma_values", dtype, v_columns, true);
    text
}

/// A wgmma instruction that multiplies 64 rows by `columns` rows, both in shared memory.
pub(in crate::hopper) fn instruction(name: &str, dtype: Dtype, columns: u32) -> String {
    let mut text = String::from("// ---- Matrix products of 64 rows, asynchronous ----\n\n");
    text += &function(
        name,
        "unsigned long long a, unsigned long long b",
        kind(dtype),
        columns,
        &["\"l\"(a)"],
        "1, 1, 0, 0",
    );
    text
}

/// A wgmma instruction that multiplies 64 columns by `columns` rows, both in shared memory.
pub(in crate::hopper) fn transposed_instruction(name: &str, dtype: Dtype, columns: u32) -> String {
    function(
        name,
        "unsigned long long a, unsigned long long b",
        kind(dtype),
        columns,
        &["\"l\"(a)"],
        "1, 1, 1, 0",
    )
}

/// A wgmma instruction that multiplies 64 rows in registers by `columns` columns in shared memory. Each of these has
/// its elements side by side or, `transposed`, each row has.
pub(in crate::hopper) fn register_instruction(
    name: &str,
    dtype: Dtype,
    columns: u32,
    transposed: bool,
) -> String {
    function(
        name,
        "unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned long long b",
        kind(dtype),
        columns,
        &["\"r\"(a0)", "\"r\"(a1)", "\"r\"(a2)", "\"r\"(a3)"],
        if transposed { "1, 1, 1" } else { "1, 1, 0" },
    )
}

/// As [`instruction`], of floats of 8 bits (e4m3).
pub(in crate::hopper) fn float8_instruction(name: &str, columns: u32) -> String {
    let arguments = "unsigned long long a, unsigned long long b";
    function(name, arguments, "e4m3", columns, &["\"l\"(a)"], "1, 1")
}

fn kind(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bf16 => "bf16",
        Dtype::F16 | Dtype::F32 => "f16",
    }
}

fn function(
    name: &str,
    arguments: &str,
    kind: &str,
    columns: u32,
    a: &[&str],
    modifiers: &str,
) -> String {
    let count = columns / 2;
    // An instruction multiplies 32 bytes of each row.
    let k = if kind == "e4m3" { 32 } else { 16 };
    let mut text = format!(
        "__device__ __forceinline__ void {name}(float (&d)[{count}], {arguments}, int accumulate) {{\n  \
         asm volatile(\n      \"{{\\n.reg .pred add;\\nsetp.ne.s32 add, %{}, 0;\\n\"\n      \
         \"wgmma.mma_async.sync.aligned.m64n{columns}k{k}.f32.{kind}.{kind} {{\"\n",
        count as usize + a.len() + 1,
    );
    for row in 0..count.div_ceil(16) {
        let of_row: Vec<String> = (row * 16..count.min(row * 16 + 16))
            .map(|i| format!("%{i}"))
            .collect();
        let separator = if row + 1 < count.div_ceil(16) {
            ", "
        } else {
            "}, "
        };
        let _ = writeln!(text, "      \"{}{separator}\"", of_row.join(", "));
    }
    let operand = |i: usize| format!("%{}", count as usize + i);
    let left = match a.len() {
        1 => operand(0),
        n => format!("{{{}}}", (0..n).map(operand).collect::<Vec<_>>().join(", ")),
    };
    let _ = writeln!(
        text,
        "      \"{left}, {}, add, {modifiers};\\n}}\"",
        operand(a.len())
    );
    for row in 0..count.div_ceil(8) {
        let of_row: Vec<String> = (row * 8..count.min(row * 8 + 8))
            .map(|i| format!("\"+f\"(d[{i}])"))
            .collect();
        let start = if row == 0 { ": " } else { "  " };
        let end = if row + 1 < count.div_ceil(8) { "," } else { "" };
        let _ = writeln!(text, "      {start}{}{end}", of_row.join(", "));
    }
    let _ = writeln!(
        text,
        "      : {}, \"l\"(b), \"r\"(accumulate)\n      : \"memory\");\n}}",
        a.join(", ")
    );
    text
}
