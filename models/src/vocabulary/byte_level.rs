//! `gpt2`: byte-pair encoding of bytes, each of which is written as one printable character.
//!
//! A byte that is not in the vocabulary is left out of the tokens, as llama.cpp and transformers
//! do: SmolLM2, for one, lacks bytes of rare characters.

use super::split::Split;
use super::{Vocabulary, merges};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{NormalizerWrapper, Tokenizer};

/// How many words are remembered with their tokens; each takes about half a kilobyte of memory.
const REMEMBERED: usize = 1024;

/// The tokenizer, without added tokens.
pub(super) fn build(vocabulary: &Vocabulary<'_>, split: Split) -> Result<Tokenizer, String> {
    let Some(given) = &vocabulary.merges else {
        return Err(
            "has no `tokenizer.ggml.merges` (strings) in its metadata; convert the model again"
                .into(),
        );
    };
    let ids = vocabulary.ids()?;
    let merges = merges::given(given, &ids)?;
    let model = BPE::builder()
        .vocab_and_merges(ids, merges)
        .cache_capacity(REMEMBERED)
        .ignore_merges(split.keeps_whole())
        .build()
        .map_err(|error| error.to_string())?;
    let mut tokenizer = Tokenizer::new(model);
    if split.composes() {
        tokenizer.with_normalizer(Some(NormalizerWrapper::NFC(NFC)));
    }
    let cuts = split.build().map_err(|error| error.to_string())?;
    tokenizer
        .with_pre_tokenizer(Some(cuts))
        .with_decoder(Some(ByteLevel::new(false, false, false)));
    Ok(tokenizer)
}
