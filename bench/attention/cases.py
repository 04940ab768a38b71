"""What is measured: rows of patterns, shapes and the figures they have to meet.

A pattern is its text for `butterfly compile`, and a predicate in torch, written apart from it,
that the reference and FlexAttention use: of query and key positions, the block size and the
stage of the layer.
"""
from dataclasses import dataclass, field

BLOCK = 128
Q_HEADS, KV_HEADS = 16, 4
# The index of the layer that is measured, and so its stage.
LAYER = 3


def standard(q, k):
    b, c = q // BLOCK, k // BLOCK
    return (q >= k) & ((c == b) | (c == b - 1) | (c == b - (1 << LAYER)) | (c == 0))


def window(tokens):
    return lambda q, k: (q >= k) & (q - k < tokens)


def causal(q, k):
    return q >= k


def local(blocks):
    return lambda q, k: (q >= k) & (q // BLOCK - k // BLOCK <= blocks)


@dataclass(frozen=True)
class Pattern:
    name: str
    text: str
    sees: object = field(compare=False)


STANDARD = Pattern("butterfly", "causal & (local(1) | partner(causal_shift) | sink(1))", standard)
WINDOW = Pattern("window 1024", "window(1024)", window(1024))
DENSE = Pattern("dense", "causal & all", causal)
# Dense attention, but made of the bands of a sparse pattern.
COVER = Pattern("dense by bands", "causal & (local(1) | partner(causal_shift) | sink(128))", causal)


def degree(blocks):
    return Pattern(f"degree {blocks}", f"causal & local({blocks - 1})", local(blocks - 1))


@dataclass(frozen=True)
class Row:
    """A prefill of `tokens` tokens of each of `batch` sequences; `heads` are Hq and Hkv, `bar` and `floor` are in ms,
    `ratio` is the least speed-up over FlexAttention."""

    pattern: Pattern
    tokens: int
    head_dim: int
    bar: float | None = None
    floor: float | None = None
    ratio: float | None = None
    group: str = "prefill"
    heads: tuple = (Q_HEADS, KV_HEADS)
    batch: int = 1


ROWS = [
    Row(STANDARD, 8192, 128, 0.075, 0.055, 1.5),
    Row(STANDARD, 32768, 128, 0.28, 0.21, 1.7),
    Row(STANDARD, 131072, 128, 1.10, 0.84, 1.7),
    Row(STANDARD, 32768, 64, 0.16, 0.12, 1.5),
    Row(STANDARD, 32768, 256, 0.60, 0.44, 1.7),
    Row(WINDOW, 16384, 128, 0.30, 0.23, 1.5),
    Row(DENSE, 16384, 128, 2.1, 1.8),
    Row(COVER, 16384, 128),
] + [Row(degree(d), 65536, 128, group="degree") for d in (2, 4, 8, 16, 32, 64)] + [
    Row(STANDARD, 32768, head_dim, ratio=2.2, group="heads", heads=heads)
    for heads in ((16, 16), (16, 8), (9, 3)) for head_dim in (64, 128)
] + [
    Row(STANDARD, tokens, 128, ratio=2.2, group="batch", batch=batch)
    for batch, tokens in ((4, 8192), (16, 4096), (64, 2048))
]


@dataclass(frozen=True)
class Decode:
    """One query at the end of `tokens` keys of each of `batch` sequences; `bar` in µs."""

    tokens: int
    batch: int
    bar: float | None = None


DECODES = [Decode(1 << n, batch, 8.0 if batch == 1 else None)
           for batch in (1, 32) for n in (10, 13, 15, 17, 20)]
