// ---- The norm of each head, times its gate ----

// Loads 16 bytes at once, of memory that this kernel writes too.
__device__ __forceinline__ void load_own(unsigned (&x)[4], const void* from) {
  asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "l"(from)
               : "memory");
}

// In place: each thread reads all elements that it writes before it writes the first.
extern "C" __global__ void __launch_bounds__(256)
    butterfly_delta_finish(const Element* __restrict__ rows, const float* __restrict__ norm, Element* out,
                           const __grid_constant__ Shape shape) {
  const int column = blockIdx.y * 2048 + threadIdx.x * 8, batch = blockIdx.z;
  const int first = blockIdx.x * FINISH_TOKENS;
  if (column >= V_HEADS * DIM) return;
  float weights[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) weights[i] = norm[column % DIM + i];
  unsigned x[FINISH_TOKENS][4], z[FINISH_TOKENS][4];
#pragma unroll
  for (int t = 0; t < FINISH_TOKENS; ++t) {
    const int token = min(first + t, shape.tokens - 1);
    load_own(x[t], out + (static_cast<long long>(batch) * shape.tokens + token) * (V_HEADS * DIM) + column);
    load_pieces(z[t], rows + static_cast<long long>(batch) * shape.row_batch +
                          static_cast<long long>(token) * shape.row_token + CHANNELS + column);
  }
#pragma unroll
  for (int t = 0; t < FINISH_TOKENS; ++t) {
    const int token = first + t;
    float square = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) square += low(x[t][i]) * low(x[t][i]) + high(x[t][i]) * high(x[t][i]);
#pragma unroll
    for (int step = 1; step < DIM / 8; step *= 2) square += __shfl_xor_sync(~0u, square, step);
    const float factor = rsqrtf(square / DIM + shape.epsilon);
    unsigned y[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      y[i] = pack(low(x[t][i]) * factor * weights[2 * i] * silu(low(z[t][i])),
                  high(x[t][i]) * factor * weights[2 * i + 1] * silu(high(z[t][i])));
    if (token < shape.tokens)
      store_pieces(out + (static_cast<long long>(batch) * shape.tokens + token) * (V_HEADS * DIM) + column, y);
  }
}
