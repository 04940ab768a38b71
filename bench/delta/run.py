"""The gated delta rule on a Hopper GPU: ours and flash-linear-attention in one run.

    python bench/delta/run.py [--butterfly PATH] [--out FILE]

Needs torch, and for the peer flash-linear-attention; the `butterfly` binary (`cargo build --release -p butterfly-cli`)
makes the kernels, with NVRTC. Both are given convolved and normalised q and k, v, decays and betas, and a state; the
kernels before and after that are timed beside. Outputs are compared with the rule itself in f64. Writes Markdown.
"""
import argparse, ctypes as C, json, math, os, subprocess, sys, tempfile
import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../attention"))
from clock import captured, replay
from kernel import check, cuda, tensor_map

K_HEADS, V_HEADS, DIM, TAPS, CHUNK = 16, 32, 128, 4, 64
CHANNELS = (2 * K_HEADS + V_HEADS) * DIM
WIDTH = CHANNELS + V_HEADS * DIM + 2 * V_HEADS
CONFIG = "tests/fixtures/configs/qwen3.5-9b.json"
BARS = {8192: 0.28, 32768: 0.88}


class Shape(C.Structure):
    _fields_ = [("row_batch", C.c_longlong), ("tokens", C.c_int), ("chunks", C.c_int), ("row_token", C.c_int),
                ("epsilon", C.c_float)]


class Rule:
    """The kernels of an artifact folder."""

    def __init__(self, folder):
        entries = json.load(open(f"{folder}/manifest.json"))["delta_rules"]
        entry = next(e for e in entries if not e["rule"]["tiled"] and e["rule"]["dtype"] == "bf16")
        path = next(file["path"] for file in entry["files"] if file["path"].endswith(".cubin"))
        module = C.c_void_p()
        check(cuda.cuModuleLoadData(C.byref(module), open(f"{folder}/{path}", "rb").read()), "cuModuleLoadData")
        self.stages = {name: entry["rule"][name] for name in ("prepare", "chunk", "walk", "finish")}
        self.functions = {}
        for name, stage in self.stages.items():
            function = self.functions[name] = C.c_void_p()
            check(cuda.cuModuleGetFunction(C.byref(function), module, stage["entry"].encode()), "cuModuleGetFunction")
            check(cuda.cuFuncSetAttribute(function, 8, stage["shared_bytes"]), "cuFuncSetAttribute")


