"""Attention on a Hopper GPU: ours and the peers in one run.

    python bench/attention/run.py [--butterfly PATH] [--out DIR] [--only TEXT]

Needs torch and the `butterfly` binary (`cargo build --release -p butterfly-cli`) with NVRTC.
Every kernel comes from artifacts that `butterfly compile` makes; `butterfly explain` gives what
the compiler counts and predicts. Outputs are compared with f32 attention on the device. Writes
attention_DEVICE.json to DIR, and from it attention_DEVICE.md and .svg (`report.py`).
"""
import argparse, gc, json, os, subprocess, tempfile
import torch

import peers, reference, report
from cases import DECODES, KV_HEADS, LAYER, Q_HEADS, ROWS, STANDARD
from clock import measure
from kernel import Launch, kernels

TARGETS = ("cuda:sm_90a", "cuda:sm_90")
HEADS = (Q_HEADS, KV_HEADS)
# The inputs that take turns should have about this size together: more than the L2 cache holds.
ROTATE_BYTES = 256 << 20


class Butterfly:
    """Runs the `butterfly` command, with a config for each head size."""

    def __init__(self, binary, folder):
        self.binary, self.folder, self.made = binary, folder, {}
        self.card = "h200" if torch.cuda.get_device_name() == "NVIDIA H200" else "h100"

    def config(self, head_dim, heads):
        q_heads, kv_heads = heads
        path = f"{self.folder}/d{head_dim}_{q_heads}_{kv_heads}.json"
        config = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
            "num_attention_heads": q_heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
            "num_hidden_layers": LAYER + 1, "intermediate_size": 4096, "vocab_size": 1024,
            "rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 1 << 20,
            "torch_dtype": "bfloat16",
        }
        with open(path, "w") as file:
            json.dump(config, file)
        return path

    def call(self, *arguments):
        done = subprocess.run([self.binary, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"butterfly {arguments[0]}: {done.stderr}")
        return done.stdout

    def kernels(self, pattern, head_dim, heads=HEADS):
        key = pattern.text, head_dim, heads
        if key not in self.made:
            folder = f"{self.folder}/{len(self.made)}"
            self.call("compile", self.config(head_dim, heads), "--pattern", pattern.text, "--target",
                      ",".join(TARGETS), "--dtype", "bf16", "-o", folder)
            self.made[key] = kernels(folder)
        return self.made[key]

    def explain(self, pattern, head_dim, tokens, phase, batch=1, heads=HEADS):
        text = self.call("explain", self.config(head_dim, heads), "--pattern", pattern.text, "--target",
                         ",".join(TARGETS), "--dtype", "bf16", "--layer", LAYER, "--seq-len", tokens,
                         "--phase", phase, "--batch", batch, "--capacity", tokens, "--card", self.card, "--json")
        told = json.loads(text)
        return told["mean_degree"], {on["target"]: on for on in told["targets"]}


def tensors(batch, tokens, head_dim, q_len=None, heads=HEADS):
    q_heads, kv_heads = heads
    shapes = ((q_heads, q_len or tokens), (kv_heads, tokens), (kv_heads, tokens))
    return [torch.randn(batch, h, t, head_dim, device="cuda", dtype=torch.bfloat16) for h, t in shapes]


def summary(times, told=None):
    row = {"median": times.median, "least": times.least, "most": times.most, "rounds": times.rounds}
    if told:
        cost = told["cost"]
        row |= {
            "tile_tflops": cost["tile_flop"] / times.median / 1e9,
            "exact_tflops": cost["exact_flop"] / times.median / 1e9,
            "predicted": told["predicted_ms"],
            "bytes": cost["bytes"],
        }
    return row


OURS = {"butterfly": "cuda:sm_90a", "portable": "cuda:sm_90"}


def prefill(butterfly, rows):
    """Measures the rows of one shape; all contestants of all rows take turns."""
    first = rows[0]
    new = lambda: tensors(first.batch, first.tokens, first.head_dim, heads=first.heads)
    inputs = [new()]
    size = sum(x.numel() * 2 for x in inputs[0])
    inputs += [new() for _ in range(min(3, ROTATE_BYTES // size))]
    queries = reference.some_queries(first.tokens)
    runs, told, results = {}, {}, []
    for i, row in enumerate(rows):
        degree, told[i] = butterfly.explain(row.pattern, row.head_dim, row.tokens, "prefill", row.batch, row.heads)
        made = butterfly.kernels(row.pattern, row.head_dim, row.heads)
        launches = {name: [Launch(made[target, "prefill"], *x, 0, LAYER) for x in inputs]
                    for name, target in OURS.items() if name == "butterfly" or row.group == "prefill"}
        runs |= {(i, name): [launch.run for launch in many] for name, many in launches.items()}
        if row.group != "degree":
            runs[i, "flex"] = peers.flex_calls(inputs, row.pattern.sees)
        if row.pattern.name == "dense":
            runs |= {(i, name): peers.dense_calls(inputs, name) for name in ("cudnn", "fa2")}
        errors = {}
        for name in [name for at, name in runs if at == i]:
            runs[i, name][0]()
            ours = launches.get(name)
            o, lse = (ours[0].o, ours[0].lse) if ours else (runs[i, name][0](), None)
            found = reference.error(o, lse, *inputs[0], row.pattern.sees, queries, queries)
            errors[name] = {"error": found[0]} | ({"lse_error": found[1]} if ours else {})
        results.append({"pattern": row.pattern.name, "tokens": row.tokens, "head_dim": row.head_dim,
                        "group": row.group, "heads": row.heads, "batch": row.batch, "degree": degree, "bar": row.bar, "floor": row.floor,
                        "ratio": row.ratio, "times": errors})
    for (i, name), times in measure(runs).items():
        results[i]["times"][name] |= summary(times, told[i][OURS.get(name, OURS["butterfly"])])
    return results


def decode(butterfly, rows):
    [row] = rows
    head_dim = 128
    size = 2 * row.batch * KV_HEADS * row.tokens * head_dim * 2
    sets = max(1, min(16, (32 << 30) // size))
    inputs = [tensors(row.batch, row.tokens, head_dim, 1) for _ in range(sets)]
    _, told = butterfly.explain(STANDARD, head_dim, row.tokens, "decode", row.batch)
    made = butterfly.kernels(STANDARD, head_dim)
    result = {"tokens": row.tokens, "batch": row.batch, "bar": row.bar, "times": {}}
    # If there is memory for few inputs only, queries take turns at positions far apart instead. Of
    # the keys, these share only the sink block.
    step = 32 * 128
    places = [row.tokens - 1 - i * step for i in range(min(16 // sets or 1, row.tokens // step or 1))]
    runs = {}
    for name, target in OURS.items():
        if name == "portable" and inputs[0][1].numel() >= 1 << 32:
            continue  # This kernel counts elements in 32 bits; the command refuses such a launch.
        launches = [Launch(made[target, "decode"], *x, place, LAYER) for place in places for x in inputs]
        runs[name] = [launch.run for launch in launches]
        runs[name][0]()
        found = reference.error(launches[0].o, launches[0].lse, *inputs[0], STANDARD.sees,
                                torch.tensor([row.tokens - 1], device="cuda"),
                                torch.zeros(1, dtype=torch.long, device="cuda"))
        result["times"][name] = dict(zip(("error", "lse_error"), found))
    if row.batch == 1:
        runs |= {name: peers.dense_calls(inputs[:4], name) for name in ("cudnn", "fa2")}
    for name, times in measure(runs, target_ms=2.0).items():
        result["times"].setdefault(name, {})
        result["times"][name] |= summary(times, told.get(OURS.get(name)))
    return [result]


def shapes(options):
    """The groups of rows that are measured together, by name."""
    groups = {}
    for row in ROWS:
        name = f"{row.group} {row.tokens} D {row.head_dim}"
        if row.group in ("heads", "batch"):
            name += f" Hq {row.heads[0]} Hkv {row.heads[1]} B {row.batch}"
        groups.setdefault(name, (prefill, []))[1].append(row)
    for row in DECODES:
        groups[f"decode {row.tokens} B {row.batch}"] = decode, [row]
    return {name: group for name, group in groups.items() if options.only in name}


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--butterfly", default=f"{here}/../../target/release/butterfly")
    parser.add_argument("--out", default=f"{here}/../results")
    parser.add_argument("--only", default="", help="rows whose name has this in it, as `prefill 8192` or `decode`")
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.cuda.get_device_name()
    results = {"device": device, "torch": torch.__version__} | peers.machine(measure)
    results |= {"prefill": [], "decode": []}
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        butterfly = Butterfly(options.butterfly, folder)
        for name, (run, rows) in shapes(options).items():
            # Else torch stops compiling FlexAttention after a few shapes, and computes it densely.
            torch._dynamo.reset()
            found = run(butterfly, rows)
            results[run.__name__] += found
            for result in found:
                told = {k: (round(t["median"], 5), round(t.get("error", 0), 4)) for k, t in result["times"].items()}
                print(name, result.get("pattern", ""), told, flush=True)
            gc.collect()
            torch.cuda.empty_cache()
    path = f"{options.out}/attention_{device.replace(' ', '_').lower()}.json"
    os.makedirs(options.out, exist_ok=True)
    with open(path, "w") as file:
        json.dump(results, file, indent=1)
    report.write(path)


if __name__ == "__main__":
    main()
