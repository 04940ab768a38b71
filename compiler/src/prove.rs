//! What a stack of layers reaches.
//!
//! In:  a pattern and the stage index of each swapped layer, first layer first.
//! Out: for each depth the share of causal block pairs that information can cross, and
//! the bounds every layer keeps.
//!
//! The layers form a layered graph: block `c` below layer `d` is joined to block `b`
//! above it when row `b` of that layer reads `c`; the residual stream joins each block
//! to itself. Block `b` after `d` layers knows exactly the blocks from which a path
//! leads to it.

use crate::classify;
use butterfly_ir::plan::Proof;
use butterfly_ir::topology::queries;
use butterfly_ir::{Context, Pattern, rows};
use petgraph::graph::{DiGraph, NodeIndex};

/// Composes the layers whose stage indices are `indices` and proves what they reach.
///
/// Takes O(layers × degree × N²/64) for N blocks.
pub fn lower(pattern: &Pattern, context: &Context, indices: &[u32]) -> Proof {
    let blocks = context.rows() as usize;
    let mut proof = Proof {
        coverage: Vec::new(),
        full_at: None,
        max_degree: 0,
        max_in_degree: 0,
        causal: true,
        empty_queries: 0,
    };
    let mut reach = Reach::identity(blocks);
    for index in indices {
        let layer = layer(
            pattern,
            &Context {
                index: *index,
                ..*context
            },
            &mut proof,
        );
        reach = reach.through(&layer);
        let pairs = (blocks * (blocks + 1) / 2) as f64;
        let reached = reach.pairs();
        proof.coverage.push(reached as f64 / pairs);
        if proof.full_at.is_none() && reached as f64 == pairs {
            proof.full_at = Some(proof.coverage.len());
        }
    }
    proof
}

/// One layer as a graph from read to reading block; records its bounds in `proof`.
fn layer(pattern: &Pattern, context: &Context, proof: &mut Proof) -> DiGraph<(), ()> {
    let blocks = context.rows();
    let mut graph = DiGraph::with_capacity(blocks as usize, blocks as usize * 4);
    let nodes: Vec<NodeIndex> = (0..blocks).map(|_| graph.add_node(())).collect();
    let mut in_degree = vec![0u32; blocks as usize];
    for b in 0..blocks {
        let bands = rows::row(pattern, context, b);
        let (q0, q1) = queries(context, b);
        let (q0, q1) = (q0 as i32, q1 as i32);
        proof.causal &= (q0..=q1).all(|q| bands.iter().all(|x| !leaks(x, q)));
        proof.empty_queries += empty_queries(&bands, q0, q1);
        let mut degree = 0;
        for (start, stop) in classify::columns(&bands, context, b) {
            degree += stop - start;
            for c in start..stop {
                in_degree[c as usize] += 1;
                graph.add_edge(nodes[c as usize], nodes[b as usize], ());
            }
        }
        proof.max_degree = proof.max_degree.max(degree);
    }
    proof.max_in_degree = proof
        .max_in_degree
        .max(in_degree.into_iter().max().unwrap_or_default());
    graph
}

fn leaks(band: &butterfly_ir::Band, q: i32) -> bool {
    let (start, stop) = band.of_query(q);
    start < stop && stop > q + 1
}

fn empty_queries(bands: &[butterfly_ir::Band], q0: i32, q1: i32) -> u64 {
    if classify::first_empty(bands, (q0, q1)).is_none() {
        return 0;
    }
    (q0..=q1)
        .filter(|q| butterfly_ir::band::keys_of_query(bands, *q).is_empty())
        .count() as u64
}

/// For each block the set of blocks it has heard of, as bits.
struct Reach {
    blocks: usize,
    words: usize,
    bits: Vec<u64>,
}

impl Reach {
    fn identity(blocks: usize) -> Self {
        let words = blocks.div_ceil(64);
        let mut bits = vec![0; blocks * words];
        (0..blocks).for_each(|b| bits[b * words + b / 64] |= 1 << (b % 64));
        Self {
            blocks,
            words,
            bits,
        }
    }

    fn through(&self, layer: &DiGraph<(), ()>) -> Self {
        let mut bits = self.bits.clone();
        for edge in layer.raw_edges() {
            let (from, to) = (
                edge.source().index() * self.words,
                edge.target().index() * self.words,
            );
            let (source, target) = (
                &self.bits[from..from + self.words],
                &mut bits[to..to + self.words],
            );
            target.iter_mut().zip(source).for_each(|(t, s)| *t |= s);
        }
        Self { bits, ..*self }
    }

    /// Pairs (b, c) with c <= b that are reached.
    fn pairs(&self) -> usize {
        let row = |b: usize| {
            let words = &self.bits[b * self.words..];
            let whole: u32 = words[..b / 64].iter().map(|w| w.count_ones()).sum();
            (whole + (words[b / 64] << (63 - b % 64)).count_ones()) as usize
        };
        (0..self.blocks).map(row).sum()
    }
}