class Call:
    """One sequence: random inputs, and the arguments of each kernel."""

    def __init__(self, rule, tokens, slow):
        self.rule, self.tokens = rule, tokens
        make = lambda *shape: torch.randn(*shape, device="cuda")
        nan = lambda *shape, dtype=torch.bfloat16: torch.full(shape, float("nan"), device="cuda", dtype=dtype)
        chunks = -(-tokens // CHUNK)
        self.rows = make(1, tokens, WIDTH).bfloat16()
        self.convolution, self.norm = 0.5 * make(TAPS, CHANNELS), 1 + 0.1 * make(DIM)
        self.decays = -torch.rand(V_HEADS, device="cuda") * (0.02 if slow else 2.0)
        self.biases, self.last = make(V_HEADS), make(1, TAPS - 1, CHANNELS).bfloat16()
        self.state, self.new_state = 0.1 * make(1, V_HEADS, DIM, DIM), nan(1, V_HEADS, DIM, DIM, dtype=torch.float32)
        self.mixed, self.kept, self.out = nan(1, tokens, CHANNELS), torch.empty_like(self.last), nan(1, tokens, V_HEADS * DIM)
        self.gates = nan(2, 1, V_HEADS, tokens, dtype=torch.float32)
        self.solved, self.scores = nan(1, V_HEADS, chunks * CHUNK, CHUNK), nan(1, V_HEADS, chunks * CHUNK, CHUNK)
        self.sums = nan(1, V_HEADS, chunks, CHUNK, dtype=torch.float32)
        q, k, v = self.heads()
        box = (1, 1, CHUNK, 64)
        maps = lambda *tensors: [tensor_map(x, box) for x in tensors]
        out = self.out.view(1, tokens, V_HEADS, DIM).transpose(1, 2)
        shape = Shape(tokens * WIDTH, tokens, chunks, WIDTH, 1e-6)
        pointers = lambda *tensors: [C.c_void_p(x.data_ptr()) for x in tensors]
        t = self
        self.grids = {
            "prepare": (-(-tokens // 16), -(-CHANNELS // 1024) + 1, 1), "chunk": (chunks, K_HEADS, 1),
            "walk": (2, V_HEADS, 1), "finish": (-(-tokens // 4), -(-V_HEADS * DIM // 2048), 1)}
        self.values = {
            "prepare": pointers(t.rows, t.convolution, t.decays, t.biases, t.last, t.mixed, t.kept, t.gates),
            "chunk": maps(k, q) + pointers(k, q, t.gates, t.solved, t.scores, t.sums),
            "walk": maps(k, q, v, t.solved, t.scores, out)
                    + pointers(k, q, v, t.solved, t.scores, t.out, t.sums, t.state, t.new_state),
            "finish": pointers(t.rows, t.norm, t.out)}
        for values in self.values.values():
            values.append(shape)

    def heads(self):
        """q, k and v [1, H, T, D] within `mixed`."""
        parts = self.mixed.split([K_HEADS * DIM, K_HEADS * DIM, V_HEADS * DIM], -1)
        return [x.view(1, self.tokens, -1, DIM).transpose(1, 2) for x in parts]

    def run(self, *names):
        stream = C.c_void_p(torch.cuda.current_stream().cuda_stream)
        for name in names:
            stage, values = self.rule.stages[name], self.values[name]
            arguments = (C.c_void_p * len(values))(*(C.addressof(x) for x in values))
            check(cuda.cuLaunchKernel(self.rule.functions[name], *self.grids[name], stage["threads"], 1, 1,
                                      stage["shared_bytes"], stream, arguments, None), "cuLaunchKernel")

    def given(self):
        """q, k and v [1, T, H, D], decays and betas [1, T, Hv] as the second kernel reads them."""
        q, k, v = (x.transpose(1, 2).contiguous() for x in self.heads())
        decay, beta = self.gates.transpose(2, 3).contiguous()
        return q, k, v, decay * math.log(2), beta


def reference(call):
    """The rule, token by token in f64: what is read [1, T, Hv, D], and the state."""
    q, k, v, decay, beta = (x.double() for x in call.given())
    q, k = (x.repeat_interleave(V_HEADS // K_HEADS, 2) for x in (q, k))
    state, read = call.state.double(), torch.empty_like(v)
    for t in range(call.tokens):
        state = state * decay[:, t, :, None, None].exp()
        change = (v[:, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, t])) * beta[:, t, :, None]
        state = state + k[:, t, :, :, None] * change[:, :, None]
        read[:, t] = torch.einsum("bhkv,bhk->bhv", state, q[:, t])
    return read, state


def peer(call):
    """The same by flash-linear-attention, if it is installed."""
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    except ImportError:
        return None
    q, k, v, decay, beta = call.given()
    beta = beta.bfloat16()
    return lambda: chunk_gated_delta_rule(q, k, v, decay, beta, scale=1.0, initial_state=call.state,
                                          output_final_state=True)


def off(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


def times(*calls):
    """Milliseconds of each: medians of rounds in which all take turns, launched as graphs."""
    graphs = [captured([call], 20) for call in calls]
    rounds = [[replay(graph.replay) / count for graph, count in graphs] for _ in range(11)]
    return [sorted(of_call)[5] for of_call in zip(*rounds)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--butterfly", default="target/release/butterfly")
    parser.add_argument("--out", default="-")
    options = parser.parse_args()
    # Makes the context that the kernels are loaded into.
    torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([options.butterfly, "compile", CONFIG, "--pattern", "block 128 causal & window(1024)", "--target",
                        "cuda:sm_90a", "--dtype", "bf16", "-o", f"{folder}/a"], check=True, capture_output=True)
        rule = Rule(f"{folder}/a")
    text = [f"{torch.cuda.get_device_name()}: {K_HEADS} k heads, {V_HEADS} v heads of {DIM}, bf16. Medians in ms.", "",
            "| tokens | chunk | walk | both | bar | flash-linear-attention | ratio | prepare | finish |",
            "|---|---|---|---|---|---|---|---|---|"]
    missed = False
    for tokens, bar in BARS.items():
        call = Call(rule, tokens, slow=False)
        call.run("prepare")
        other = peer(call)
        calls = [lambda: call.run("chunk"), lambda: call.run("walk"), lambda: call.run("chunk", "walk"),
                 lambda: call.run("prepare"), lambda: call.run("finish")]
        chunk, walk, both, prepare, finish, *rest = times(*calls, *([other] if other else []))
        missed |= both > bar or (bool(rest) and rest[0] < 1.6 * both)
        their = [f"{rest[0]:.3f}", f"{rest[0] / both:.2f}"] if rest else ["not installed", ""]
        text.append(f"| {tokens} | {chunk:.3f} | {walk:.3f} | {both:.3f} | {bar} | {their[0]} | {their[1]} "
                    f"| {prepare:.3f} | {finish:.3f} |")
    text += ["", "Relative errors against the rule in f64, of what is read and of the state:", "",
             "| tokens | decays | ours | state | flash-linear-attention | state |", "|---|---|---|---|---|---|"]
    for tokens, slow in ((64, False), (1000, False), (2048, True)):
        call = Call(rule, tokens, slow)
        call.run("prepare", "chunk", "walk")
        read, state = reference(call)
        ours = off(call.out.view_as(read), read), off(call.new_state, state)
        other = peer(call)
        theirs = [f"{off(x, want):.2e}" for x, want in zip(other(), (read, state))] if other else ["", ""]
        missed |= bool(theirs[0]) and (ours[0] > float(theirs[0]) or ours[1] > float(theirs[1]))
        text.append(f"| {tokens} | {'slow' if slow else 'fast'} | {ours[0]:.2e} | {ours[1]:.2e} | {theirs[0]} | {theirs[1]} |")
    text = "\n".join(text) + "\n"
    print(text)
    if options.out != "-":
        open(options.out, "w").write(text)
    if missed:
        raise SystemExit("a bar is missed")


main()
