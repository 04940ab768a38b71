// ---- Walks over the chunks of a sequence, for half of a v head ----

struct Slot {
  unsigned address;
  int index = 0;
  unsigned phase = 0;
  __device__ __forceinline__ unsigned k() const { return address + index * SLOT_BYTES; }
  __device__ __forceinline__ unsigned q() const { return k() + 16384; }
  __device__ __forceinline__ unsigned solved() const { return k() + 32768; }
  __device__ __forceinline__ unsigned scores() const { return k() + 40960; }
  __device__ __forceinline__ unsigned v() const { return k() + 49152; }
  __device__ __forceinline__ unsigned sums() const { return address + SLOTS * SLOT_BYTES + 8192 + index * 256; }
  __device__ __forceinline__ unsigned full() const { return address + SLOTS * SLOT_BYTES + 8192 + SLOTS * 256 + index * 8; }
  __device__ __forceinline__ unsigned empty() const { return full() + SLOTS * 8; }
  __device__ __forceinline__ unsigned staging() const { return address + SLOTS * SLOT_BYTES; }
  __device__ __forceinline__ void advance() {
    if (++index == SLOTS) {
      index = 0;
      phase ^= 1;
    }
  }
};

__device__ __forceinline__ float2 load_two(unsigned address) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(address));
  return x;
}

__device__ __forceinline__ float load_one(unsigned address) {
  float x;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address));
  return x;
}

__device__ __forceinline__ void load_transposed(unsigned (&x)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void store_transposed(unsigned address, const unsigned (&x)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
               : "memory");
}

extern "C" __global__ void __launch_bounds__(160, 1)
    butterfly_delta_walk(const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap q_map,
                         const __grid_constant__ TensorMap v_map, const __grid_constant__ TensorMap solved_map,
                         const __grid_constant__ TensorMap scores_map, const __grid_constant__ TensorMap o_map,
                         const void*, const void*, const void*, const void*, const void*, const void*,
                         const float* __restrict__ cumulative, const float* __restrict__ state,
                         float* __restrict__ new_state, const __grid_constant__ Shape shape) {
  extern __shared__ unsigned char dynamic_shared[];
  const int part = blockIdx.x, head = blockIdx.y, batch = blockIdx.z;
  const int k_head = TILED ? head % K_HEADS : head / RATIO;
  const long long sequence = static_cast<long long>(batch) * V_HEADS + head;
  Slot slot;
  slot.address = boxes_address(dynamic_shared);
  if (threadIdx.x == 0) {
    for (int i = 0; i < SLOTS; ++i) {
      barrier_init(slot.full(), 1);
      barrier_init(slot.empty(), 4);
      slot.advance();
    }
    fence_barriers();
  }
  slot.index = 0;
  slot.phase = 0;
  __syncthreads();

  if (threadIdx.x >= 128) {
    if (threadIdx.x == 128) {
      for (int i = 0; i <= shape.chunks; ++i) {
        // The last chunk comes twice, because its keys are multiplied once more.
        const int chunk = min(i, shape.chunks - 1);
        barrier_wait(slot.empty(), slot.phase ^ 1);
        const unsigned full = slot.full();
        barrier_expect(full, 7 * 8192 + 256);
        for (int box = 0; box < 2; ++box)
          copy_box(slot.k() + box * 8192, &k_map, full, box * 64, chunk * 64, k_head, batch);
        copy_box(slot.v(), &v_map, full, part * 64, chunk * 64, head, batch);
        copy_box(slot.solved(), &solved_map, full, 0, chunk * 64, head, batch);
        copy_bytes(slot.sums(), cumulative + (sequence * shape.chunks + chunk) * 64, 256, full);
        for (int box = 0; box < 2; ++box)
          copy_box(slot.q() + box * 8192, &q_map, full, box * 64, chunk * 64, k_head, batch);
        copy_box(slot.scores(), &scores_map, full, 0, chunk * 64, head, batch);
        slot.advance();
      }
    }
    return;
  }

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int own_column = lane % 4 * 2;
  // The state, transposed: rows are elements of v, columns those of k.
  float s[64];
  const long long base = sequence * 128 * 128 + part * 64 + warp * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < 64; ++i)
    s[i] = state[base + (i / 4 * 8 + own_column + i % 2) * 128 + i / 2 % 2 * 8];

  unsigned sb[32];
  float p[32], o[32], vn[32];
  auto multiply_keys = [&](const Slot& slot) {
#pragma unroll
    for (int i = 0; i < 32; ++i) sb[i] = pack(s[2 * i], s[2 * i + 1]);
    barrier_wait(slot.full(), slot.phase);
    const unsigned long long k = descriptor(slot.k(), 16, 1024);
    mma_fence();
#pragma unroll
    for (int t = 0; t < 8; ++t)
      mma_tokens(p, sb[4 * t], sb[4 * t + 1], sb[4 * t + 2], sb[4 * t + 3],
                 k + (t / 4 * 8192 + t % 4 * 32) / 16, t > 0);
    mma_commit();
  };
  // The lane's row in matrices of V and O: tokens are rows there.
  const int matrix_row = lane / 16 * 8 + lane % 8;
  const int matrix_piece = warp * 2 + lane / 8 % 2;
  auto matrix_address = [&](unsigned tile, int step) {
    const int token = step * 16 + matrix_row;
    return tile + token * 128 + ((matrix_piece ^ token % 8) * 16);
  };
  multiply_keys(slot);
  for (int chunk = 0; chunk < shape.chunks; ++chunk) {
    const Slot now = slot;
    slot.advance();
    // Decay from before the chunk to each of the lane's tokens.
    float decay[16];
    const float last = load_one(now.sums() + 63 * 4);
    float2 sums[8];
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      sums[n] = load_two(now.sums() + (n * 8 + own_column) * 4);
      decay[2 * n] = exp2_fast(sums[n].x);
      decay[2 * n + 1] = exp2_fast(sums[n].y);
    }
    unsigned r[16];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      unsigned v[4];
      load_transposed(v, matrix_address(now.v(), step));
