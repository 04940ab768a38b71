"""Heads that differ, in one launch, against the same heads launched apart; on a Hopper GPU.

    python bench/attention/heads.py [--butterfly PATH] [--out FILE]

Needs torch and the `butterfly` binary with NVRTC. Writes a table in Markdown.
"""
import argparse, itertools, tempfile
import torch

from cases import DENSE, KV_HEADS, Q_HEADS, Pattern
from clock import measure
from kernel import Launch
from run import Butterfly

HEAD_DIM, LAYER, GROUP = 128, 0, Q_HEADS // KV_HEADS
LENGTHS = (8192, 32768, 131072)
NEAR = "window(1024) | sink(1)"
SPARSE = Pattern("sparse", f"causal & ({NEAR})", None)
UNIFORM = Pattern("uniform", f"causal & per_head {{ 0, 1 => {NEAR}; else => {NEAR} }}", None)
DENSE_HEADS = ((0,), (1, 3), (0, 1, 2))


def mixed(heads):
    named = ", ".join(map(str, heads))
    return Pattern(f"dense {named}", f"causal & per_head {{ {named} => all; else => {NEAR} }}", None)


def inputs(tokens):
    shapes = (Q_HEADS, KV_HEADS, KV_HEADS)
    return [torch.randn(1, h, tokens, HEAD_DIM, device="cuda", dtype=torch.bfloat16) for h in shapes]


def of_heads(x, heads):
    """q, k and v of some kv heads."""
    queries = [GROUP * head + i for head in heads for i in range(GROUP)]
    return [x[0][:, queries].contiguous(), *(t[:, list(heads)].contiguous() for t in x[1:])]


def rows(butterfly, tokens):
    sets = [inputs(tokens) for _ in range(2)]
    launch = lambda pattern, x: Launch(butterfly.kernels(pattern, HEAD_DIM)["cuda:sm_90a", "prefill"], *x, 0, LAYER)
    runs = {pattern.name: [launch(pattern, x).run for x in sets] for pattern in (SPARSE, UNIFORM, DENSE)}
    for heads in DENSE_HEADS:
        others = [head for head in range(KV_HEADS) if head not in heads]
        whole = [launch(mixed(heads), x) for x in sets]
        runs[heads] = [one.run for one in whole]
        parts = {part: [launch(pattern, of_heads(x, of)) for x in sets]
                 for part, pattern, of in (("dense", DENSE, heads), ("sparse", SPARSE, others))}
        for part, launches in parts.items():
            runs[heads, part] = [one.run for one in launches]
        # The same heads give the same output, however they are launched.
        whole[0].run()
        for part, of in (("dense", heads), ("sparse", others)):
            parts[part][0].run()
            queries = [GROUP * head + i for head in of for i in range(GROUP)]
            far = (whole[0].o[:, queries].float() - parts[part][0].o.float()).abs().max().item()
            assert far < 1e-2, (heads, part, far)
    times = {name: time.median for name, time in measure(runs).items()}
    yield f"| {tokens} | uniform `per_head` | {times['uniform']:.4f} | {times['sparse']:.4f} | {times['uniform'] / times['sparse']:.3f} |"
    for heads in DENSE_HEADS:
        apart = times[heads, "dense"] + times[heads, "sparse"]
        yield (f"| {tokens} | {len(heads)} dense, {KV_HEADS - len(heads)} sparse | {times[heads]:.4f} "
               f"| {times[heads, 'dense']:.4f} + {times[heads, 'sparse']:.4f} | {times[heads] / apart:.3f} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--butterfly", default="target/release/butterfly")
    parser.add_argument("--out")
    options = parser.parse_args()
    text = [f"{torch.cuda.get_device_name()}: {Q_HEADS} q heads, {KV_HEADS} kv heads, head size {HEAD_DIM}, bf16, "
            f"blocks of 128; sparse is `{SPARSE.text}`. Medians in ms.", "",
            "| tokens | heads | one launch | apart | ratio |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        butterfly = Butterfly(options.butterfly, folder)
        text += itertools.chain.from_iterable(rows(butterfly, tokens) for tokens in LENGTHS)
    print("\n".join(text))
    if options.out:
        with open(options.out, "w") as file:
            file.write("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
