// ---- A job: one query and one kv head of a sequence, computed by WIDTH thread blocks ----

// A shorter sequence than the longest has its queries, and the end of its keys, so much earlier.
__device__ __forceinline__ void apply_lag(Launch& launch, const Parameters& parameters) {
  const unsigned lag = blockIdx.z < MOST_LAGS ? parameters.words[LAGS_AT + blockIdx.z] : 0;
  launch.q_offset -= lag;
  launch.kv_len -= lag;
}

// With a WIDTH of 0 any number of thread blocks computes it, and leaves its results in `partials`.
template <int WIDTH>
__device__ __forceinline__ void take_job(const Launch& launch, const TensorMap* q_map,
                                         const TensorMap* k_map, const TensorMap* v_map, Element* o,
                                         float* lse, Partials partials) {
  extern __shared__ unsigned char dynamic_shared[];
  const unsigned start = boxes_address(dynamic_shared);
  const Shared shared = {dynamic_shared + (start - shared_address(dynamic_shared)), start};
  // Through `__shfl_sync`, so that the compiler knows that it is the same in all lanes.
  const int of_block = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const int team = of_block / TEAM;
  const int warp = of_block % TEAM;
  const int lane = threadIdx.x % 32;
  const unsigned width = WIDTH > 0 ? WIDTH : partials.parts;
  const unsigned part = blockIdx.x % width, local = blockIdx.x / width;
  const unsigned kv_head = blockIdx.y, batch = blockIdx.z;

  // Each team initialises its own barriers. Queries are copied first, because they are needed first.
  if (warp == 0 && elect()) {
    if (team == 0) barrier_init(shared.q_full(), 1);
#pragma unroll
    for (int i = 0; i < SLOTS; ++i) {
      barrier_init(shared.k_full(team, i), 1);
      barrier_init(shared.v_full(team, i), 1);
    }
    fence_barriers();
    prefetch_map(k_map);
    prefetch_map(v_map);
    if (team == 0) {
      barrier_expect(shared.q_full(), D_BOXES * GROUP * 128);
#pragma unroll
      for (int c = 0; c < D_BOXES; ++c)
        copy_box(shared.q() + c * ROWS * 128, q_map, shared.q_full(), c * 64, local, kv_head * GROUP, batch);
    }
  }

  const int query = launch.q_offset + static_cast<int>(local);
  const PerLaunch per_launch = per_launch_of(launch);
  Band list[@bands];
  write_bands(launch, per_launch, query / BLOCK, kv_head, list);
  const Bands bands = bands_of(launch, query / BLOCK, kv_head, batch, list);
  Tiles<K_TILE> tiles(bands, query, lane, static_cast<int>(part) * TEAMS + team, static_cast<int>(width) * TEAMS);
  const Keys keys = {k_map, v_map, static_cast<int>(kv_head), static_cast<int>(batch)};
  Ring<SLOTS> ring = first_tiles(shared, tiles, keys, team, warp);

  // Computes addresses while the copies are in flight. Without the asm statement, the compiler would
  // leave this for the end.
  const unsigned long long heads =
      static_cast<unsigned long long>(batch) * static_cast<unsigned>(launch.kv_heads) + kv_head;
  if (WIDTH == 0) partials.select(heads * static_cast<unsigned>(launch.q_len) + local, part);
  lse += heads * static_cast<unsigned>(GROUP * launch.q_len) + local;
  o += static_cast<unsigned long long>(batch) * launch.o_batch +
       static_cast<unsigned long long>(kv_head * GROUP) * launch.o_head +
       static_cast<unsigned long long>(local) * launch.o_token;
  asm volatile("" : "+l"(o), "+l"(lse));
  // From here on, the whole thread block sees the barriers.
  __syncthreads();

  Part found;
  attend(shared, launch, ring, tiles, keys, team, warp, lane, found);
  leave(shared, found, team, warp, lane);
  __syncthreads();
  if constexpr (WIDTH > 0) merge<WIDTH>(launch, shared, kv_head, part, o, lse);
  else keep(shared, partials);
}
