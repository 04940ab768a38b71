// ---- A part of the keys of a job, whose first elements are their values: products by wgmma ----
//
// Tiles of 64 keys are read once. As above, products are transposed: their 64 rows are keys, then columns
// of V, and their columns are q heads. So few heads are not padded to 64, and V is the very tile of K, read
// by columns. A warpgroup computes a tile while the next one is copied.

constexpr int LATENT_BYTES = D_BOXES * LATENT_TILE * 128;

// Offsets are bytes from `address`. Q, tiles and weights are stored in swizzled boxes of 64 columns.
struct LatentShared {
  unsigned char* bytes;
  unsigned address;
  static constexpr unsigned TILES = ROWS * 128 * D_BOXES;
  static constexpr unsigned WEIGHTS = TILES + LATENT_SLOTS * LATENT_BYTES;
  static constexpr unsigned ROWS_OF_WARPS = WEIGHTS + ROWS * 128;
  static constexpr unsigned BARRIERS = ROWS_OF_WARPS + 4 * ROWS * 4;
  __device__ __forceinline__ unsigned q() const { return address; }
  __device__ __forceinline__ unsigned tile(int slot) const { return address + TILES + slot * LATENT_BYTES; }
  __device__ __forceinline__ unsigned weights() const { return address + WEIGHTS; }
  // A number of each row (q head), from each warp.
  __device__ __forceinline__ float& of_warp(int warp, int row) const {
    return reinterpret_cast<float*>(bytes + ROWS_OF_WARPS)[warp * ROWS + row];
  }
  __device__ __forceinline__ unsigned q_full() const { return address + BARRIERS; }
  __device__ __forceinline__ unsigned full(int slot) const { return q_full() + 8 + slot * 8; }
};

// The result for the keys so far. Of q heads `lane % 4 * 2` and the next in every 8: the base-2 logit that
// weights are relative to, and the sum of weights over this thread's keys. Of the same heads: the output
// in columns `lane / 4` and `lane / 4 + 8` of the 16 that its warp has of every 64.
struct LatentPart {
  float base[HEAD_TILES][2], sum[HEAD_TILES][2];
  float o[V_COLUMNS / 64][HEAD_TILES * 4];

  __device__ __forceinline__ LatentPart() {
#pragma unroll
    for (int r = 0; r < HEAD_TILES; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        base[r][h] = minus_infinity();
        sum[r][h] = 0.0f;
      }
#pragma unroll
    for (int m = 0; m < V_COLUMNS / 64; ++m)
#pragma unroll
      for (int i = 0; i < HEAD_TILES * 4; ++i) o[m][i] = 0.0f;
  }
};

// Starts the copy of this warp's 16 keys of a tile; called by one thread of each warp.
__device__ __forceinline__ void copy_latents(const LatentShared& shared, const TensorMap* map, int slot, int key,
                                             int warp, int kv_head, int batch) {
  const unsigned full = shared.full(slot), to = shared.tile(slot) + warp * K_TILE * 128;
  barrier_expect(full, D_BOXES * K_TILE * 128);
#pragma unroll
  for (int c = 0; c < D_BOXES; ++c)
    copy_box_once(to + c * LATENT_TILE * 128, map, full, c * 64, key + warp * K_TILE, kv_head, batch);
}

// Logits of a tile of `count` keys become weights in shared memory; as `weigh`, but for all warps together.
__device__ __forceinline__ void weigh_latents(const LatentShared& shared, const Launch& launch,
                                              float (&scores)[HEAD_TILES * 4], int count, int warp, int lane,
                                              LatentPart& part) {
  const float scale = @scale;
  float s[HEAD_TILES][4];
  bool behind = false;
#pragma unroll
  for (int r = 0; r < HEAD_TILES; ++r)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[r][i] = scores[r * 4 + i];
      const int key = warp * 16 + i / 2 * 8 + lane / 4;
      const bool is_head = r * 8 + 8 <= GROUP || r * 8 + lane % 4 * 2 + i % 2 < GROUP;
      s[r][i] = key < count && is_head ? @logit : minus_infinity();
      behind |= s[r][i] > part.base[r][i % 2] + MOST_AHEAD;
    }
  if (__syncthreads_or(behind)) {
#pragma unroll
    for (int r = 0; r < HEAD_TILES; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float top = fmaxf(s[r][h], s[r][2 + h]);
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2)
          top = fmaxf(top, __shfl_xor_sync(~0u, top, distance));
        if (lane < 4) shared.of_warp(warp, r * 8 + lane % 4 * 2 + h) = top;
      }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < HEAD_TILES; ++r) {
      float fade[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float top = part.base[r][h];
#pragma unroll
        for (int w = 0; w < 4; ++w) top = fmaxf(top, shared.of_warp(w, r * 8 + lane % 4 * 2 + h));
        // Nothing was seen yet, so there is nothing to rescale.
        fade[h] = top == minus_infinity() ? 1.0f : exp2_fast(part.base[r][h] - top);
        part.base[r][h] = top;
        part.sum[r][h] *= fade[h];
      }
#pragma unroll
      for (int m = 0; m < V_COLUMNS / 64; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) part.o[m][r * 4 + i] *= fade[i % 2];
    }
  }
