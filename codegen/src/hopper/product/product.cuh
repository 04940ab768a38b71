// ---- Work: tiles of the output, in strips of rows (BAND) so that thread blocks share a and b ----

// c is [m, n]: products, as they are or as floats of 32 bits, of a weight b with n rows. GATED, b has 2 n rows, and row i
// gates row n + i. There are `count` such products, and `c_apart` elements from one c to the next.
struct alignas(8) Shape { int m, n, k, c_row, written, count, c_apart; };
constexpr int GATED = 1, WIDE = 2;
struct Tile { int which, m, n; };

// Columns of c in a tile. A tile has as many rows of b with a gate as without, of which half are gates.
__device__ __forceinline__ int width_of(const Shape& shape) { return shape.written == GATED ? N_TILE / 2 : N_TILE; }

__device__ __forceinline__ int columns_of(const Shape& shape) {
  return (shape.n + width_of(shape) - 1) / width_of(shape);
}

__device__ __forceinline__ int tiles_of_each(const Shape& shape) {
  return (shape.m + M_TILE - 1) / M_TILE * columns_of(shape);
}

__device__ __forceinline__ int tiles_of(const Shape& shape) { return shape.count * tiles_of_each(shape); }

__device__ __forceinline__ Tile tile_at(const Shape& shape, int job) {
  const int which = job / tiles_of_each(shape), index = job % tiles_of_each(shape);
  const int rows = (shape.m + M_TILE - 1) / M_TILE;
  const int columns = columns_of(shape);
  const int band = index / (TILES_IN_A_BAND * columns);
  const int first = band * TILES_IN_A_BAND;
  const int height = min(TILES_IN_A_BAND, rows - first);
  const int within = index - band * TILES_IN_A_BAND * columns;
  return {which, (first + within % height) * M_TILE, within / height * width_of(shape)};
}

// ---- Producer ----

__device__ __forceinline__ void produce(const Shape& shape, Ring ring, const TensorMap* a_map,
                                        const TensorMap* b_map) {
  // A tile of b is two boxes: neighbours, or gates and what they gate.
  const int apart = shape.written == GATED ? shape.n : N_TILE / 2;
  for (int i = blockIdx.x; i < tiles_of(shape); i += gridDim.x) {
    const Tile tile = tile_at(shape, i);
    for (int k = 0; k < shape.k; k += K_TILE) {
      barrier_wait(ring.empty(), ring.phase ^ 1);
      barrier_expect(ring.full(), SLOT_BYTES);
      copy_box(ring.a(), a_map, ring.full(), k, tile.m, tile.which, 0);
      copy_box(ring.b(), b_map, ring.full(), k, tile.n, tile.which, 0);
      copy_box(ring.b() + N_TILE / 2 * 128, b_map, ring.full(), k, tile.n + apart, tile.which, 0);
      ring.advance();
    }
  }
}

// ---- Consumer: 64 rows of each tile ----

// Multiplies the second half of the columns with the activation of the first, and stores that, or all columns.
template <bool gated>
__device__ __forceinline__ void store_tile(const Shape& shape, const Tile& tile, int consumer,
                                           const float (&c)[N_TILE / 2], Element* output) {
  constexpr int WIDTH = gated ? N_TILE / 2 : N_TILE;
  const int warp = threadIdx.x / 32 % 4;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = tile.m + consumer * 64 + warp * 16 + r * 8 + lane / 4;
    Element* const to = output + static_cast<long long>(tile.which) * shape.c_apart + static_cast<long long>(row) * shape.c_row;
    // 32 columns at a time, so that each lane has 16 consecutive bytes of its row.
#pragma unroll
    for (int j = 0; j < WIDTH / 32; ++j) {
      unsigned x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = stored<gated>(c, (j * 4 + i) * 4 + r * 2);
      transpose_quad(x, lane);
      const int column = tile.n + j * 32 + lane % 4 * 8;
      if (row < shape.m) {
        if (column + 8 <= shape.n) {
          store_pieces(to + column, x);
        } else {
#pragma unroll
          for (int i = 0; i < 8; ++i)
            if (column + i < shape.n)
              to[column + i] = static_cast<Element>(x[i / 2] >> (i % 2 * 16));
        }
      }
    }
  }
}

// Stores all columns in 32 bits: four lanes have 32 consecutive bytes of a row.
__device__ __forceinline__ void store_wide(const Shape& shape, const Tile& tile, int consumer,
                                           const float (&c)[N_TILE / 2], float* output) {
  const int warp = threadIdx.x / 32 % 4;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = tile.m + consumer * 64 + warp * 16 + r * 8 + lane / 4;
    float* const to = output + static_cast<long long>(tile.which) * shape.c_apart + static_cast<long long>(row) * shape.c_row;
    if (row >= shape.m) continue;
#pragma unroll
    for (int j = 0; j < N_TILE / 8; ++j) {
      const int column = tile.n + j * 8 + lane % 4 * 2;
      if (column < shape.n) to[column] = c[j * 4 + r * 2];
      if (column + 1 < shape.n) to[column + 1] = c[j * 4 + r * 2 + 1];
    }
  }
}

__device__ __forceinline__ void consume(const Shape& shape, Ring ring, int consumer,
                                        Element* output) {
  const int lane = threadIdx.x % 32;
  float c[N_TILE / 2];
  auto release = [&](unsigned barrier) {
    __syncwarp();
    if (lane == 0) barrier_arrive(barrier);
  };
  for (int i = blockIdx.x; i < tiles_of(shape); i += gridDim.x) {
    const Tile tile = tile_at(shape, i);
    unsigned before = 0;
    for (int k = 0; k < shape.k; k += K_TILE) {
      barrier_wait(ring.full(), ring.phase);
      const unsigned long long a = descriptor(ring.a() + consumer * 64 * 128, 16, 1024);
      const unsigned long long b = descriptor(ring.b(), 16, 1024);
      mma_fence();
#pragma unroll
      for (int t = 0; t < K_TILE / 16; ++t)
        mma_rows(c, a + t * 32 / 16, b + t * 32 / 16, k > 0 || t > 0);
      mma_commit();
      // When only this slot's products are in flight, the slot before can be released.
      asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
      if (k > 0) release(before);
      before = ring.empty();
      ring.advance();
    }
    mma_wait<0>(c);
    release(before);
    if (shape.written == GATED) store_tile<true>(shape, tile, consumer, c, output);
    else if (shape.written == WIDE) store_wide(shape, tile, consumer, c, reinterpret_cast<float*>(output));
    else store_tile<false>(shape, tile, consumer, c, output);
  }
}

// ---- Entry: roles ----

extern "C" __global__ void __launch_bounds__(384, 1)
    butterfly_product(const __grid_constant__ TensorMap a_map,
                      const __grid_constant__ TensorMap b_map, const void*, const void*,
                      Element* __restrict__ c, const __grid_constant__ Shape shape) {
  extern __shared__ unsigned char dynamic_shared[];
  Ring ring;
  ring.address = boxes_address(dynamic_shared);

  if (threadIdx.x == 0) {
    for (int i = 0; i < SLOTS; ++i) {
      barrier_init(ring.full(), 1);
      barrier_init(ring.empty(), 8);
      ring.advance();
    }
    fence_barriers();
    asm volatile("fence.proxy.async;" ::: "memory");
    prefetch_map(&a_map);
    prefetch_map(&b_map);
  }
  ring.index = 0;
  ring.phase = 0;
  __syncthreads();

  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) produce(shape, ring, &a_map, &b_map);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    consume(shape, ring, threadIdx.x / 128 - 1, c);
  }
}
