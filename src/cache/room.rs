//! How much memory a cache needs, and when it drops tokens.

use super::KvCache;
use burn::prelude::*;

impl<B: Backend> KvCache<B> {
    /// What has to be done to append `tokens` tokens: the number of tokens to drop from the front,
    /// and the room that is needed then.
    pub(super) fn room_for(&self, tokens: usize) -> (usize, usize) {
        let needed = self.kept().saturating_add(tokens);
        if needed <= self.room() {
            return (0, self.room());
        }
        let drop = match self.window {
            None => 0,
            // The first new token of the shortest sequence sees `window - 1` of those before it.
            Some(window) => {
                let shortest = self.kept() - self.lags.most();
                let unseen = shortest.saturating_sub(window - 1);
                unseen - unseen % self.block
            }
        };
        let (kept, needed) = (self.kept() - drop, needed - drop);
        if needed <= self.room() {
            return (drop, self.room());
        }
        // Grows by half at least, so that many small appends copy each token only a few times.
        let grown = needed.max(kept + kept / 2).max(self.capacity);
        let room = match self.window {
            None => whole_blocks(grown, self.block),
            Some(window) => {
                let tokens = tokens + self.lags.most();
                whole_blocks(grown, self.block).min(most_kept(window, tokens, self.block))
            }
        };
        (drop, room)
    }
}

/// The largest number of tokens of a sequence that a cache with a window keeps when chunks of at
/// most `chunk` tokens are appended, in whole blocks of `block` tokens: what the first of a chunk
/// sees, the chunk, and less than a block that is only dropped whole. By what the shortest of several sequences is behind
/// the longest, `chunk` has to be larger.
pub fn kept_at_most(window: u64, chunk: u64, block: u64) -> u64 {
    let block = block.max(1);
    let tokens = (window.max(1) - 1).saturating_add(chunk.max(1));
    let tokens = tokens.saturating_add(block - 1);
    tokens.checked_next_multiple_of(block).unwrap_or(tokens)
}

/// [`kept_at_most`] of sizes in memory.
fn most_kept(window: usize, chunk: usize, block: usize) -> usize {
    let [window, chunk, block] = [window, chunk, block].map(|n| n as u64);
    usize::try_from(kept_at_most(window, chunk, block)).unwrap_or(usize::MAX)
}

/// The smallest whole number of blocks for `tokens` tokens, and for at least one, in tokens.
pub(super) fn whole_blocks(tokens: usize, block: usize) -> usize {
    let tokens = tokens.max(1);
    tokens.checked_next_multiple_of(block).unwrap_or(tokens)
}
