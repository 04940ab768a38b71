// ---- A few rows of x times a weight ----

// Where a lane finds rows of x. A set of products has 8 columns: 8 / PARTS rows of x, each as often as a step has parts
// with scales of their own. Column `n` multiplies only lanes of part `n / (8 / PARTS)`, and has zeros for the others. The
// last row stands for those beyond it, whose products are not stored.
template <int SETS>
struct Columns {
  static constexpr int EACH = 8 / PARTS;
  unsigned first[SETS];
  int step;

  __device__ __forceinline__ Columns(unsigned zeros, unsigned x, int few, int lane) {
    const int n = lane / 4;
    const bool multiplies = PARTS == 1 || n / EACH == lane % 4 * PARTS / 4;
    step = multiplies ? SPAN * 2 : 0;
#pragma unroll
    for (int set = 0; set < SETS; ++set) {
      const int row = min(set * EACH + n % EACH, few - 1);
      first[set] = (multiplies ? x + row * PITCH : zeros + n % 2 * 64) + lane % 4 * 16;
    }
  }
};

// Where the sums of x are in step `step` of set `set`, in all 8 columns.
__device__ __forceinline__ unsigned ones_at(unsigned ones, int set, int step) { return ones + (set * STEPS + step) * 32; }

// Adds x up, for the biases of integers and their OFFSET.
template <int SETS>
__device__ __forceinline__ void add_up(unsigned ones, const Columns<SETS>& columns, int warp, int lane) {
  for (int step = warp; step < STEPS; step += WARPS) {
#pragma unroll
    for (int set = 0; set < SETS; ++set) {
      float c[4] = {};
#pragma unroll
      for (int p = 0; p < LANE_PIECES; ++p) {
        const uint4 x = load_eight(columns.first[set] + step * columns.step + p * 64);
        mma(c, ONES, ONES, ONES, ONES, x.x, x.y);
        mma(c, ONES, ONES, ONES, ONES, x.z, x.w);
      }
      if (lane < 4) store_pair(ones_at(ones, set, step) + lane * 8, c[0], c[1]);
    }
  }
}

// A lane's 16 bytes of two rows of the weight, in a step, and their factors.
struct Pieces {
  uint4 words[2];
  Factors factors;
};

// Adds the products of a step.
template <int SETS>
__device__ __forceinline__ void multiply(float (&sums)[SETS][4], const Pieces& pieces, const Columns<SETS>& columns,
                                         unsigned ones, int step, int lane) {
  float c[SETS][4] = {};
#pragma unroll
  for (int p = 0; p < LANE_PIECES; ++p) {
    unsigned a[2][4];
    unpack_places(a[0], pieces.words[0], p);
    unpack_places(a[1], pieces.words[1], p);
#pragma unroll
    for (int set = 0; set < SETS; ++set) {
      const uint4 x = load_eight(columns.first[set] + step * columns.step + p * 64);
      mma(c[set], a[0][0], a[1][0], a[0][1], a[1][1], x.x, x.y);
      mma(c[set], a[0][2], a[1][2], a[0][3], a[1][3], x.z, x.w);
    }
  }
#pragma unroll
  for (int set = 0; set < SETS; ++set) {
    float2 of_x = {0.0f, 0.0f};
    if (BIASED) of_x = load_pair(ones_at(ones, set, step) + lane % 4 * 8);
    add_scaled(sums[set], c[set], of_x, pieces.factors);
  }
}

// Floats from one column of a warp's sums to the next, of 16 rows: lanes write different banks.
constexpr int COLUMN = 20;
// Where the sum of row `i % 16` and column `i / 16` is.
__device__ __forceinline__ unsigned place_of(int i) { return (i / 16 * COLUMN + i % 16) * 4; }
// Bytes of a warp's sums.
constexpr int OF_WARP = 8 * COLUMN * 4;

