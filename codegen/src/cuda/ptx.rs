//! PTX → how often each instruction occurs.
//!
//! A summary of a kernel that is short enough to read. It shows the products on matrix units, the
//! widths of loads and stores, and the use of local memory.

use std::collections::BTreeMap;
use std::fmt;

/// How often each opcode (with its modifiers) and each pragma occurs in a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram(pub BTreeMap<String, u32>);

/// Counts the instructions of a PTX file.
pub fn histogram(ptx: &[u8]) -> Histogram {
    let text = String::from_utf8_lossy(ptx);
    let mut counts = BTreeMap::new();
    for opcode in text.lines().filter_map(opcode) {
        *counts.entry(opcode.to_string()).or_default() += 1;
    }
    Histogram(counts)
}

impl Histogram {
    /// The number of instructions with this opcode, whatever modifiers follow: `ld.local` counts
    /// `ld.local.v4.f32` too.
    pub fn count(&self, opcode: &str) -> u32 {
        let begins = |name: &str| {
            name.strip_prefix(opcode)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.0
            .iter()
            .filter_map(|(name, count)| begins(name).then_some(count))
            .sum()
    }
}

/// One line for each opcode, sorted by name.
impl fmt::Display for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (opcode, count) in &self.0 {
            writeln!(f, "{count:>6} {opcode}")?;
        }
        Ok(())
    }
}

/// The opcode of a line `@%p1 add.s32 %r1, %r2, 1;`, or its pragma.
fn opcode(line: &str) -> Option<&str> {
    // Inline assembly stands in braces.
    let mut line = line.trim_start_matches(|c: char| c == '{' || c.is_whitespace());
    if line.starts_with(".pragma") {
        return Some(line.trim_end().trim_end_matches(';'));
    }
    if line.starts_with('@') {
        line = line.split_once(char::is_whitespace)?.1.trim_start();
    }
    let is_opcode = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':');
    let end = line.find(|c| !is_opcode(c)).unwrap_or(line.len());
    let (opcode, rest) = line.split_at(end);
    let ends = rest.starts_with([' ', '\t', ';']);
    (ends && opcode.starts_with(|c: char| c.is_ascii_lowercase())).then_some(opcode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_counted_and_nothing_else() {
        let ptx = b"// add.s32 in a comment
.version 9.0
.visible .entry butterfly_attention(
    .param .u64 .ptr .align 1 butterfly_attention_param_0
)
{
    .reg .b32   %r<3>;
    ld.param.b64    %rd1, [butterfly_attention_param_0];
$L__BB0_1:
    .pragma \"nounroll\";
    @%p1 bra    $L__BB0_1;
    @!%p2 ld.local.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1];
    ld.local.f32    %f5, [%rd1];
    { // callseq 0
    {  cvt.rn.bf16.f32 %rs1, %f5;}
    ret;
}
\0";
        let found = histogram(ptx);
        assert_eq!(
            found.to_string(),
            "     1 .pragma \"nounroll\"
     1 bra
     1 cvt.rn.bf16.f32
     1 ld.local.f32
     1 ld.local.v4.f32
     1 ld.param.b64
     1 ret
"
        );
        assert_eq!(found.count("ld.local"), 2);
        assert_eq!(found.count("ld.loc"), 0);
    }
}
