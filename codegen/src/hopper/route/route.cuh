// ---- Rows of logits: the queries that score, of all q heads of a group, row of blocks by row of blocks ----

// Of a row of blocks ROWS are queries, the others up to PADDED padding, so that each warp's 16 rows
// belong to one row of blocks. A thread block takes 128 rows of logits of one kv head, a warpgroup 64.

struct alignas(8) Extent {
  int q_len, q_offset, kv_heads;
  // From one sequence, head and token of q to the next, in elements.
  unsigned q_batch, q_head, q_token;
  int first_row, row_count;
  // Scores of a tile: a number for each earlier block.
  int stride;
  float scale;
};

// The row of blocks of a row of logits, counted from the first.
__device__ __forceinline__ int row_of(int logit_row) { return logit_row / PADDED; }

// The position of the query of a row of logits, or -1. Positions EVERY - 1, 2 EVERY - 1 and so on score,
// and the last query.
__device__ __forceinline__ int query_of(const Extent& extent, int logit_row) {
  const int row = extent.first_row + row_of(logit_row);
  const int place = logit_row % PADDED;
  if (row >= extent.first_row + extent.row_count || place >= ROWS) return -1;
  const int first = max(extent.q_offset, row * BLOCK);
  const int last = min(extent.q_offset + extent.q_len, (row + 1) * BLOCK) - 1;
  const int slot = place % QUERIES;
  const int regular = row * BLOCK + (slot + 1) * EVERY - 1;
  // The slot before this one stands for the last query.
  const bool late = slot > 0 && regular - EVERY >= last;
  return regular >= first && !late ? min(regular, last) : -1;
}

// Means of the blocks before a row of logits.
__device__ __forceinline__ int means_before(const Extent& extent, int logit_row) {
  return (extent.first_row + min(row_of(logit_row), extent.row_count - 1)) * PER_BLOCK;
}

// ---- Shared memory: queries, a ring of tiles of means, barriers, sums of columns ----

struct Shared {
  unsigned address;
  __device__ __forceinline__ unsigned q(int consumer) const { return address + consumer * 64 * CHUNKS * 128; }
  __device__ __forceinline__ unsigned slot(int i) const { return address + (2 * 64 + i * TILE) * CHUNKS * 128; }
  __device__ __forceinline__ unsigned full(int i) const { return slot(SLOTS) + i * 8; }
  __device__ __forceinline__ unsigned empty(int i) const { return full(SLOTS + i); }
};

struct Slot {
  int index = 0;
  unsigned phase = 0;
  __device__ __forceinline__ void advance() {
    if (++index == SLOTS) {
      index = 0;
      phase ^= 1;
    }
  }
};

__device__ __forceinline__ void produce(const Shared& shared, const TensorMap* map, int tiles, int kv_head,
                                        int sequence) {
  Slot slot;
  for (int i = 0; i < tiles; ++i) {
    barrier_wait(shared.empty(slot.index), slot.phase ^ 1);
    barrier_expect(shared.full(slot.index), TILE * CHUNKS * 128);
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c)
      copy_box(shared.slot(slot.index) + c * TILE * 128, map, shared.full(slot.index), c * 64, i * TILE,
               kv_head, sequence);
    slot.advance();
  }
}

__device__ __forceinline__ void load_pieces(unsigned (&x)[4], const void* from) {
  asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "l"(from));
}

// Copies the queries of a warpgroup, in the layout of boxes that swizzle by 128 bytes.
__device__ __forceinline__ void copy_queries(const Extent& extent, const Element* q, unsigned to, int first,
                                             int kv_head, int sequence) {
  constexpr int PIECES = CHUNKS * 8;
  for (int i = threadIdx.x % 128; i < 64 * PIECES; i += 128) {
    const int row = i / PIECES, piece = i % PIECES;
    const int query = query_of(extent, first + row);
    unsigned x[4] = {0, 0, 0, 0};
    if (query >= 0 && piece * 8 < HEAD_DIM) {
      const int head = kv_head * GROUP + (first + row) % PADDED / QUERIES;
      const Element* const from = q + static_cast<long long>(sequence) * extent.q_batch +
                                  static_cast<long long>(head) * extent.q_head +
                                  static_cast<long long>(query - extent.q_offset) * extent.q_token + piece * 8;
      load_pieces(x, from);
    }
    store_shared(to + (piece / 8 * 64 + row) * 128 + ((piece % 8 ^ row % 8) << 4), x);
  }
  // The products read what was stored.
  fence_copies();
  synchronize(1 + threadIdx.x / 128, 128);
}

