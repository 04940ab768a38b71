//! Topology → exact counts of what attention over it costs.
//!
//! Everything is known before a kernel runs, so predicted time needs no sampling.

use butterfly_ir::band::keys_of_query;
use butterfly_ir::{Class, Topology};
use serde::Serialize;

/// Exact work of one q head of one sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Work {
    /// (query, key) pairs that are seen.
    pub pairs: u64,
    /// (query, key) pairs with key <= query: what dense causal attention computes.
    pub causal_pairs: u64,
    /// Blocks read, full and partial together.
    pub blocks: u64,
    /// Blocks that need no mask.
    pub full_blocks: u64,
    /// Most blocks in a row.
    pub max_degree: u32,
    /// Most rows that read one block.
    pub max_in_degree: u32,
}

impl Work {
    /// Blocks in a row, on average.
    pub fn mean_degree(&self, rows: usize) -> f64 {
        self.blocks as f64 / rows.max(1) as f64
    }

    /// FLOP of QK^T and PV over the pairs that are seen.
    pub fn flop(&self, head_dim: u32, v_head_dim: u32) -> u64 {
        2 * self.pairs * u64::from(head_dim + v_head_dim)
    }
}

/// Counts the work of `topology`.
pub fn count(topology: &Topology) -> Work {
    let kv_len = u64::from(topology.context.kv_len);
    let mut work = Work {
        causal_pairs: kv_len * (kv_len + 1) / 2,
        ..Work::default()
    };
    let mut in_degree = vec![0u32; topology.rows.len()];
    for (b, row) in topology.rows.iter().enumerate() {
        let (q0, q1) = topology.queries(b as u32);
        let pairs = |q: u32| {
            keys_of_query(&row.bands, q as i32)
                .iter()
                .map(|r| (r.1 - r.0) as u64)
                .sum::<u64>()
        };
        work.pairs += (q0..=q1).map(pairs).sum::<u64>();
        work.blocks += row.blocks.len() as u64;
        work.full_blocks += row.blocks.iter().filter(|x| x.class == Class::Full).count() as u64;
        work.max_degree = work.max_degree.max(row.blocks.len() as u32);
        row.blocks
            .iter()
            .for_each(|x| in_degree[x.block as usize] += 1);
    }
    work.max_in_degree = in_degree.into_iter().max().unwrap_or_default();
    work
}
