//! Problem → result: cuts the work into items and hands them to threads.
//!
//! In:  a [`Problem`]. Out: [`Attention`], bitwise the same for any number of threads.

use crate::{Attention, Isa, Problem, ProblemError, plan, scratch::Scratch, tile::Item};
use std::sync::Mutex;

/// Attention over the bands of each block row.
///
/// Runs in the current rayon pool on at most `threads` threads, all of the pool where
/// none are given. The result does not depend on that number.
///
/// # Errors
/// [`ProblemError`] when the arguments do not fit one another.
///
/// # Source
/// Online softmax, arXiv:1805.02867; tiling of FlashAttention-2, arXiv:2307.08691.
pub fn attend(problem: &Problem, threads: Option<usize>) -> Result<Attention, ProblemError> {
    attend_on(Isa::best(), problem, threads)
}

/// [`attend`] into memory that is already there, where its size fits: a fresh result of
/// many megabytes costs as much as a tenth of the work in page faults.
///
/// # Errors
/// As [`attend`]; `into` is then as it was.
pub fn attend_into(
    problem: &Problem,
    threads: Option<usize>,
    into: &mut Attention,
) -> Result<(), ProblemError> {
    execute(Isa::best(), problem, threads, into)
}

/// [`attend`] with the kernel for one instruction set.
///
/// # Errors
/// [`ProblemError::Unavailable`] when the machine lacks it; else as [`attend`].
pub fn attend_on(
    isa: Isa,
    problem: &Problem,
    threads: Option<usize>,
) -> Result<Attention, ProblemError> {
    let mut result = Attention::default();
    execute(isa, problem, threads, &mut result)?;
    Ok(result)
}

fn execute(
    isa: Isa,
    problem: &Problem,
    threads: Option<usize>,
    into: &mut Attention,
) -> Result<(), ProblemError> {
    problem.check()?;
    if !isa.is_available() {
        return Err(ProblemError::Unavailable(isa));
    }
    if threads == Some(0) {
        return Err(ProblemError::Zero { name: "threads" });
    }
    let rows = problem.batch * problem.q_heads * problem.q_len;
    fit(&mut into.o, rows * problem.v_head_dim);
    fit(&mut into.lse, rows);
    let lanes = lanes(isa, problem);
    let tiles = plan::query_tiles(problem, lanes);
    let mut items = items(problem, &tiles, &mut into.o, &mut into.lse);
    let threads = threads.unwrap_or_else(rayon::current_num_threads);
    let threads = threads.min(items.len());
    // The queue is taken from the end: heaviest first, so that no thread is left with
    // a long item when the others are done.
    items.sort_by_cached_key(|item| item.tile.pairs());
    let queue = Mutex::new(items);
    let work = || {
        let mut scratch = Scratch::default();
        while let Some(mut item) = next(&queue) {
            // SAFETY: both were checked above, and the tiles were planned for `lanes`.
            unsafe { isa.compute(lanes, problem, &mut item, &mut scratch) };
        }
    };
    if threads <= 1 {
        work();
    } else {
        rayon::scope(|scope| (0..threads).for_each(|_| scope.spawn(|_| work())));
    }
    Ok(())
}

/// Makes the array `len` numbers long. Zeroed memory, unlike a resized vector, is first
/// touched by the threads that write it.
fn fit(array: &mut Vec<f32>, len: usize) {
    if array.len() != len {
        *array = vec![0.0; len];
    }
}

/// Pairs of a query (of each head) and a key that [`attend`] computes, masked ones inside
/// a visited tile included; `2 * (D + Dv)` FLOP each.
///
/// # Errors
/// As [`attend`].
pub fn visited_pairs(problem: &Problem) -> Result<u64, ProblemError> {
    problem.check()?;
    let tiles = plan::query_tiles(problem, lanes(Isa::best(), problem));
    let pairs: u64 = tiles.iter().map(plan::QueryTile::pairs).sum();
    Ok(pairs * (problem.batch * problem.kv_heads) as u64)
}

fn lanes(isa: Isa, problem: &Problem) -> usize {
    isa.lanes(problem.group() * problem.q_len.min(problem.block))
}

fn next<'a>(queue: &Mutex<Vec<Item<'a>>>) -> Option<Item<'a>> {
    // A poisoned queue belongs to a scope that is already panicking.
    queue.lock().ok()?.pop()
}

/// Every tile for every sequence and kv head, with its part of the results.
fn items<'a>(
    problem: &Problem,
    tiles: &'a [plan::QueryTile],
    o: &'a mut [f32],
    lse: &'a mut [f32],
) -> Vec<Item<'a>> {
    if tiles.is_empty() {
        return Vec::new();
    }
    let mut o = o.chunks_exact_mut(problem.q_len * problem.v_head_dim);
    let mut lse = lse.chunks_exact_mut(problem.q_len);
    let mut items = Vec::with_capacity(tiles.len() * problem.batch * problem.kv_heads);
    for kv_head in 0..problem.batch * problem.kv_heads {
        let first = items.len();
        items.extend(tiles.iter().map(|tile| Item {
            kv_head,
            tile,
            o: Vec::with_capacity(problem.group()),
            lse: Vec::with_capacity(problem.group()),
        }));
        let heads = o.by_ref().zip(lse.by_ref()).take(problem.group());
        for (mut o, mut lse) in heads {
            for item in &mut items[first..] {
                let (len, dv) = (item.tile.len, problem.v_head_dim);
                item.o.push(o.split_off_mut(..len * dv).unwrap_or_default());
                item.lse.push(lse.split_off_mut(..len).unwrap_or_default());
            }
        }
    }
    items
}
