//! The tokens that a calibration reads.
//!
//! In:  a text and a tokenizer, or a seed. Out: windows, at even distances: every second one to choose
//! on, the others to verify.

use super::super::memory::available;
use super::subject::Subject;
use crate::failure::Failure;
use crate::source;
use butterfly_models::Chat;
use std::path::Path;

/// Tokens that are drawn at once.
const DRAWN: usize = 1024;

/// Tokens, and how windows are cut from them.
pub(super) struct Text {
    /// Its file, or that it was drawn.
    pub(super) name: String,
    /// BLAKE3 of the text, or of the tokens that were drawn, in hexadecimal.
    pub(super) digest: String,
    pub(super) tokens: Vec<u32>,
    /// Tokens of a window.
    pub(super) window: usize,
    /// Number of windows that the choice is made on, and of those that it is verified on.
    pub(super) windows: usize,
}

impl Text {
    /// The tokens of a file.
    pub(super) fn read(
        path: &Path,
        chat: &Chat,
        [window, windows]: [usize; 2],
    ) -> Result<Self, Failure> {
        let text = source::read_text(path)?;
        let tokens = chat.encode(&text, false).map_err(Failure::bad)?;
        let needed = 2 * windows * window;
        if tokens.len() < needed {
            let error = format!(
                "has {} tokens, {needed} are needed: {windows} windows of {window} to choose on and as many to verify; give a longer text, or --window {} or less",
                tokens.len(),
                tokens.len() / (2 * windows)
            );
            return Err(Failure::file(path, error));
        }
        Ok(Self {
            name: path.display().to_string(),
            digest: blake3::hash(text.as_bytes()).to_hex().to_string(),
            tokens,
            window,
            windows,
        })
    }

    /// As many tokens of a vocabulary as the windows have, each as likely as any other.
    pub(super) fn drawn(
        seed: u64,
        subject: &Subject,
        [window, windows]: [usize; 2],
    ) -> Result<Self, Failure> {
        let count = 2 * windows * window;
        let bytes = 4 * count as u64;
        if let Some(room) = available().filter(|room| bytes > *room) {
            return Err(Failure::Bad(format!(
                "{count} tokens take {:.1} GB, this machine has {:.1}: give fewer --windows, or a smaller --window",
                bytes as f64 / 1e9,
                room as f64 / 1e9
            )));
        }
        let vocabulary = u64::from(subject.sizes.vocabulary);
        let mut stream = blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .finalize_xof();
        let (mut tokens, mut hasher) = (Vec::with_capacity(count), blake3::Hasher::new());
        let mut bytes = [0; 8 * DRAWN];
        while tokens.len() < count {
            stream.fill(&mut bytes);
            let from = tokens.len();
            let words = bytes.as_chunks::<8>().0.iter().take(count - from);
            tokens.extend(words.map(|word| {
                let product = u128::from(u64::from_le_bytes(*word)) * u128::from(vocabulary);
                #[expect(clippy::cast_possible_truncation, reason = "below the vocabulary")]
                let token = (product >> 64) as u32;
                token
            }));
            let drawn = tokens[from..].iter().flat_map(|token| token.to_le_bytes());
            hasher.update(&drawn.collect::<Vec<u8>>());
        }
        Ok(Self {
            name: format!("random tokens (seed {seed})"),
            digest: hasher.finalize().to_hex().to_string(),
            tokens,
            window,
            windows,
        })
    }

    /// The tokens of window `i` of those that the choice is made on, or that it is verified on.
    pub(super) fn window(&self, i: usize, verify: bool) -> &[u32] {
        let (all, used) = (self.tokens.len() / self.window, 2 * self.windows);
        let at = (2 * i + usize::from(verify)) * all / used;
        &self.tokens[at * self.window..(at + 1) * self.window]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_spread_and_disjoint() {
        for windows in 1..5 {
            for all in 2 * windows..30 {
                let text = Text {
                    name: String::new(),
                    digest: String::new(),
                    tokens: (0..3 * all as u32 + 2).collect(),
                    window: 3,
                    windows,
                };
                let places = (0..2 * windows).map(|i| text.window(i / 2, i % 2 == 1)[0]);
                let places: Vec<u32> = places.collect();
                assert!(places.is_sorted_by(|a, b| a + 3 <= *b), "{places:?}");
            }
        }
    }
}
