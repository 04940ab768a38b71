"""Checks and times the kernels of codegen/src/hopper on a Hopper GPU.

Needs torch and, in the folder given, what the generator's test `write_texts` writes: list.jsonl
and for each name in it NAME.cu, or NAME.cubin made from it for sm_90a. Each kernel runs on fixed
and on random shapes (ragged lengths, offsets, strides, batches) against a softmax in f32, twice
with equal bits; then it is timed by events over launches that rotate among inputs.

    python run.py FOLDER [NAME...] [--random N]
"""
import argparse, ctypes as C, json, math, os, random, signal, struct, subprocess, sys
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../attention"))
from kernel import check, cuda, tensor_map

NONE = -(1 << 30)


def load(folder, case):
    path = f"{folder}/{case['name']}.cubin"
    if not os.path.exists(path):
        subprocess.run(["nvcc", "-cubin", "-gencode=arch=compute_90a,code=sm_90a", "-o", path,
                        f"{folder}/{case['name']}.cu"], check=True)
    module, function = C.c_void_p(), C.c_void_p()
    check(cuda.cuModuleLoadData(C.byref(module), open(path, "rb").read()), "cuModuleLoadData")
    check(cuda.cuModuleGetFunction(C.byref(function), module, b"butterfly_attention"), "cuModuleGetFunction")
    check(cuda.cuFuncSetAttribute(function, 8, case["shared"]), "cuFuncSetAttribute")
    return function


def width(blocks):
    return max(1, (blocks - 1).bit_length())


