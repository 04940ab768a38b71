"""Products in FP8 on a Hopper GPU: ours and cuBLAS's in one run, with errors against f64.

    python bench/products/run.py [--butterfly PATH] [--out FILE]

Needs torch; the `butterfly` binary (`cargo build --release -p butterfly-cli`) makes the kernels, with NVRTC. Both factors
are in e4m3: rows of x with a power of two for every 128 elements, weights with a factor for every square of 128 by 128.
cuBLAS is given the same by `torch._scaled_mm`, and, without that, one factor for each tensor, and bf16. Of experts, pairs
are sorted already, and each has an expert at random. Writes Markdown.
"""
import argparse, ctypes as C, json, os, subprocess, sys, tempfile
import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../attention"))
from clock import measure
from kernel import check, cuda, tensor_map

PAIRS, ROWS, BOX, GROUP = 128, 128, 64, 128
TARGETS = {"dense": 1100, "experts": 1000}
# Rows, products of a row, elements of a row, and whether silu of as many others multiplies them.
DENSE = [(8192, 4096, 4096, False), (8192, 12288, 4096, True), (8192, 4096, 12288, False), (2048, 12288, 4096, False)]
# Pairs, experts, and the same: Qwen3.5-35B-A3B and GLM-4.7-Flash, 8192 tokens.
EXPERTS = [(65536, 256, 512, 2048, True), (65536, 256, 2048, 512, False), (32768, 64, 1536, 2048, True),
           (32768, 64, 2048, 1536, False)]
CONFIGS = ["qwen3.5-9b", "qwen3.5-35b-a3b", "glm-4.7-flash"]


class Shape(C.Structure):
    _fields_ = [(name, C.c_int) for name in "rows experts pairs tiles column width gates scattered".split()]


def kernels(butterfly, folder):
    """The kernels for quantised rows by the elements of a row."""
    found = {}
    for name in CONFIGS:
        config = json.load(open(f"tests/fixtures/configs/{name}.json"))
        config["quantization_config"] = {"quant_method": "fp8"}
        path = f"{folder}/{name}.json"
        json.dump(config, open(path, "w"))
        subprocess.run([butterfly, "compile", path, "--pattern", "block 128 causal & window(1024)", "--target",
                        "cuda:sm_90a", "--dtype", "bf16", "-o", f"{folder}/{name}"], check=True, capture_output=True)
        for entry in json.load(open(f"{folder}/{name}/manifest.json"))["grouped"]:
            grouped = entry["grouped"]
            if not grouped.get("quantised"):
                continue
            path = next(file["path"] for file in entry["files"] if file["path"].endswith(".cubin"))
            module, function = C.c_void_p(), C.c_void_p()
            data = open(f"{folder}/{name}/{path}", "rb").read()
            check(cuda.cuModuleLoadData(C.byref(module), data), "cuModuleLoadData")
            stage = grouped["quantised"]
            check(cuda.cuModuleGetFunction(C.byref(function), module, stage["entry"].encode()), "cuModuleGetFunction")
            check(cuda.cuFuncSetAttribute(function, 8, stage["shared_bytes"]), "cuFuncSetAttribute")
            scales = grouped["format"]["float8"]["scales"]
            found[grouped["columns"]] = (function, stage, scales)
    return found


def quantised(x):
    """Rows in e4m3, and their factors [groups, rows]."""
    groups = x.float().view(x.shape[0], -1, GROUP)
    factors = torch.exp2(torch.ceil(torch.log2(groups.abs().amax(-1).clamp(min=2**-60) / 448)))
    return (groups / factors[..., None]).to(torch.float8_e4m3fn).view(x.shape), factors.t().contiguous()


