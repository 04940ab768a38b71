//! Problem → result: divides the work into items and distributes them over threads.
//!
//! In:  a [`Problem`]. Out: [`Attention`], bitwise the same for any number of threads.

use crate::{
    Attention, Isa, Problem, ProblemError, query_tiles,
    scratch::Scratch,
    tile::{Item, ItemWork},
};
use std::sync::Mutex;

/// Attention of every query over the keys in the bands of its row.
///
/// Runs on at most `threads` threads of the current rayon pool; `None` means all of them.
/// The result is bitwise the same for any number of threads.
///
/// # Errors
/// [`ProblemError`] if the arguments do not fit one another, or `threads` is 0.
///
/// # Source
/// Online softmax, arXiv:1805.02867; tiling of FlashAttention-2, arXiv:2307.08691.
pub fn attend(problem: &Problem, threads: Option<usize>) -> Result<Attention, ProblemError> {
    attend_on(Isa::best(), problem, threads)
}

/// As [`attend`], but reuses the memory of `into` if its size fits.
///
/// Page faults in a newly allocated result of many megabytes can take a tenth of the time.
///
/// # Errors
/// As [`attend`]; `into` is then unchanged.
pub fn attend_into(
    problem: &Problem,
    threads: Option<usize>,
    into: &mut Attention,
) -> Result<(), ProblemError> {
    execute(Isa::best(), problem, threads, into)
}

/// As [`attend`], with the kernel for a given instruction set.
///
/// # Errors
/// [`ProblemError::Unavailable`] if the CPU does not have it; else as [`attend`].
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
    let tiles = query_tiles::query_tiles(problem, lanes);
    let mut items = items(problem, &tiles, &mut into.o, &mut into.lse);
    let threads = threads.unwrap_or_else(rayon::current_num_threads);
    let threads = threads.min(items.len());
    // Items are taken from the end, the largest first, so that no thread still has a long
    // item when the others are done.
    items.sort_by_cached_key(|item| item.tile.pairs());
    let queue = Mutex::new(items);
    let work = || {
        let mut scratch = Scratch::default();
        while let Some(mut item) = next(&queue) {
            let work = ItemWork {
                lanes,
                problem,
                item: &mut item,
                scratch: &mut scratch,
            };
            // SAFETY: the problem and the instruction set were checked above, and the tiles were
            // made for `lanes` lanes.
            unsafe { isa.run(work) };
        }
    };
    if threads <= 1 {
        work();
    } else {
        rayon::scope(|scope| (0..threads).for_each(|_| scope.spawn(|_| work())));
    }
    Ok(())
}

/// Makes the array `len` numbers long. With newly zeroed memory, unlike with a resized vector,
/// the threads that write the result also take its page faults.
fn fit(array: &mut Vec<f32>, len: usize) {
    if array.len() != len {
        *array = vec![0.0; len];
    }
}

/// Number of (query, key) pairs that [`attend`] computes, over all sequences and q heads. Masked
/// pairs within a visited tile count too. Each pair takes `2 * (D + Dv)` FLOP.
///
/// # Errors
/// As [`attend`].
pub fn visited_pairs(problem: &Problem) -> Result<u64, ProblemError> {
    problem.check()?;
    let tiles = query_tiles::query_tiles(problem, lanes(Isa::best(), problem));
    let pairs = tiles.iter().flatten().map(query_tiles::QueryTile::pairs);
    let heads = problem.batch * problem.kv_heads / tiles.len();
    Ok(pairs.sum::<u64>() * heads as u64)
}

fn lanes(isa: Isa, problem: &Problem) -> usize {
    isa.lanes(problem.group() * problem.q_len.min(problem.block))
}

fn next<'a>(queue: &Mutex<Vec<Item<'a>>>) -> Option<Item<'a>> {
    // If the lock is poisoned, another thread of this scope has panicked: stop.
    queue.lock().ok()?.pop()
}

/// One item for every tile of every kv head of every sequence, with its part of the result.
fn items<'a>(
    problem: &Problem,
    tiles: &'a [Vec<query_tiles::QueryTile>],
    o: &'a mut [f32],
    lse: &'a mut [f32],
) -> Vec<Item<'a>> {
    if problem.q_len == 0 {
        return Vec::new();
    }
    let mut o = o.chunks_exact_mut(problem.q_len * problem.v_head_dim);
    let mut lse = lse.chunks_exact_mut(problem.q_len);
    let mut items = Vec::with_capacity(tiles[0].len() * problem.batch * problem.kv_heads);
    for kv_head in 0..problem.batch * problem.kv_heads {
        let first = items.len();
        let tiles = &tiles[kv_head % tiles.len()];
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