def seen(case, q, kv_len, index):
    """The mask of the keys that the queries at positions q see."""
    k = torch.arange(kv_len, device="cuda")
    mask = k[None] <= q[:, None]
    if case["pattern"] == "window1024":
        mask &= q[:, None] - k[None] < 1024
    if case["pattern"] == "butterfly":
        block = case["block"]
        b, c = q[:, None] // block, k[None] // block
        shift = 1 << (index % width(-(-kv_len // block)))
        mask &= (c == 0) | (c == b) | (c == b - 1) | (c == b - shift)
    return mask


def bands(case, kv_len, index):
    """The band table of `causal & (local(1) | partner(causal_shift) | sink(1))`: row offsets and bands."""
    block, offsets, rows = case["block"], [0], []
    blocks = -(-kv_len // block)
    shift = 1 << (index % width(blocks))
    for b in range(blocks):
        for c in sorted({0, b, max(b - 1, 0)} | ({b - shift} if b >= shift else set())):
            rows.append([c * block, (c + 1) * block, NONE, 1 if c == b else -NONE])
        offsets.append(len(rows))
    return [torch.tensor(x, dtype=torch.int32, device="cuda") for x in (offsets, rows)]


class Launch:
    """Inputs and outputs on the device, and the arguments of a launch."""

    def __init__(self, case, batch, kv_heads, q_len, kv_len, index, tokens_first=False):
        dtype = torch.bfloat16 if case["dtype"] == "bf16" else torch.float16

        def tensor(heads, length, dim):
            if tokens_first:
                return torch.randn(batch, length, heads, dim, device="cuda", dtype=dtype).transpose(1, 2)
            return torch.randn(batch, heads, length, dim, device="cuda", dtype=dtype)

        heads = kv_heads * case["group"]
        self.case, self.index = case, index
        self.q, self.k = tensor(heads, q_len, case["D"]), tensor(kv_heads, kv_len, case["D"])
        self.v, self.o = tensor(kv_heads, kv_len, case["Dv"]), tensor(heads, q_len, case["Dv"])
        self.lse = torch.empty(batch, heads, q_len, device="cuda")
        self.offset = kv_len - q_len
        scale = struct.unpack("I", struct.pack("f", 1 / math.sqrt(case["D"])))[0]
        words = [q_len, kv_len, self.offset, kv_heads, -(-kv_len // case["block"]), index, scale]
        for x in (self.q, self.k, self.v, self.o):
            words += x.stride()[:3]
        words += [kv_len, 0]  # The prompt is the whole sequence; heads share their rows.
        kv_box = (1, 1, case["k_box"], 64)
        maps = [tensor_map(self.q, (1, case["unit_heads"], case["unit_tokens"], 64)),
                tensor_map(self.k, kv_box), tensor_map(self.v, kv_box), tensor_map(self.o, (1, 1, case["unit_tokens"], 64))]
        table = bands(case, kv_len, index) if case["table"] else []
        self.buffers = [self.q, self.k, self.v, self.o, *table, self.lse]
        self.values = maps + [C.c_void_p(x.data_ptr()) for x in self.buffers] + [(C.c_uint32 * 24)(*words, batch)]
        self.arguments = (C.c_void_p * len(self.values))(*(C.addressof(x) for x in self.values))

    def poison(self):
        self.o.fill_(float("nan"))
        self.lse.fill_(float("nan"))

    def run(self, function):
        grid = torch.cuda.get_device_properties(0).multi_processor_count
        stream = C.c_void_p(torch.cuda.current_stream().cuda_stream)
        check(cuda.cuLaunchKernel(function, grid, 1, 1, self.case["threads"], 1, 1, self.case["shared"],
                                  stream, self.arguments, None), "cuLaunchKernel")

    def errors(self, rows=None):
        """Relative error of o and absolute error of lse against attention in f32."""
        rows = torch.arange(self.q.shape[2], device="cuda") if rows is None else rows
        mask = seen(self.case, rows + self.offset, self.k.shape[2], self.index)
        worst = [0.0, 0.0]
        for b in range(self.q.shape[0]):
            k, v = (x[b].float().repeat_interleave(self.case["group"], 0) for x in (self.k, self.v))
            scores = torch.einsum("hqd,hkd->hqk", self.q[b][:, rows].float(), k) / math.sqrt(self.case["D"])
            scores.masked_fill_(~mask[None], float("-inf"))
            o = torch.einsum("hqk,hkd->hqd", torch.softmax(scores, -1), v)
            found = ((self.o[b][:, rows].float() - o).norm() / o.norm()).item()
            found_lse = (self.lse[b][:, rows] - torch.logsumexp(scores, -1)).abs().max().item()
            worst = [max(w, f if f == f else 9.0) for w, f in zip(worst, (found, found_lse))]
        return worst


def time(run, count):
    for i in range(3):
        run(i)
    times = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for i in range(count):
            run(i)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / count)
    return sorted(times)


def lengths(case):
    if case["table"] or "_g" in case["name"] or "_v" in case["name"] or case["dtype"] != "bf16":
        return []
    if case["D"] > 256:
        return [8192]
    if case["pattern"] != "butterfly":
        return [16384]
    return [8192, 32768] + ([131072] if case["D"] == 128 else [])


def run(folder, case, count):
    function = load(folder, case)
    chosen = random.Random(case["name"])
    shapes = [(1, 1, 1024, 1024, 1, False), (2, 2, 1000, 1000, 2, True), (1, 2, 300, 1001, 3, False), (1, 1, 1, 1, 0, False)]
    for _ in range(count):
        kv_len = chosen.randint(1, 1500)
        shapes.append((chosen.randint(1, 3), chosen.randint(1, 3), chosen.randint(1, kv_len), kv_len,
                       chosen.randint(0, 9), chosen.random() < 0.5))
    worst = [0.0, 0.0]
    for shape in shapes:
        launch = Launch(case, *shape)
        launch.poison()
        launch.run(function)
        first = launch.o.clone(), launch.lse.clone()
        launch.poison()
        launch.run(function)
        torch.cuda.synchronize()
        found = launch.errors()
        limit = 0.012 if case["dtype"] == "bf16" else 0.002
        if found[0] > limit or found[1] > 1e-3:
            print("  wrong", case["name"], shape, found, flush=True)
        if not all(torch.equal(a, b) for a, b in zip(first, (launch.o, launch.lse))):
            print("  other bits", case["name"], shape, flush=True)
        worst = [max(pair) for pair in zip(worst, found)]
    line = f"{case['name']:26s} {len(shapes)} shapes, worst {worst[0]:.4f} {worst[1]:.5f}"
    for length in lengths(case):
        launches = [Launch(case, 1, 4, length, length, 3) for _ in range(3 if length < 100000 else 1)]
        times = time(lambda i: launches[i % len(launches)].run(function), 24 if length < 100000 else 6)
        rows = torch.cat([torch.arange(x, x + 40, device="cuda") for x in (0, length // 2 + 24, length - 40)])
        found = launches[0].errors(rows)
        line += f" | {length}: {times[3]:.4f} ms ({times[0]:.4f} to {times[-1]:.4f}) error {found[0]:.4f}"
    print(line, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--random", type=int, default=8)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.zeros(1, device="cuda")
    for case in map(json.loads, open(f"{options.folder}/list.jsonl")):
        if not options.names or case["name"] in options.names:
            signal.alarm(30)  # ends the process if a kernel does not end
            run(options.folder, case, options.random)
    signal.alarm(0)


if __name__ == "__main__":
    main()
