//! `llama`: byte-pair encoding of characters as SentencePiece does it, with spaces as `▁`.
//!
//! A character that is not in the vocabulary becomes its bytes, or, without tokens for bytes, the
//! unknown token.

use super::{Vocabulary, merges};
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Prepend, Replace, Sequence};
use tokenizers::{DecoderWrapper, NormalizerWrapper, Tokenizer};

const SPACE: &str = "▁";

/// The tokenizer, without added tokens.
///
/// As in llama.cpp, a space is put before every part of the text that follows an added token, and
/// merges of the file, which some conversions write, go before scores, which they then leave empty.
pub(super) fn build(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, String> {
    let said = |error: tokenizers::Error| error.to_string();
    let ids = vocabulary.ids()?;
    let merges = match &vocabulary.merges {
        Some(given) => merges::given(given, &ids),
        None => merges::of_scores(vocabulary, &ids),
    }?;
    let mut model = BPE::builder()
        .vocab_and_merges(ids, merges)
        // Whole texts would be remembered, as they are not cut into words.
        .cache_capacity(0)
        .byte_fallback(true)
        .fuse_unk(true);
    if let Some(unknown) = vocabulary.special.unknown {
        model = model.unk_token(vocabulary.text(unknown).to_string());
    }
    let mut tokenizer = Tokenizer::new(model.build().map_err(said)?);
    let escape = Replace::new(" ", SPACE).map_err(said)?;
    let unescape = Replace::new(SPACE, " ").map_err(said)?;
    let mut normalizers: Vec<NormalizerWrapper> = vec![escape.into()];
    let mut decoders: Vec<DecoderWrapper> = vec![
        unescape.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if vocabulary.spaced {
        normalizers.insert(0, Prepend::new(SPACE.to_string()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer
        .with_normalizer(Some(Sequence::new(normalizers)))
        .with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}
