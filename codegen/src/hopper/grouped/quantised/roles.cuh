// ---- Producer: a thread that copies boxes of 64 rows ----

// Rows of an expert in a weight.
__device__ __forceinline__ int of_expert(const Shape& shape) {
  return shape.gates == TOGETHER ? 2 * shape.rows : shape.rows;
}

// A tile's rows of the weight are two boxes: neighbours, or gates and what they gate. How many rows the second one is
// behind the first, or 0 if it is of the other weight.
__device__ __forceinline__ int distance(const Shape& shape) {
  return shape.gates == TOGETHER ? shape.rows : shape.gates == APART ? 0 : N_TILE / 2;
}

__device__ __forceinline__ void produce(const Shape& shape, Ring ring, const Lists& lists, const TensorMap* a_map,
                                        const TensorMap* b_map, const TensorMap* other_map) {
  Tile tile;
  for (int index = blockIdx.x; tile_at(shape, lists, index, tile); index += gridDim.x) {
    // All 64 rows of a box are copied, though the last ones may be pairs of the next expert.
    const bool two = tile.pairs > 64;
    const int row = tile.expert * of_expert(shape) + tile.first_row;
#pragma unroll 1
    for (int step = 0; step < STEPS; ++step) {
      barrier_wait(ring.empty(), ring.phase ^ 1);
      barrier_expect(ring.full(), (two ? 4 : 3) * BOX_BYTES);
      // The maps count pairs of bytes.
      const int column = step * 64;
      copy_box(ring.a(), a_map, ring.full(), column, tile.first_pair, 0, 0);
      if (two) copy_box(ring.a() + BOX_BYTES, a_map, ring.full(), column, tile.first_pair + 64, 0, 0);
      copy_box(ring.b(), b_map, ring.full(), column, row, 0, 0);
      copy_box(ring.b() + BOX_BYTES, other_map, ring.full(), column, row + distance(shape), 0, 0);
      ring.advance();
    }
  }
}

// ---- Consumers: warpgroups that have 64 pairs of each tile, and multiply the same rows of the weight ----

// Writes the products of 64 pairs, or those of the second half of the columns times silu of those of the first. Rows of
// the weight are a multiple of 8, so that 16 bytes exist as a whole or not at all.
template <bool GATED>
__device__ __forceinline__ void store_tile(const Shape& shape, const Lists& lists, const Tile& tile, int first,
                                           const float (&c)[N_TILE / 2], Element* y) {
  constexpr int WIDTH = GATED ? N_TILE / 2 : N_TILE;
  const int warp = threadIdx.x / 32 % 4;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first + warp * 16 + r * 8 + lane / 4;
    const bool exists = row < tile.pairs;
    const int place = tile.first_pair + row;
    const long long pair = exists && shape.scattered ? lists.order[place] : place;
    Element* const to = y + pair * shape.width + shape.column;
    // 32 columns at a time: lanes exchange theirs, so that each has 16 consecutive bytes.
#pragma unroll
    for (int j = 0; j < WIDTH / 32; ++j) {
      unsigned x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = stored<GATED>(c, (j * 4 + i) * 4 + r * 2);
      transpose_quad(x, lane);
      const int column = tile.first_row + j * 32 + lane % 4 * 8;
      if (exists && column + 8 <= shape.rows) store_pieces(to + column, x);
    }
  }
}