// Writes a warp's sums of `few` columns.
template <int SETS>
__device__ __forceinline__ void keep(unsigned to, float (&sums)[SETS][4], int few, int lane) {
  constexpr int each = 8 / PARTS;
#pragma unroll
  for (int set = 0; set < SETS; ++set) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // The sums of all parts.
#pragma unroll
      for (int apart = each / 2; apart < 4; apart *= 2) sums[set][i] += __shfl_xor_sync(~0u, sums[set][i], apart);
      const int n = lane % 4 * 2 + i % 2, column = set * each + n;
      if (n < each && column < few) store_one(to + (column * COLUMN + i / 2 * 8 + lane / 4) * 4, sums[set][i]);
      sums[set][i] = 0.0f;
    }
  }
}

// Multiplies what is in the ring. SPLIT warps share a tile of 16 rows, each has every SPLIT-th step.
template <int SETS>
__device__ __forceinline__ void multiply_stages(const FewShape& shape, Stages stages, const Halves& halves, int expert,
                                                const Columns<SETS>& columns, unsigned kept, unsigned ones, Element* y) {
  // Steps of a stage that a warp has, at most, and sums of a tile that a thread stores.
  constexpr int EACH = (CHUNK + SPLIT - 1) / SPLIT;
  constexpr int OUT = (16 * 8 + SPLIT * 32 - 1) / (SPLIT * 32);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int share = warp % SPLIT, tile = warp / SPLIT;
  const int row = tile * 16 + lane / 4;
  float sums[SETS][4] = {};
  int turn = 0, of_half = 0;
  for (int first = blockIdx.x * STAGE_ROWS; first < shape.rows;) {
    const Half half(shape, halves, of_half);
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      const int steps = min(CHUNK, STEPS - chunk * CHUNK);
      Pieces pieces[EACH];
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const int step = min(share + i * SPLIT, steps - 1);
        load_factors(pieces[i].factors, half, expert, first + tile * 16, chunk * CHUNK + step);
      }
      barrier_wait(stages.full(), stages.phase);
      auto take = [&](int i) {
        const int step = share + i * SPLIT;
        if (step < steps) {
          const unsigned from = stages.words() + row * WORDS_PITCH + step * 64 + lane % 4 * 16;
          pieces[i].words[0] = load_eight(from);
          pieces[i].words[1] = load_eight(from + 8 * WORDS_PITCH);
          find_factors(pieces[i].factors, stages, row, chunk, step, lane);
        }
        if (i + 1 < EACH) return;
        __syncwarp();
        if (lane == 0) barrier_arrive(stages.empty());
      };
      // Of one set all pieces are taken at once; more sets leave no registers for that.
      if (SETS == 1) {
#pragma unroll
        for (int i = 0; i < EACH; ++i) take(i);
      }
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const int step = share + i * SPLIT;
        if (SETS > 1) take(i);
        if (step < steps) multiply(sums, pieces[i], columns, ones, chunk * CHUNK + step, lane);
      }
      stages.advance();
    }
    // Sums alternate between two places, so that warps meet once for a tile.
    const unsigned of_tile = kept + (turn * WARPS + tile * SPLIT) * OF_WARP;
    keep(of_tile + share * OF_WARP, sums, shape.few, lane);
    // Gates take the place of the sums that they are made of. They are read before warps meet: the next tile's sums of
    // a warp that goes on can overwrite them then.
    const unsigned of_gates = kept + ((turn ^ 1) * WARPS + tile * SPLIT) * OF_WARP;
    float gates[OUT];
#pragma unroll
    for (int n = 0; n < OUT; ++n) gates[n] = of_half == 1 ? load_one(of_gates + place_of((n * SPLIT + share) * 32 + lane)) : 0.0f;
    if (SPLIT > 1) {
      meet(1 + tile, SPLIT * 32);
    } else {
      __syncwarp();
    }
    const bool stores = of_half + 1 == halves_of(shape);
