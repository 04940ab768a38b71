// ---- Consumers: warpgroups that have 64 pairs of each tile, and multiply the same rows of the weight ----

// Writes the products of the warpgroup's pairs, each to its own row of y. Rows of the weight are a multiple of 8, so
// that 16 bytes exist as a whole or not at all.
__device__ __forceinline__ void store_tile(const Shape& shape, const Lists& lists, const Tile& tile, int consumer,
                                           const float (&c)[2][N_TILE / 4], Element* y) {
  const int warp = threadIdx.x / 32 % 4;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = consumer * 64 + warp * 16 + r * 8 + lane / 4;
    const bool exists = row < tile.pairs;
    const long long pair = exists ? lists.order[tile.first_pair + row] : 0;
    Element* const to = y + pair * shape.width + shape.column;
    // 32 columns at a time: lanes exchange theirs, so that each has 16 consecutive bytes.
#pragma unroll
    for (int j = 0; j < N_TILE / 32; ++j) {
      unsigned x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = (j * 4 + i) * 4 + r * 2;
        x[i] = pack(c[at / (N_TILE / 4)][at % (N_TILE / 4)], c[at / (N_TILE / 4)][at % (N_TILE / 4) + 1]);
      }
      transpose_quad(x, lane);
      const int column = tile.first_row + j * 32 + lane % 4 * 8;
      if (exists && column + 8 <= shape.rows) store_pieces(to + column, x);
    }
  }
}

__device__ __forceinline__ void consume(const Shape& shape, Ring ring, const Lists& lists, int consumer, Element* y) {
  const int lane = threadIdx.x % 32;
  // The products with each half of the rows: an instruction for all of them would need more registers than a thread of
  // four warpgroups may have.
  float c[2][N_TILE / 4];
  auto release = [&](unsigned barrier) {
    __syncwarp();
    if (lane == 0) barrier_arrive(barrier);
  };
  Tile tile;
  for (int index = blockIdx.x; tile_at(shape, lists, index, tile); index += gridDim.x) {
    unsigned before = 0;
    for (int k = 0; k < COLUMNS; k += K_TILE) {
      barrier_wait(ring.full(), ring.phase);
      const unsigned long long a = descriptor(ring.a() + consumer * 64 * 128, 16, 1024);
      const unsigned long long b = descriptor(ring.b(), 16, 1024);
      mma_fence();
#pragma unroll
      for (int t = 0; t < K_TILE / 16; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
          mma_rows(c[half], a + t * 32 / 16, b + (half * N_TILE / 2 * 128 + t * 32) / 16, k > 0 || t > 0);
      }
      mma_commit();
      // Once no products but this slot's are in flight, the slot before it is free.
      asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
      if (k > 0) release(before);
      before = ring.empty();
      ring.advance();
    }
    mma_wait<0>(c[0]);
    mma_wait<0>(c[1]);
    release(before);
    store_tile(shape, lists, tile, consumer, c, y);
  }
}
