"""Checks and times decode kernels of codegen/src/hopper on a Hopper GPU, with other tunings.

Needs torch and, in the folder given, what the generator's test `write_decode` writes: decode.json
and for each name in it NAME.cu, or NAME.cubin made from it for sm_90a.

    python decode.py FOLDER [NAME...]
"""
import json, os, subprocess, sys
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../attention"))
import reference
from cases import KV_HEADS, LAYER, Q_HEADS, standard
from clock import measure
from kernel import Kernel, Launch

SHAPES = [(1, 8192), (8, 8192), (16, 8192), (32, 1024), (32, 32768), (64, 8192)]


def load(folder, entry):
    path = f"{folder}/{entry['name']}"
    if not os.path.exists(f"{path}.cubin"):
        subprocess.run(["nvcc", "-cubin", "-gencode=arch=compute_90a,code=sm_90a", "-o", f"{path}.cubin",
                        f"{path}.cu"], check=True)
    return Kernel(folder, entry)


def inputs(batch, tokens, head_dim):
    shapes = ((Q_HEADS, 1), (KV_HEADS, tokens), (KV_HEADS, tokens))
    return [torch.randn(batch, h, t, head_dim, device="cuda", dtype=torch.bfloat16) for h, t in shapes]


def main():
    folder, *names = sys.argv[1:]
    torch.zeros(1, device="cuda")
    entries = [e for e in json.load(open(f"{folder}/decode.json")) if not names or e["name"] in names]
    kernels = {entry["name"]: load(folder, entry) for entry in entries}
    for head_dim in sorted({kernel.spec["head_dim"] for kernel in kernels.values()}):
        for batch, tokens in SHAPES:
            size = 4 * batch * KV_HEADS * tokens * head_dim
            sets = [inputs(batch, tokens, head_dim) for _ in range(max(1, min(16, (8 << 30) // size)))]
            runs, errors = {}, {}
            for name, kernel in kernels.items():
                if kernel.spec["head_dim"] != head_dim:
                    continue
                launches = [Launch(kernel, *x, tokens - 1, LAYER) for x in sets]
                launches[0].run()
                at = torch.tensor([tokens - 1], device="cuda")
                errors[name] = reference.error(launches[0].o, launches[0].lse, *sets[0], standard, at, at * 0)
                runs[name] = [launch.run for launch in launches]
            for name, times in measure(runs, 2.0).items():
                wrong = "" if max(errors[name]) < 0.01 else f" WRONG {errors[name]}"
                print(f"B {batch:3} keys {tokens:6} {name:24} {1e3 * times.median:6.2f} us{wrong}", flush=True)


if __name__ == "__main__":
    main()