#pragma unroll
    for (int n = 0; n < OUT; ++n) {
      const int i = (n * SPLIT + share) * 32 + lane;
      if (i >= 16 * shape.few) break;
      const int of_weight = first + tile * 16 + i % 16;
      const unsigned at = of_tile + place_of(i);
      float sum = 0.0f;
#pragma unroll
      for (int from = 0; from < SPLIT; ++from) sum += load_one(at + from * OF_WARP);
      sum *= __uint_as_float(FACTOR);
      if (of_half == 1) sum *= gates[n];
      else if (!stores) store_one(at, silu(sum));
      const long long start = static_cast<long long>(i / 16) * shape.width + shape.column;
      if (stores && of_weight < shape.rows) y[start + of_weight] = pack(sum, 0.0f);
    }
    turn ^= 1;
    of_half = stores ? 0 : 1;
    if (stores) first += gridDim.x * STAGE_ROWS;
  }
}

// The warps that multiply: they put rows of x where they find them while the first stages are on their way.
template <int SETS, typename Given>
__device__ __forceinline__ void consume(const FewShape& shape, const Stages& stages, const Halves& halves, int expert,
                                        unsigned kept, unsigned zeros, unsigned ones, unsigned of_x, const Given& given,
                                        const typename Given::Early& early, Element* y) {
  const int lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < ZEROS / 16; i += WARPS * 32) store_eight(zeros + i * 16, {0, 0, 0, 0});
  given.fill(of_x, kept, shape.few, early);
  meet(1, WARPS * 32);
  const Columns<SETS> columns(zeros, of_x, shape.few, lane);
  if (BIASED) {
    add_up(ones, columns, threadIdx.x / 32, lane);
    meet(1, WARPS * 32);
  }
  multiply_stages(shape, stages, halves, expert, columns, kept, ones, y);
}

// Multiplies the rows that are `given` with the weight, or with that of an expert. Two warps of the last warpgroup fill
// the ring. What is read `early` is on its way before them: once all workgroups fill their rings, a load that misses the
// L2 cache waits for microseconds.
template <typename Given>
__device__ __forceinline__ void multiply_few(const FewShape& shape, const Halves& halves, int expert, const Given& given,
                                             Element* y) {
  extern __shared__ __align__(128) unsigned char dynamic_shared[];
  const unsigned shared = shared_address(dynamic_shared);
  const unsigned zeros = shared + KEPT_BYTES;
  const unsigned barriers = zeros + (ZEROS + 127) / 128 * 128;
  const unsigned ones = barriers + MOST_STAGES * 16;
  const unsigned of_x = ones + ONES_BYTES;
  const unsigned of_stages = of_x + (shape.few * PITCH + 127) / 128 * 128;
  const int room = (SHARED_BYTES - static_cast<int>(of_stages - shared)) / STAGE_BYTES;
  const Stages stages = {of_stages, barriers, min(room, MOST_STAGES)};
  typename Given::Early early;
  if (threadIdx.x < WARPS * 32) given.begin(early);
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages.count; ++i) {
      barrier_init(barriers + i * 16, FILLED_BY);
      barrier_init(barriers + i * 16 + 8, WARPS);
    }
    fence_barriers();
  }
  __syncthreads();

  // Registers of the five warpgroups are together no more than those that the launch has: 4 * 104 + 56 <= 5 * 96.
  if (threadIdx.x >= WARPS * 32) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    const int warp = threadIdx.x / 32 - WARPS;
    if (warp == 0) fill_words(shape, stages, halves, expert);
    if (warp == 1 && TENSORS > 0) fill_scales(shape, stages, halves, expert);
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 104;");
  if (shape.few <= 8 / PARTS) {
    consume<1>(shape, stages, halves, expert, shared, zeros, ones, of_x, given, early, y);
  } else {
    // As many rows as there are at most.
    consume<PARTS == 1 ? 1 : 2>(shape, stages, halves, expert, shared, zeros, ones, of_x, given, early, y);
  }
}
