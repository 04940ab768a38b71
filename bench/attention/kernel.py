"""Kernels from a folder of artifacts, launched through the CUDA driver on torch's tensors."""
import ctypes as C, json, math, struct
import torch

cuda = C.CDLL("libcuda.so.1")


class TensorMap(C.Structure):
    _fields_ = [("words", C.c_uint64 * 16)]


def check(status, what):
    if status:
        raise RuntimeError(f"{what} returned {status}")


def tensor_map(x, box):
    """The tensor map of x [B, H, T, D]; `box` has the same order of dimensions."""
    raw = (C.c_uint64 * 32)()
    at = (C.addressof(raw) + 63) & ~63
    sizes = (C.c_uint64 * 4)(*reversed(x.shape))
    strides = (C.c_uint64 * 3)(*(s * 2 for s in (x.stride(2), x.stride(1), x.stride(0))))
    kind = 9 if x.dtype == torch.bfloat16 else 6
    check(cuda.cuTensorMapEncodeTiled(
        C.c_void_p(at), kind, 4, C.c_void_p(x.data_ptr()), sizes, strides,
        (C.c_uint32 * 4)(*reversed(box)), (C.c_uint32 * 4)(1, 1, 1, 1), 0, 3, 2, 0), "cuTensorMapEncodeTiled")
    made = TensorMap()
    C.memmove(C.byref(made), at, 128)
    return made


class Kernel:
    """One entry of the manifest, loaded."""

    def __init__(self, folder, entry):
        self.entry, self.geometry, self.spec = entry, entry["geometry"], entry["spec"]
        path = next(file["path"] for file in entry["files"] if file["path"].endswith(".cubin"))
        module = C.c_void_p()
        check(cuda.cuModuleLoadData(C.byref(module), open(f"{folder}/{path}", "rb").read()), "cuModuleLoadData")
        # The functions by entry point: a decode kernel has a second one, for many jobs.
        points = [entry, entry["alone"]] if entry.get("alone") else [entry]
        self.functions = [C.c_void_p() for _ in points]
        for function, point in zip(self.functions, points):
            name = point["entry"].encode()
            check(cuda.cuModuleGetFunction(C.byref(function), module, name), "cuModuleGetFunction")
            check(cuda.cuFuncSetAttribute(function, 8, self.geometry["shared_bytes"]), "cuFuncSetAttribute")


def kernels(folder):
    """The kernels of a folder by target and phase."""
    manifest = json.load(open(f"{folder}/manifest.json"))
    return {(e["target"], e["spec"]["phase"]): Kernel(folder, e) for e in manifest["kernels"]}


class Launch:
    """The arguments of one launch; outputs are NaN until `run`."""

    def __init__(self, kernel, q, k, v, offset, index):
        self.kernel, self.q, self.k, self.v = kernel, q, k, v
        spec, geometry = kernel.spec, kernel.geometry
        batch, heads, q_len, head_dim = q.shape
        kv_heads, kv_len, block = k.shape[1], k.shape[2], spec["block"]
        self.o = torch.full((*q.shape[:3], v.shape[3]), float("nan"), device="cuda", dtype=q.dtype)
        self.lse = torch.full(q.shape[:3], float("nan"), device="cuda")
        scale = struct.unpack("I", struct.pack("f", 1 / math.sqrt(head_dim)))[0]
        words = [q_len, kv_len, offset, kv_heads, -(-kv_len // block), index, scale]
        for x in (q, k, v, self.o):
            words += x.stride()[:3]
        # The prompt is the whole sequence; heads and sequences share their rows, from the first one on.
        words += [kv_len, 0, 0, 0]
        maps = []
        rows = -(-(offset + q_len) // block) - offset // block
        resident, split, boxes = (geometry.get(name) for name in ("resident", "split", "boxes"))
        processors = torch.cuda.get_device_properties(0).multi_processor_count
        self.function = kernel.functions[0]
        if boxes:
            keys = (1, 1, boxes["k"], 64)
            maps = [tensor_map(q, (1, *boxes["q"], 64)), tensor_map(k, keys), tensor_map(v, keys),
                    tensor_map(self.o, (1, 1, boxes["q"][1], 64))]
        if resident:
            cluster = resident["cluster"]
            items = cluster * rows * resident["items_per_row"] * kv_heads * batch
            self.grid = (min(processors // cluster * cluster, items), 1, 1)
        elif spec["phase"] == "prefill":
            self.grid = (rows * -(-block // geometry["q_tile"]), heads, batch)
        elif split:
            # With few jobs, the workgroups of a cluster share each of them.
            alone = q_len * kv_heads * batch * split["cluster"] >= processors * 9 // 10
            self.function = kernel.functions[alone]
            self.grid = (q_len if alone else split["cluster"] * q_len, kv_heads, batch)
        else:
            self.grid = (q_len, kv_heads, batch)
        # Tensor maps and pointers come first, then the scalars by value, with batch, softcap and, for decode, 64 lags.
        if boxes:
            self.buffers, by_value = [q, k, v, self.o, self.lse], [(C.c_uint32 * (26 + 64))(*words, batch)]
        else:
            # For decode, the lag of each sequence comes last.
            words = [w - (1 << 32) if w >= 1 << 31 else w for w in words] + [0] * batch
            parameters = torch.tensor(words, dtype=torch.int32, device="cuda")
            self.buffers, by_value = [q, k, v, parameters, self.o, self.lse], []
        self.values = maps + [C.c_void_p(x.data_ptr()) for x in self.buffers] + by_value
        self.arguments = (C.c_void_p * len(self.values))(*(C.addressof(x) for x in self.values))

    def run(self):
        stream = C.c_void_p(torch.cuda.current_stream().cuda_stream)
        geometry = self.kernel.geometry
        check(cuda.cuLaunchKernel(self.function, *self.grid, *geometry["threads"],
                                  geometry["shared_bytes"], stream, self.arguments, None), "cuLaunchKernel")
