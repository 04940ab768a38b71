"""Makes small tokenizers of every kind, to be mutated. They have at most 256 tokens, like the test models.

Needs: pip install tokenizers sentencepiece protobuf. Writes tokenizer_*.json beside this file.
"""

import base64
import json
import tempfile
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

HERE = Path(__file__).parent
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]


def save(name, tokenizer, **changes):
    parsed = json.loads(tokenizer.to_str())
    parsed.update(changes)
    (HERE / f"tokenizer_{name}.json").write_text(json.dumps(parsed, ensure_ascii=False, indent=1) + "\n")


def bpe():
    vocab = {letter: i for i, letter in enumerate(LETTERS + [" ", "th", "the", "an", "and"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("t", "h"), ("th", "e"), ("a", "n"), ("an", "d")]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+|\S+"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    start, end = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> $B:1", special_tokens=[("<s>", start), ("</s>", end)]
    )
    tokenizer.enable_truncation(max_length=16, stride=2)
    tokenizer.enable_padding(length=32, pad_id=0, pad_token="a")
    save("bpe", tokenizer)


def byte_fallback():
    vocab = {f"<0x{byte:02X}>": byte for byte in range(128)}
    vocab |= {"<unk>": 128, "▁": 129, "t": 130, "h": 131, "e": 132, "th": 133, "the": 134, "▁the": 135}
    tokenizer = Tokenizer(models.BPE(
        vocab=vocab, merges=[("t", "h"), ("th", "e"), ("▁", "the")],
        unk_token="<unk>", byte_fallback=True, fuse_unk=True,
    ))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])
    save("byte_fallback", tokenizer)


def charsmap_of(replacements):
    """The precompiled character map that sentencepiece makes of these replacements."""
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.tsv"
        points = lambda text: " ".join(f"{ord(c):04X}" for c in text)
        rules.write_text("".join(f"{points(a)}\t{points(b)}\n" for a, b in replacements.items()))
        text = Path(folder) / "text.txt"
        text.write_text("\n".join(f"the {a} and the {b}" for a in LETTERS for b in LETTERS))
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=f"{folder}/m", vocab_size=40, normalization_rule_tsv=str(rules), minloglevel=2
        )
        model = sentencepiece_model_pb2.ModelProto.FromString(Path(f"{folder}/m.model").read_bytes())
        return model.normalizer_spec.precompiled_charsmap


def unigram():
    pieces = [("<unk>", 0.0), ("▁", -2.0)] + [(letter, -3.0 - i / 10) for i, letter in enumerate(LETTERS)]
    tokenizer = Tokenizer(models.Unigram(pieces + [("▁the", -1.5), ("▁and", -1.7)], unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    charsmap = base64.b64encode(charsmap_of({"Å": "å", "ﬁ": "fi"})).decode()
    save("unigram", tokenizer, normalizer={"type": "Precompiled", "precompiled_charsmap": charsmap})


def wordpiece():
    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "the", "and", "##s"] + LETTERS + ["##" + letter for letter in LETTERS]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.decoder = decoders.WordPiece()
    save("wordpiece", tokenizer)


def wordlevel():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "and": 2, ".": 3, "1": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    )
    save("wordlevel", tokenizer)


bpe()
byte_fallback()
unigram()
wordpiece()
wordlevel()