// ---- The logits of a warpgroup, tile by tile ----

// Calls `use(tile, s)` with the logits of each tile of means. Those of a thread are of rows `lane / 4` and 8
// below, and of every 8 means, two.
template <typename Use>
__device__ __forceinline__ void each_tile(const Shared& shared, int consumer, int tiles, Use use) {
  const int lane = threadIdx.x % 32;
  Slot slot;
  float s[TILE / 2];
  const unsigned long long a = descriptor(shared.q(consumer), 16, 1024);
  for (int i = 0; i < tiles; ++i) {
    barrier_wait(shared.full(slot.index), slot.phase);
    const unsigned long long b = descriptor(shared.slot(slot.index), 16, 1024);
    mma_fence();
#pragma unroll
    for (int t = 0; t < STEPS; ++t)
      mma_rows(s, a + t / 4 * (64 * 128 / 16) + t % 4 * 2, b + t / 4 * (TILE * 128 / 16) + t % 4 * 2, t > 0);
    mma_commit();
    mma_wait<0>(s);
    __syncwarp();
    if (lane == 0) barrier_arrive(shared.empty(slot.index));
    slot.advance();
    use(i, s);
  }
}

// Logits are finite and far above this.
constexpr float LEAST = -1e30f;
// The sum of a query that does not score: every weight relative to it is 0.
constexpr float SILENT = 3e38f;

// For each row the base-2 logarithm of its sum of weights over the means of earlier blocks.
__device__ __forceinline__ void weigh(const Extent& extent, const Shared& shared, int consumer, int first,
                                      int tiles, int list, float* sums) {
  const int lane = threadIdx.x % 32;
  const int own = first + threadIdx.x % 128 / 32 * 16;
  const float scale = extent.scale * 1.44269504f;
  const int end = means_before(extent, own);
  float top[2] = {LEAST, LEAST}, sum[2] = {0.0f, 0.0f};
  each_tile(shared, consumer, tiles, [&](int tile, float(&s)[TILE / 2]) {
    const int left = end - tile * TILE;
    if (left < TILE) {
#pragma unroll
      for (int i = 0; i < TILE / 2; ++i)
        if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= left) s[i] = LEAST;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = top[h];
#pragma unroll
      for (int i = 0; i < TILE / 4; ++i) most = fmaxf(most, s[i / 2 * 4 + h * 2 + i % 2]);
      // Of a thread whose means all come later, every weight has to be 0, not 1.
      const float shift = most > LEAST ? -most * scale : 0.0f;
      float all[2] = {sum[h] * exp2_fast(fmaf(top[h], scale, shift)), 0.0f};
#pragma unroll
      for (int i = 0; i < TILE / 4; ++i)
        all[i % 2] += exp2_fast(fmaf(s[i / 2 * 4 + h * 2 + i % 2], scale, shift));
      top[h] = most;
      sum[h] = all[0] + all[1];
    }
  });
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float most = top[h], total = sum[h];
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      const float other = __shfl_xor_sync(~0u, most, step);
      const float more = __shfl_xor_sync(~0u, total, step);
      const float high = fmaxf(most, other);
      total = total * exp2_fast((most - high) * scale) + more * exp2_fast((other - high) * scale);
      most = high;
    }
    const int logit_row = own + h * 8 + lane / 4;
    const int row = row_of(logit_row), place = logit_row % PADDED;
    if (lane % 4 == 0 && row < extent.row_count && place < ROWS) {
      const bool silent = query_of(extent, logit_row) < 0;
      sums[(static_cast<long long>(list) * extent.row_count + row) * ROWS + place] =
          silent ? SILENT : fmaf(most, scale, log2_fast(total));
    }
  }
}

// Lanes that differ in BIT add their `x` up: each keeps the sums of one half, in the first places.
template <int BIT, int HALF, int COUNT>
__device__ __forceinline__ void add_halves(float (&x)[COUNT], int lane) {
#pragma unroll
  for (int i = 0; i < HALF; ++i) {
    const float given = lane & BIT ? x[i] : x[i + HALF];
    const float kept = lane & BIT ? x[i + HALF] : x[i];
    x[i] = kept + __shfl_xor_sync(~0u, given, BIT);
  }
}

