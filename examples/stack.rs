//! Writes a pattern with `pattern!`, proves what a stack of layers reaches with it, and runs the
//! attention of one layer on the CPU.

use butterfly_compiler::{prove, work};
use butterfly_cpu::{Problem, attend};
use butterfly_ir::{Context, rows};
use butterfly_macros::pattern;

const TOKENS: u32 = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sparsity = pattern! {
        block 64
        causal & (local(1) | partner(causal_shift, radix=2) | sink(1))
    };
    let context = Context::new(sparsity.block, TOKENS, 3);

    let proof = prove::lower(&sparsity.pattern, &context, &[0, 1, 2, 3, 4, 5])?;
    println!(
        "{}: every earlier block is reached after {:?} layers",
        sparsity.pattern, proof.full_at
    );

    let work = work::count(&sparsity.pattern, &context)?;
    println!(
        "stage 3 computes {} of {} causal pairs",
        work.pairs, work.causal_pairs
    );

    // One sequence, two q heads that share one kv head, head size 64.
    let (q_heads, head_dim, tokens) = (2, 64, TOKENS as usize);
    let wave = |n: usize| {
        (0..n)
            .map(|i| (i as f32 * 0.37).sin())
            .collect::<Vec<f32>>()
    };
    let (q, k, v) = (
        wave(q_heads * tokens * head_dim),
        wave(tokens * head_dim),
        wave(tokens * head_dim),
    );
    let table = rows::table(&sparsity.pattern, &context, 1);
    let attention = attend(
        &Problem {
            score: Default::default(),
            batch: 1,
            q_heads,
            kv_heads: 1,
            q_len: tokens,
            kv_len: tokens,
            kv_room: tokens,
            head_dim,
            v_head_dim: head_dim,
            q_offset: 0,
            block: sparsity.block as usize,
            scale: 1.0 / (head_dim as f32).sqrt(),
            q: &q,
            k: (&k).into(),
            v: (&v).into(),
            rows: &table,
        },
        None,
    )?;
    println!(
        "o of the last query begins with {:?}",
        &attention.o[attention.o.len() - head_dim..][..4]
    );
    Ok(())
}
