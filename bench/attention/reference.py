"""Attention in f32 on the device, over some of the queries."""
import math
import torch


def some_queries(tokens):
    """Positions of the first, some middle and the last queries."""
    parts = [range(0, 40), range(tokens // 2 - 20, tokens // 2 + 20), range(tokens - 40, tokens)]
    return torch.tensor(sorted({t for part in parts for t in part if 0 <= t < tokens}), device="cuda")


def error(o, lse, q, k, v, sees, positions, rows):
    """The worst relative error of o (by norms) and absolute error of lse, of the queries `rows` at `positions`."""
    torch.backends.cuda.matmul.allow_tf32 = False
    mask = sees(positions[:, None], torch.arange(k.shape[2], device="cuda")[None])
    group = q.shape[1] // k.shape[1]
    worst = [0.0, 0.0]
    for b in range(0, q.shape[0], max(1, q.shape[0] // 4)):
        for head in range(q.shape[1]):
            keys, values = (x[b, head // group].float() for x in (k, v))
            scores = q[b, head][rows].float() @ keys.T / math.sqrt(q.shape[3])
            scores.masked_fill_(~mask, float("-inf"))
            wanted = torch.softmax(scores, -1) @ values
            found = ((o[b, head][rows].float() - wanted).norm() / wanted.norm()).item()
            found_lse = (lse[b, head][rows] - torch.logsumexp(scores, -1)).abs().max().item() if lse is not None else 0.0
            # A NaN counts as an infinite error.
            worst = [max(w, f) if f == f else float("inf") for w, f in zip(worst, (found, found_lse))]
    return worst