#pragma unroll
      for (int i = 0; i < 4; ++i) r[4 * step + i] = v[i];
    }
    mma_wait<0>(p);
    // What the state does not yet say of the values.
#pragma unroll
    for (int step = 0; step < 4; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 8 * step + 2 * i;
        const int n = 2 * step + i / 2;
        const unsigned v = r[4 * step + i];
        r[4 * step + i] = pack(low(v) - decay[2 * n] * p[at], high(v) - decay[2 * n + 1] * p[at + 1]);
      }
    const unsigned long long solved = descriptor(now.solved(), 16, 1024);
    mma_fence();
#pragma unroll
    for (int t = 0; t < 4; ++t)
      mma_tokens(vn, r[4 * t], r[4 * t + 1], r[4 * t + 2], r[4 * t + 3], solved + t * 2, t > 0);
    mma_commit();
    const unsigned long long q = descriptor(now.q(), 16, 1024);
#pragma unroll
    for (int t = 0; t < 8; ++t)
      mma_tokens(o, sb[4 * t], sb[4 * t + 1], sb[4 * t + 2], sb[4 * t + 3],
                 q + (t / 4 * 8192 + t % 4 * 32) / 16, t > 0);
    mma_commit();
    const float whole = exp2_fast(last);
#pragma unroll
    for (int i = 0; i < 64; ++i) s[i] *= whole;
    mma_wait<1>(vn);
    keep_until_here(r);
    unsigned to_state[16], to_output[16];
#pragma unroll
    for (int step = 0; step < 4; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 8 * step + 2 * i;
        const int n = 2 * step + i / 2;
        to_output[4 * step + i] = pack(vn[at], vn[at + 1]);
        to_state[4 * step + i] =
            pack(vn[at] * exp2_fast(last - sums[n].x), vn[at + 1] * exp2_fast(last - sums[n].y));
      }
    const unsigned long long k = descriptor(now.k(), 8192, 1024);
    mma_fence();
#pragma unroll
    for (int t = 0; t < 4; ++t)
      mma_state(s, to_state[4 * t], to_state[4 * t + 1], to_state[4 * t + 2], to_state[4 * t + 3],
                k + t * 16 * 128 / 16, 1);
    mma_commit();
    mma_wait<1>(o);
    keep_until_here(sb);
#pragma unroll
    for (int i = 0; i < 32; ++i) o[i] *= decay[i / 4 * 2 + i % 2];
    const unsigned long long scores = descriptor(now.scores(), 16, 1024);
    mma_fence();
#pragma unroll
    for (int t = 0; t < 4; ++t)
      mma_tokens(o, to_output[4 * t], to_output[4 * t + 1], to_output[4 * t + 2], to_output[4 * t + 3],
                 scores + t * 2, 1);
    mma_commit();
    mma_wait<1>(s);
    keep_until_here(to_state);
    multiply_keys(slot);
    mma_wait<1>(o);
    keep_until_here(to_output);
    __syncwarp();
    if (lane == 0) barrier_arrive(now.empty());
    // Staging is free: the copy of the chunk before has read it.
    if (threadIdx.x == 0) wait_stores();
    synchronize(1, 128);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const int at = 8 * step;
      const unsigned x[4] = {pack(o[at], o[at + 1]), pack(o[at + 2], o[at + 3]), pack(o[at + 4], o[at + 5]),
                             pack(o[at + 6], o[at + 7])};
      store_transposed(matrix_address(slot.staging(), step), x);
    }
    fence_copies();
    synchronize(1, 128);
    if (threadIdx.x == 0) {
      store_box(&o_map, slot.staging(), part * 64, chunk * 64, head, batch);
      commit_stores();
    }
  }
  mma_wait<0>(p);
#pragma unroll
  for (int i = 0; i < 64; ++i)
    new_state[base + (i / 4 * 8 + own_column + i % 2) * 128 + i / 2 % 2 * 8] = s[i];
  if (threadIdx.x == 0) wait_stores();
}
