// ---- One chunk of tokens and one k head: what its v heads need of keys and queries ----

// Row and column of element i of a wgmma accumulator, of 64 rows.
__device__ __forceinline__ int row_of(int i) { return threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4 + i / 2 % 2 * 8; }
__device__ __forceinline__ int column_of(int i) { return i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2; }

extern "C" __global__ void __launch_bounds__(128, CHUNK_WORKGROUPS)
    butterfly_delta_chunk(const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap q_map,
                          const void*, const void*, const float* __restrict__ gates,
                          Element* __restrict__ solved, Element* __restrict__ scores,
                          float* __restrict__ cumulative, const __grid_constant__ Shape shape) {
  extern __shared__ unsigned char dynamic_shared[];
  const unsigned boxes = boxes_address(dynamic_shared);
  unsigned char* const aligned = dynamic_shared + (boxes - shared_address(dynamic_shared));
  // Two matrices, of two heads; they take the place of keys and queries.
  float* const matrices = reinterpret_cast<float*>(aligned);
  float* const sums = reinterpret_cast<float*>(aligned + MATRIX_BYTES);   // [2][64]
  float* const betas = sums + 128;                                        // [2][64]
  const unsigned barrier = boxes + MATRIX_BYTES + 1024;
  const int chunk = blockIdx.x, k_head = blockIdx.y, batch = blockIdx.z;
  const int lane = threadIdx.x % 32;

  if (threadIdx.x == 0) {
    barrier_init(barrier, 1);
    fence_barriers();
    barrier_expect(barrier, 4 * 8192);
    for (int box = 0; box < 2; ++box) {
      copy_box(boxes + box * 8192, &k_map, barrier, box * 64, chunk * 64, k_head, batch);
      copy_box(boxes + 16384 + box * 8192, &q_map, barrier, box * 64, chunk * 64, k_head, batch);
    }
  }
  __syncthreads();
  barrier_wait(barrier, 0);
  float kk[32], qk[32];
  const unsigned long long k = descriptor(boxes, 16, 1024);
  const unsigned long long q = descriptor(boxes + 16384, 16, 1024);
  mma_fence();
#pragma unroll
  for (int t = 0; t < 8; ++t) {
    const int at = (t / 4 * 8192 + t % 4 * 32) / 16;
    mma_rows(kk, k + at, k + at, t > 0);
  }
#pragma unroll
  for (int t = 0; t < 8; ++t) {
    const int at = (t / 4 * 8192 + t % 4 * 32) / 16;
    mma_rows(qk, q + at, k + at, t > 0);
  }
  mma_commit();
  mma_wait<0>(kk);
  mma_wait<0>(qk);

  // Two heads at a time, each by half of the threads.
  const int half = threadIdx.x / 64, own = threadIdx.x % 64;
  for (int first = 0; first < RATIO; first += 2) {
    const int r = first + half;
    const int head = TILED ? k_head + r * K_HEADS : k_head * RATIO + r;
    const int token = chunk * 64 + own;
    float g = 0.0f, beta = 0.0f;
    if (r < RATIO && token < shape.tokens) {
      const long long at = (static_cast<long long>(batch) * V_HEADS + head) * shape.tokens + token;
      g = gates[at];
      beta = gates[at + static_cast<long long>(gridDim.z) * V_HEADS * shape.tokens];
    }
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const float before = __shfl_up_sync(~0u, g, distance);
      if (lane >= distance) g += before;
    }
    // Nobody reads keys, queries or the matrices of the heads before any more.
    __syncthreads();
    sums[threadIdx.x] = g;
    betas[threadIdx.x] = beta;
    __syncthreads();
    const float before = own >= 32 ? sums[half * 64 + 31] : 0.0f;
    __syncthreads();
    g += before;
    sums[threadIdx.x] = g;
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (first + h >= RATIO) break;
      const float* const sum = sums + h * 64;
      float* const a = matrices + h * 64 * PITCH;
      const int v_head = TILED ? k_head + (first + h) * K_HEADS : k_head * RATIO + first + h;
      Element* const to =
          scores + ((static_cast<long long>(batch) * V_HEADS + v_head) * shape.chunks + chunk) * 4096;
      float of_rows[2], beta_rows[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        of_rows[e] = sum[row_of(2 * e)];
        beta_rows[e] = betas[h * 64 + row_of(2 * e)];
      }
      float weights[32];
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int row = row_of(i), column = column_of(i);
        const float decay = exp2_fast(of_rows[i / 2 % 2] - sum[column]);
        weights[i] = column <= row ? decay * qk[i] : 0.0f;
        a[column * PITCH + row] = column < row ? -beta_rows[i / 2 % 2] * decay * kk[i] : 0.0f;
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          unsigned x[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) x[i] = pack(weights[(j * 4 + i) * 4 + e * 2], weights[(j * 4 + i) * 4 + e * 2 + 1]);
          transpose_quad(x, lane);
          store_pieces(to + row_of(2 * e) * 64 + j * 32 + lane % 4 * 8, x);
        }
      }
    }
    __syncthreads();
    if (r < RATIO) {
      const long long at = (static_cast<long long>(batch) * V_HEADS + head) * shape.chunks + chunk;
      cumulative[at * 64 + own] = g;
      // Column `own` of the inverse, by forward substitution.
      const float* const a = matrices + half * 64 * PITCH;
      float x[64];
#pragma unroll
      for (int i = 0; i < 64; ++i) x[i] = i == own ? 1.0f : 0.0f;
      auto substitute = [&](int from) {
#pragma unroll
        for (int m = from; m < from + 32; ++m) {
#pragma unroll
          for (int i = (m + 1) / 4 * 4; i < 64; i += 4) {
            const float4 four = *reinterpret_cast<const float4*>(a + m * PITCH + i);
            if (i > m) x[i] = fmaf(four.x, x[m], x[i]);
            if (i + 1 > m) x[i + 1] = fmaf(four.y, x[m], x[i + 1]);
            if (i + 2 > m) x[i + 2] = fmaf(four.z, x[m], x[i + 2]);
            if (i + 3 > m) x[i + 3] = fmaf(four.w, x[m], x[i + 3]);
          }
        }
      };
      if (own < 32) substitute(0);
      substitute(32);
      // Neighbours exchange, so that each stores two elements of every other row.
      Element* const to = solved + at * 4096 + own / 2 * 2;
      const bool odd = lane & 1;
#pragma unroll
      for (int i = 0; i < 64; i += 2) {
        const float even_row = x[i] * beta, odd_row = x[i + 1] * beta;
        const float got = __shfl_xor_sync(~0u, odd ? even_row : odd_row, 1);
        const unsigned two = odd ? pack(got, odd_row) : pack(even_row, got);
        *reinterpret_cast<unsigned*>(to + (i + odd) * 64) = two;
      }
    }
  }
}