def squares(w, dtype):
    """A weight in e4m3, and the factors of its squares."""
    parts = w.float().view(w.shape[0] // GROUP, GROUP, -1, GROUP)
    factors = (parts.abs().amax((1, 3)) / 448).to(dtype)
    return (parts / factors.float()[:, None, :, None]).to(torch.float8_e4m3fn).view(w.shape), factors


def lists(ids, count):
    """Where the pairs of each expert begin, and tiles, for ids in order."""
    own = torch.bincount(ids, minlength=count)
    offsets = torch.zeros(count + 1, dtype=torch.int32, device="cuda")
    offsets[1:] = own.cumsum(0)
    tiles = [(e, i) for e, n in enumerate(own.tolist()) for i in range(-(-n // PAIRS))]
    tiles += [(-1, 0)] * (len(ids) // PAIRS + count - len(tiles))
    return offsets, torch.tensor(tiles, dtype=torch.int32, device="cuda")


class Product:
    """Random factors, and one launch."""

    def __init__(self, kernel, pairs, experts, n, k, gated):
        (self.function, self.stage, scales), self.gated, self.n = kernel, gated, n
        own = 2 * n if gated else n
        self.x, self.factors = quantised(torch.randn(pairs, k, device="cuda").bfloat16())
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[scales]
        self.w, self.scales = squares(torch.randn(max(experts, 1) * own, k, device="cuda") * 0.05, dtype)
        self.y = torch.full((pairs, n), float("nan"), device="cuda", dtype=torch.bfloat16)
        tiles = -(-pairs // PAIRS)
        order = offsets = listed = self.y
        if experts:
            ids = torch.randint(0, experts, (pairs,), device="cuda").sort().values
            offsets, listed = lists(ids, experts)
            order, tiles = torch.arange(pairs, dtype=torch.int32, device="cuda"), len(listed)
        self.offsets, self.kept = offsets, (order, listed)
        halves = lambda x: x.view(torch.bfloat16)[None, None]
        maps = [tensor_map(halves(x), (1, 1, BOX, GROUP // 2)) for x in (self.x, self.w, self.w)]
        buffers = [self.x, self.w, self.w, self.factors, self.scales, self.scales, order, offsets, listed, self.y]
        self.values = maps + [C.c_void_p(x.data_ptr()) for x in buffers]
        self.values.append(Shape(n, experts, pairs, tiles, 0, n, int(gated), 0))
        self.grid = min(132, tiles * -(-n // (ROWS // 2 if gated else ROWS)))
        self.flop = 2 * pairs * own * k

    def run(self):
        arguments = (C.c_void_p * len(self.values))(*(C.addressof(x) for x in self.values))
        stream = C.c_void_p(torch.cuda.current_stream().cuda_stream)
        check(cuda.cuLaunchKernel(self.function, self.grid, 1, 1, self.stage["threads"], 1, 1, self.stage["shared_bytes"],
                                  stream, arguments, None), "cuLaunchKernel")

    def error(self, experts):
        """How far results are off, as a share of their length, in f64: of some rows."""
        self.run()
        wide = lambda x, factors, rows: x.double() * factors.double().repeat_interleave(rows, 0)[: x.shape[0]].repeat_interleave(GROUP, 1)
        offsets = self.offsets.tolist() if experts else [0, min(self.x.shape[0], 1024)]
        own = self.w.shape[0] // max(experts, 1)
        off = length = 0.0
        for e, (start, end) in enumerate(zip(offsets, offsets[1:])):
            if e % 16 or start == end:
                continue
            x = wide(self.x[start:end], self.factors.t()[start:end], 1)
            rows = slice(e * own, (e + 1) * own)
            want = x @ wide(self.w[rows], self.scales[e * own // GROUP: (e + 1) * own // GROUP], GROUP).t()
            if self.gated:
                want = torch.nn.functional.silu(want[:, : self.n]) * want[:, self.n:]
            off += (self.y[start:end].double() - want).square().sum().item()
            length += want.square().sum().item()
        return (off / length) ** 0.5

    def peers(self):
        """cuBLAS with the same factors, with one for each tensor, and in bf16; what torch does not offer is left out."""
        one = torch.ones((), device="cuda")
        x, w = self.x.float().bfloat16(), self.w.float().bfloat16()
        scaled = lambda a, b: torch._scaled_mm(self.x, self.w.t(), scale_a=a, scale_b=b, out_dtype=torch.bfloat16)
        calls = {"squares": lambda: scaled(self.factors.t(), self.scales.float().t()), "tensors": lambda: scaled(one, one),
                 "bf16": lambda: x @ w.t()}
        for name in list(calls):
            try:
                calls[name]()
            except RuntimeError as error:
                print(f"{name}: {str(error)[:200]}", file=sys.stderr)
                del calls[name]
        return calls


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--butterfly", default="target/release/butterfly")
    parser.add_argument("--out", default="-")
    options = parser.parse_args()
    # Makes the context that kernels are loaded into.
    torch.zeros(1, device="cuda")
    with tempfile.TemporaryDirectory() as folder:
        made = kernels(options.butterfly, folder)
    text = [f"{torch.cuda.get_device_name()}: products in FP8, TFLOP/s; medians of rounds in which all take turns. Errors "
            "are shares of the length of results, which are rounded to bf16.", "",
            "| experts | rows | products | elements | gates | ours | cuBLAS, squares | cuBLAS, tensors | cuBLAS, bf16 | error |",
            "|---|---|---|---|---|---|---|---|---|---|"]
    missed = []
    for pairs, experts, n, k, gated in [(m, 0, n, k, gated) for m, n, k, gated in DENSE] + EXPERTS:
        product = Product(made[k], pairs, experts, n, k, gated)
        error = product.error(experts)
        calls = {"ours": [product.run]} | ({} if experts else {name: [call] for name, call in product.peers().items()})
        rates = {name: product.flop / time.median / 1e9 for name, time in measure(calls, 20).items()}
        target = TARGETS["experts" if experts else "dense"]
        if rates["ours"] < target:
            missed.append(f"{pairs} x {k} x {n}: {rates['ours']:.0f} of {target}")
        cells = [f"{rates[name]:.0f}" if name in rates else "" for name in ("ours", "squares", "tensors", "bf16")]
        text.append(f"| {experts or ''} | {pairs} | {n} | {k} | {'yes' if gated else ''} | {' | '.join(cells)} | {error:.1e} |")
    text = "\n".join(text) + "\n"
    print(text)
    if options.out != "-":
        open(options.out, "w").write(text)
    if missed:
        raise SystemExit("missed: " + "; ".join(missed))


main()
