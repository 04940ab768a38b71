"""The same cases by other software, through torch."""
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from cases import BLOCK

flex = torch.compile(flex_attention, dynamic=False)


def flex_calls(inputs, sees):
    """FlexAttention with the same pattern as a block mask, forward only."""
    tokens = inputs[0][0].shape[2]
    mask = create_block_mask(lambda b, h, q, k: sees(q, k), 1, 1, tokens, tokens, device="cuda",
                             BLOCK_SIZE=BLOCK, _compile=True)
    return [lambda q=q, k=k, v=v: flex(q, k, v, block_mask=mask, enable_gqa=True) for q, k, v in inputs]


def dense_calls(inputs, backend):
    """Dense causal attention by the backend `cudnn` or `fa2`."""
    which = {"cudnn": SDPBackend.CUDNN_ATTENTION, "fa2": SDPBackend.FLASH_ATTENTION}[backend]

    def call(q, k, v):
        # A single query at the end sees all keys; `is_causal` would place it at the start.
        with sdpa_kernel(which):
            return scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, enable_gqa=True)

    return [lambda q=q, k=k, v=v: call(q, k, v) for q, k, v in inputs]


def machine(measure):
    """The device's rates: TFLOP/s of a matmul, TB/s of a copy (bytes read and written)."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    x = torch.randn(1 << 28, device="cuda")
    y = torch.empty_like(x)
    # The copy is a kernel, since the copy engine is slower.
    times = measure({"matmul": [lambda: a @ b], "copy": [lambda: torch.mul(x, 1.0, out=y)]})
    return {"matmul_tflops": 2 * 8192**3 / times["matmul"].median / 1e9,
            "copy_tb_per_s": 2 * x.numel() * 4 / times["copy"].median / 1e9}
