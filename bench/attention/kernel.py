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
    """Of x [B, H, T, D]; the box in the same order of dimensions."""
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
        module, self.function = C.c_void_p(), C.c_void_p()
        check(cuda.cuModuleLoadData(C.byref(module), open(f"{folder}/{path}", "rb").read()), "cuModuleLoadData")
        name = entry["entry"].encode()
        check(cuda.cuModuleGetFunction(C.byref(self.function), module, name), "cuModuleGetFunction")
        check(cuda.cuFuncSetAttribute(self.function, 8, self.geometry["shared_bytes"]), "cuFuncSetAttribute")


def kernels(folder):
    """By target and phase."""
    manifest = json.load(open(f"{folder}/manifest.json"))
    return {(e["target"], e["spec"]["phase"]): Kernel(folder, e) for e in manifest["kernels"]}


class Launch:
    """The arguments of one launch; outputs are poisoned until `run`."""

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
        maps = []
        rows = -(-(offset + q_len) // block) - offset // block
        resident, split = geometry.get("resident"), geometry.get("split")
        processors = torch.cuda.get_device_properties(0).multi_processor_count
        if resident or split:
            words.append(batch)
        if resident:
            keys = (1, 1, resident["k_box"], 64)
            maps = [tensor_map(q, (1, *resident["q_box"], 64)), tensor_map(k, keys), tensor_map(v, keys),
                    tensor_map(self.o, (1, 1, resident["q_box"][1], 64))]
            cluster = resident["cluster"]
            items = cluster * rows * resident["items_per_row"] * kv_heads * batch
            self.grid = (min(processors // cluster * cluster, items), 1, 1)
        elif spec["phase"] == "prefill":
            self.grid = (rows * -(-block // geometry["q_tile"]), heads, batch)
        elif split:
            # A cluster takes as many jobs, a power of two, as let all clusters run at once.
            jobs = q_len * kv_heads * batch
            clusters = max(1, processors * split["per_processor"] * 9 // 10 // split["cluster"])
            of_one = min(1 << (-(-jobs // clusters) - 1).bit_length(), split["cluster"])
            self.grid = (-(-jobs // of_one) * split["cluster"], 1, 1)
        else:
            self.grid = (q_len, kv_heads, batch)
        # Strides are unsigned words of 32 bits.
        self.parameters = torch.tensor([w - (1 << 32) if w >= 1 << 31 else w for w in words],
                                       dtype=torch.int32, device="cuda")
        # What tensor maps show comes first.
        last = [self.o, self.parameters] if resident else [self.parameters, self.o]
        buffers = [q, k, v, *last, self.lse]
        self.values = maps + [C.c_void_p(x.data_ptr()) for x in buffers]
        self.arguments = (C.c_void_p * len(self.values))(*(C.addressof(x) for x in self.values))

    def run(self):
        stream = C.c_void_p(torch.cuda.current_stream().cuda_stream)
        geometry = self.kernel.geometry
        check(cuda.cuLaunchKernel(self.kernel.function, *self.grid, *geometry["threads"],
                                  geometry["shared_bytes"], stream, self.arguments, None), "cuLaunchKernel")