// Says for a warp that it has read a slot.
__device__ __forceinline__ void release(unsigned barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

// The factors of rows of x [STEPS, pairs], and of squares of the weights of both boxes.
struct Factors {
  const float* x;
  const unsigned char* weights[2];
};

// The factors of the thread's two rows, and of the squares of both halves of the columns.
struct Scales { float rows[2], squares[2]; };

// Products of one step, what they are scaled by, and the barrier that says that their slot is free.
struct Products {
  float c[N_TILE / 2];
  Scales scales;
  unsigned barrier;
};

// What a consumer adds up for a tile: where factors of its rows are, and those of squares.
struct Sums {
  const Factors& factors;
  int pairs, consumer;
  int rows[2], squares[2];
  float sums[N_TILE / 2];
  Scales next;

  // Has the factors of a step loaded, long before they are needed.
  __device__ __forceinline__ void load(int step) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      next.rows[i] = __ldg(factors.x + step * pairs + rows[i]);
      next.squares[i] = number(factors.weights[i], squares[i] + step);
    }
  }

  // Starts the products of a step.
  __device__ __forceinline__ void start(Products& products, Ring& ring, int step) {
    products.scales = next;
    load(min(step + 1, STEPS - 1));
    barrier_wait(ring.full(), ring.phase);
    const unsigned long long a = descriptor(ring.a() + consumer * BOX_BYTES, 16, 1024);
    const unsigned long long b = descriptor(ring.b(), 16, 1024);
    mma_fence();
#pragma unroll
    for (int t = 0; t < 4; ++t) mma_rows(products.c, a + t * 32 / 16, b + t * 32 / 16, t > 0);
    mma_commit();
    products.barrier = ring.empty();
    ring.advance();
  }

  __device__ __forceinline__ void add(const Products& products) {
    release(products.barrier);
#pragma unroll
    for (int i = 0; i < N_TILE / 2; ++i)
      sums[i] += products.c[i] * (products.scales.rows[i / 2 % 2] * products.scales.squares[i / (N_TILE / 4)]);
  }

  // Adds up COUNT steps from `first` on. While products of a step are added, those of the next one are in flight. None
  // are at the end: the compiler would wait for products that a loop leaves in flight at once.
  template <int COUNT>
  __device__ __forceinline__ void run(Ring& ring, int first) {
    Products two[2];
    start(two[0], ring, first);
#pragma unroll
    for (int i = 1; i < COUNT; ++i) {
      start(two[i % 2], ring, first + i);
      mma_wait<1>(two[(i - 1) % 2].c);
      add(two[(i - 1) % 2]);
    }
    mma_wait<0>(two[(COUNT - 1) % 2].c);
    add(two[(COUNT - 1) % 2]);
  }
};

__device__ __forceinline__ void consume(const Shape& shape, Ring ring, const Lists& lists, int consumer,
                                        const Factors& factors, Element* y) {
  const int warp = threadIdx.x / 32 % 4;
  const int lane = threadIdx.x % 32;
  const int down = (of_expert(shape) + GROUP - 1) / GROUP;
  Tile tile;
  for (int index = blockIdx.x; tile_at(shape, lists, index, tile); index += gridDim.x) {
    if (consumer * 64 >= tile.pairs) {
      // Without pairs of its own, a consumer only takes part in releasing slots.
      for (int step = 0; step < STEPS; ++step) {
        barrier_wait(ring.full(), ring.phase);
        release(ring.empty());
        ring.advance();
      }
      continue;
    }
    Sums of = {factors, shape.pairs, consumer};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = consumer * 64 + warp * 16 + i * 8 + lane / 4;
      of.rows[i] = tile.first_pair + min(row, tile.pairs - 1);
      of.squares[i] = (tile.expert * down + min((tile.first_row + i * distance(shape)) / GROUP, down - 1)) * STEPS;
    }
#pragma unroll
    for (int i = 0; i < N_TILE / 2; ++i) of.sums[i] = 0;
    of.load(0);
#pragma unroll 1
    for (int step = 0; step + RUN <= STEPS; step += RUN) of.run<RUN>(ring, step);
    if constexpr (STEPS % RUN > 0) of.run<STEPS % RUN>(ring, STEPS / RUN * RUN);
    if (shape.gates) store_tile<true>(shape, lists, tile, consumer * 64, of.sums, y);
    else store_tile<false>(shape, lists, tile, consumer * 64, of.sums, y);
  }
}
