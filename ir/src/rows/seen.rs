//! How many keys a query sees, by the closed form of its row.

use super::band::keys_of_query;
use super::expr::{Expr, Input, Inputs, RowExpressions};

impl RowExpressions {
    /// The most keys that the query at position `q` sees in one of `kv_heads` kv heads; `inputs` are
    /// those of its row in the first of them.
    pub fn most_keys(&self, q: u32, kv_heads: u32, inputs: &Inputs) -> u32 {
        let of_heads = |value: &Expr| matches!(value, Expr::Input(Input::KvHead));
        let by_head = self.values.iter().any(of_heads);
        let heads = if by_head { kv_heads } else { 1 };
        let keys = |kv_head| {
            let bands = self.bands(&Inputs { kv_head, ..*inputs });
            let ranges = keys_of_query(&bands, q.cast_signed()).into_iter();
            ranges
                .map(|(start, end)| (end - start).cast_unsigned())
                .sum::<u32>()
        };
        (0..heads).map(keys).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Atom, Bound, Indices, RowProgram, SymbolicBand, band::UNBOUNDED};

    /// All keys up to the query in the second kv head, and a window of 100 in all.
    #[test]
    fn the_longest_row_of_all_heads() {
        let band = |first, heads| SymbolicBand {
            lo: vec![],
            hi: vec![],
            first,
            end: 1,
            heads,
        };
        let program = |bands: Vec<SymbolicBand>| RowProgram {
            atoms: vec![],
            bands,
        };
        let second = Indices::of([(1, 2)]);
        let window = band(-99, Indices::All);
        let inputs = Inputs {
            block: 7,
            kv_head: 0,
            kv_len: 1000,
            blocks: 8,
            index: 0,
            prompt: 1000,
        };
        let most = |program: RowProgram, heads| program.lower(128).most_keys(950, heads, &inputs);
        let both = program(vec![window.clone(), band(-UNBOUNDED, second)]);
        assert_eq!(most(both.clone(), 2), 951);
        assert_eq!(most(both, 1), 100);
        assert_eq!(most(program(vec![window]), 8), 100);
        // Ranges that overlap count once.
        let local = RowProgram {
            atoms: vec![Atom::Local {
                before: 0,
                after: 0,
            }],
            bands: vec![
                band(-9, Indices::All),
                SymbolicBand {
                    lo: vec![Bound::Start(0)],
                    hi: vec![Bound::Stop(0)],
                    ..band(-UNBOUNDED, Indices::All)
                },
            ],
        };
        assert_eq!(most(local, 1), 950 - 7 * 128 + 1);
    }
}