#pragma unroll
  for (int r = 0; r < HEAD_TILES; ++r) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float base = part.base[r][i % 2];
      s[r][i] = exp2_fast(s[r][i] - (base == minus_infinity() ? 0.0f : base));
      part.sum[r][i % 2] += s[r][i];
    }
    // Rows of weights are heads, and keys lie side by side.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned to = shared.weights() + (r * 8 + lane / 4) * 128 + ((warp * 2 + i ^ lane / 4) << 4) + lane % 4 * 4;
      const unsigned two = transposed(pack(s[r][2 * i], s[r][2 * i + 1]));
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(two) : "memory");
    }
  }
}

// Sets the values of keys from `count` on to zero. Weights of zero would not be enough where values are
// infinite or NaN.
__device__ __forceinline__ void hide_latents(unsigned tile, int count) {
  const int pieces = (LATENT_TILE - count) * 8;
  for (int at = threadIdx.x; at < pieces * V_BOXES; at += THREADS) {
    const unsigned to = tile + at / pieces * (LATENT_TILE * 128) + count * 128 + at % pieces * 16;
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
  }
}

// Writes the result of a part.
__device__ __forceinline__ void keep_latents(const LatentShared& shared, const LatentPart& part,
                                             const Partials& partials, int warp, int lane) {
#pragma unroll
  for (int r = 0; r < HEAD_TILES; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = part.sum[r][h];
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) sum += __shfl_xor_sync(~0u, sum, distance);
      if (lane < 4) shared.of_warp(warp, r * 8 + lane % 4 * 2 + h) = sum;
    }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < HEAD_TILES; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = r * 8 + lane % 4 * 2 + h;
      if (GROUP % 8 != 0 && row >= GROUP) continue;
      float* to = partials.at + row * Partials::PITCH;
#pragma unroll
      for (int m = 0; m < V_COLUMNS / 64; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          to[m * 64 + warp * 16 + half * 8 + lane / 4] = part.o[m][r * 4 + half * 2 + h];
      if (warp == 0 && lane < 4) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < 4; ++w) sum += shared.of_warp(w, row);
        *reinterpret_cast<float2*>(to + V_COLUMNS) = make_float2(part.base[r][h], sum);
      }
    }
}

__device__ __forceinline__ float4 load_four_from_cluster(unsigned address) {
  float4 x;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(address)
               : "memory");
  return x;
}

// Merges the results of the WIDTH thread blocks of a cluster, of which this is number `part`: each writes neighbouring
// columns, four at a time.
template <int WIDTH>
__device__ __forceinline__ void merge_latents(const Launch& launch, const LatentShared& shared, unsigned kv_head,
                                              unsigned part, Element* o, float* lse) {
  // V has whole boxes of 64 columns.
  constexpr unsigned FOURS = V_COLUMNS / 4 / WIDTH;
  synchronize_cluster();
#pragma unroll 1
  for (unsigned at = threadIdx.x; at < GROUP * FOURS; at += THREADS) {
    const unsigned row = at / FOURS, column = (part * FOURS + at % FOURS) * 4;
    const unsigned of_row = shared.tile(0) + row * Partials::PITCH * 4;
    float4 parts[WIDTH];
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) parts[i] = load_four_from_cluster(place_in(of_row + column * 4, i));
    const Merged all =
        merged<WIDTH>([&](int i) { return load_pair_from_cluster(place_in(of_row + V_COLUMNS * 4, i)); },
                      [&](int i, int c) { return c == 0 ? parts[i].x : c == 1 ? parts[i].y : c == 2 ? parts[i].z : parts[i].w; });
    write_merged(launch, all, kv_head, row, column, o, lse);
  }
  // Shared memory must not be given up before the others of the cluster have read it.
  synchronize_cluster();
}