// For each row of blocks the sums of weights of earlier blocks, over the 64 rows of logits or its own.
__device__ __forceinline__ void score(const Extent& extent, const Shared& shared, int consumer, int first,
                                      int tiles, int list, const float* sums, float* partial, float* scores) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, thread = threadIdx.x % 128;
  const float scale = extent.scale * 1.44269504f;
  const long long entries = static_cast<long long>(list) * extent.row_count;
  float shift[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int logit_row = first + warp * 16 + h * 8 + lane / 4;
    const int row = row_of(logit_row), place = logit_row % PADDED;
    const bool scores = row < extent.row_count && place < ROWS;
    shift[h] = scores ? -sums[(entries + row) * ROWS + place] : -SILENT;
  }
  each_tile(shared, consumer, tiles, [&](int tile, float(&s)[TILE / 2]) {
    // Sums of pairs of neighbouring means; of single means if blocks have one.
    constexpr int COUNT = TILE / 8;
    float* const own = partial + ((tile % 2 * 2 + consumer) * 4 + warp) * CELLS;
#pragma unroll
    for (int c = 0; c < CELLS / (TILE / 2); ++c) {
      float x[COUNT];
#pragma unroll
      for (int j = 0; j < COUNT; ++j) {
        auto of = [&](int i) { return exp2_fast(fmaf(s[j * 4 + i], scale, shift[i / 2])); };
        x[j] = CELLS == TILE ? of(c) + of(2 + c) : (of(0) + of(2)) + (of(1) + of(3));
      }
      add_halves<16, COUNT / 2>(x, lane);
      add_halves<8, COUNT / 4>(x, lane);
      add_halves<4, COUNT / 8>(x, lane);
#pragma unroll
      for (int i = 0; i < COUNT / 8; ++i) {
        const int eight = lane / 4 % 2 * (COUNT / 8) + lane / 8 % 2 * (COUNT / 4) + lane / 16 * (COUNT / 2) + i;
        own[CELLS == TILE ? eight * 8 + lane % 4 * 2 + c : eight * 4 + lane % 4] = x[i];
      }
    }
    synchronize(1 + consumer, 128);
    constexpr int BLOCKS = TILE / PER_BLOCK, PER_SCORE = CELLS / BLOCKS;
#pragma unroll 1
    for (int i = thread; i < ENTRIES * BLOCKS; i += 128) {
      const int entry = i / BLOCKS, block = i % BLOCKS;
      const float* from = partial + ((tile % 2 * 2 + consumer) * 4 + entry * (4 / ENTRIES)) * CELLS + block * PER_SCORE;
      float total = 0.0f;
#pragma unroll
      for (int w = 0; w < 4 / ENTRIES; ++w)
#pragma unroll
        for (int j = 0; j < PER_SCORE; ++j) total += from[w * CELLS + j];
      const int logit_row = first + entry * (64 / ENTRIES);
      const int row = row_of(logit_row), c = tile * BLOCKS + block;
      if (row < extent.row_count && c < extent.first_row + row)
        scores[((entries + row) * TILES + logit_row % PADDED / 64) * extent.stride + c] = total;
    }
  });
}

extern "C" __global__ void __launch_bounds__(288, CHUNKS > 2 ? 1 : 2)
    @ENTRY(const __grid_constant__ TensorMap means_map, const void*, const Element* __restrict__ q,
           const unsigned* __restrict__ wanted, float* __restrict__ sums, float* __restrict__ scores,
           const __grid_constant__ Extent extent) {
  extern __shared__ unsigned char dynamic_shared[];
  __shared__ float partial[SCORES ? 2 * 2 * 4 * CELLS : 1];
  const int list = blockIdx.y, kv_head = list % extent.kv_heads, sequence = list / extent.kv_heads;
  // This kv head chooses nothing.
  if (wanted[kv_head] == 0) return;
  Shared shared;
  shared.address = boxes_address(dynamic_shared);
  if (threadIdx.x == 0) {
    for (int i = 0; i < SLOTS; ++i) {
      barrier_init(shared.full(i), 1);
      barrier_init(shared.empty(i), 8);
    }
    fence_barriers();
    prefetch_map(&means_map);
  }
  __syncthreads();
  // Long rows first.
  const int first = (gridDim.x - 1 - blockIdx.x) * 128;
  const int tiles = (means_before(extent, first + 127) + TILE - 1) / TILE;
  if (threadIdx.x >= 256) {
    if (threadIdx.x == 256) produce(shared, &means_map, tiles, kv_head, sequence);
  } else {
    const int consumer = threadIdx.x / 128;
    copy_queries(extent, q, shared.q(consumer), first + consumer * 64, kv_head, sequence);
    if (SCORES) score(extent, shared, consumer, first + consumer * 64, tiles, list, sums, partial, scores);
    else weigh(extent, shared, consumer, first + consumer * 64, tiles, list, sums);
  }
}