// A part of a job. With a WIDTH of 0 there is any number of parts, and the result stays in `partials`; else a cluster of
// WIDTH thread blocks has a job, leaves the results where the tiles were, and merges them into the output.
template <int WIDTH>
__device__ __forceinline__ void take_part(const Launch& launch, const TensorMap* q_map, const TensorMap* k_map,
                                          Element* o, float* lse, Partials partials) {
  extern __shared__ unsigned char dynamic_shared[];
  const unsigned start = boxes_address(dynamic_shared);
  const LatentShared shared = {dynamic_shared + (start - shared_address(dynamic_shared)), start};
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const int lane = threadIdx.x % 32;
  if (WIDTH > 0) partials.parts = WIDTH;
  const unsigned part = blockIdx.x % partials.parts, local = blockIdx.x / partials.parts;
  const unsigned kv_head = blockIdx.y, batch = blockIdx.z;
  const bool copies = elect();

  if (warp == 0 && copies) {
    barrier_init(shared.q_full(), 1);
#pragma unroll
    for (int i = 0; i < LATENT_SLOTS; ++i) barrier_init(shared.full(i), 4);
    fence_barriers();
    prefetch_map(k_map);
    barrier_expect(shared.q_full(), D_BOXES * GROUP * 128);
#pragma unroll
    for (int c = 0; c < D_BOXES; ++c)
      copy_box(shared.q() + c * ROWS * 128, q_map, shared.q_full(), c * 64, local, kv_head * GROUP, batch);
  }
  const int query = launch.q_offset + static_cast<int>(local);
  const PerLaunch per_launch = per_launch_of(launch);
  Band list[@bands];
  write_bands(launch, per_launch, query / BLOCK, kv_head, list);
  const Bands bands = bands_of(launch, query / BLOCK, kv_head, batch, list);
  Tiles<LATENT_TILE> tiles(bands, query, lane, static_cast<int>(part), static_cast<int>(partials.parts));
  const unsigned long long heads =
      static_cast<unsigned long long>(batch) * static_cast<unsigned>(launch.kv_heads) + kv_head;
  if (WIDTH > 0) partials.at = reinterpret_cast<float*>(shared.bytes + LatentShared::TILES);
  else partials.select(heads * static_cast<unsigned>(launch.q_len) + local, part);
  // From here on, all warps see the barriers.
  __syncthreads();

  Ring<LATENT_SLOTS> ring;
  ring.slot = 0;
  ring.parity = 1;
#pragma unroll 1
  for (int i = 0; i < LATENT_SLOTS; ++i) {
    const Tile tile = tiles.next();
    if (tile.count > 0 && copies) copy_latents(shared, k_map, ring.slot, tile.key, warp, kv_head, batch);
    ring.advance(tile.count);
  }

  LatentPart found;
  const unsigned long long q = descriptor(shared.q(), 16, 1024), weights = descriptor(shared.weights(), 16, 1024);
  barrier_wait(shared.q_full(), 0);
#pragma unroll 1
  while (ring.counts[0] > 0) {
    // Find the next tile while the current one is being copied.
    const Tile next = tiles.next();
    const unsigned tile = shared.tile(ring.slot);
    const unsigned long long k = descriptor(tile, 16, 1024), v = descriptor(tile, LATENT_TILE * 128, 1024);
    float s[HEAD_TILES * 4];
    barrier_wait(shared.full(ring.slot), ring.parity);
    mma_fence();
#pragma unroll
    for (int t = 0; t < D_STEPS; ++t)
      mma_latent_scores(s, k + (t / 4 * LATENT_TILE * 128 + t % 4 * 32) / 16,
                        q + (t / 4 * ROWS * 128 + t % 4 * 32) / 16, t > 0);
    mma_commit();
    mma_wait<0>(s);
    weigh_latents(shared, launch, s, ring.counts[0], warp, lane, found);
    if (ring.counts[0] < LATENT_TILE) hide_latents(tile, ring.counts[0]);
    fence_copies();
    __syncthreads();
    mma_fence();
#pragma unroll
    for (int t = 0; t < LATENT_TILE / 16; ++t)
#pragma unroll
      for (int m = 0; m < V_COLUMNS / 64; ++m)
        mma_latent_values(found.o[m], v + (m * LATENT_TILE * 128 + t * 16 * 128) / 16, weights + t * 32 / 16, 1);
    mma_commit();
#pragma unroll
    for (int m = 0; m < V_COLUMNS / 64; ++m) mma_wait<0>(found.o[m]);
    // From here on the slot is free, and so are the weights.
    __syncthreads();
    if (next.count > 0 && copies) copy_latents(shared, k_map, ring.slot, next.key, warp, kv_head, batch);
    ring.advance(next.count);
  }
  keep_latents(shared, found, partials, warp, lane);
  if constexpr (WIDTH > 0) {
    lse += heads * static_cast<unsigned>(GROUP * launch.q_len) + local;
    o += static_cast<unsigned long long>(batch) * launch.o_batch +
         static_cast<unsigned long long>(kv_head * GROUP) * launch.o_head +
         static_cast<unsigned long long>(local) * launch.o_token;
    merge_latents<WIDTH>(launch, shared, kv_head, part, o, lse);
  }
}
