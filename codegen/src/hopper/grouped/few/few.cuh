// ---- A few rows of x times a weight ----

// The weight's part of a step: a lane's 16 bytes of two rows, and their factors.
struct Step {
  uint4 words[2];
  Factors factors;
};

// Two rows of the weight, and what a lane loads of them.
struct Rows {
  const Weight& weight;
  const FewShape& shape;
  int expert, lane;

  // Step `span` of rows `tile * 16 + lane / 4` and the eighth after it; rows beyond the last stand for the last one.
  __device__ __forceinline__ void load(Step& step, int tile, int span) const {
    const long long before = static_cast<long long>(expert) * shape.rows;
    const long long row = before + min(tile * 16 + lane / 4, shape.rows - 1);
    const long long other = before + min(tile * 16 + lane / 4 + 8, shape.rows - 1);
    const int k = span * SPAN + lane % 4 * ELEMENTS;
    if (COLUMNS % SPAN != 0 && k >= COLUMNS) {
      step = {};
      return;
    }
    const unsigned char* const from = weight.words + k / 8 * (128 / ELEMENTS);
    step.words[0] = load_words(from + row * ROW_BYTES);
    step.words[1] = load_words(from + other * ROW_BYTES);
    step.factors = load_factors(weight, shape.rows, expert, row, other, k);
  }
};

// Where a lane finds rows of x. A set of products has 8 columns: 8 / PARTS rows of x, each as often as a span has parts
// with scales of their own. Column `n` multiplies only lanes of part `n / (8 / PARTS)`, and has zeros for the others.
template <int SETS>
struct Columns {
  static constexpr int EACH = 8 / PARTS;
  unsigned first[SETS];
  int step[SETS];

  __device__ __forceinline__ Columns(unsigned zeros, unsigned x, int few, int lane) {
    const int n = lane / 4, part = lane % 4 * PARTS / 4;
#pragma unroll
    for (int set = 0; set < SETS; ++set) {
      const int row = set * EACH + n % EACH;
      const bool multiplies = n / EACH == part && row < few;
      first[set] = multiplies ? x + row * PITCH + lane % 4 * 16 : zeros + n % 2 * 64 + lane % 4 * 16;
      step[set] = multiplies ? SPAN * 2 : 0;
    }
  }
};

// Adds the products of a step.
template <int SETS>
__device__ __forceinline__ void multiply(float (&sums)[SETS][4], const Step& step, const Columns<SETS>& columns,
                                         int span) {
  float c[SETS][4] = {};
  float ones[SETS][4] = {};
#pragma unroll
  for (int p = 0; p < LANE_PIECES; ++p) {
    unsigned a[2][4];
    unpack_places(a[0], step.words[0], p);
    unpack_places(a[1], step.words[1], p);
#pragma unroll
    for (int set = 0; set < SETS; ++set) {
      const uint4 x = load_eight(columns.first[set] + span * columns.step[set] + p * 64);
      mma(c[set], a[0][0], a[1][0], a[0][1], a[1][1], x.x, x.y);
      mma(c[set], a[0][2], a[1][2], a[0][3], a[1][3], x.z, x.w);
      if (BIASED) {
        mma(ones[set], ONES, ONES, ONES, ONES, x.x, x.y);
        mma(ones[set], ONES, ONES, ONES, ONES, x.z, x.w);
      }
    }
  }
#pragma unroll
  for (int set = 0; set < SETS; ++set) add_scaled(sums[set], c[set], ones[set], step.factors);
}

// Floats from one column of a warp's sums to the next, of 16 rows: lanes write different banks.
constexpr int COLUMN = 20;

// Writes a warp's sums of `few` columns.
template <int SETS>
__device__ __forceinline__ void keep(float* to, float (&sums)[SETS][4], int few, int lane) {
  constexpr int each = 8 / PARTS;
#pragma unroll
  for (int set = 0; set < SETS; ++set) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // The sums of all parts.
#pragma unroll
      for (int apart = each / 2; apart < 4; apart *= 2) sums[set][i] += __shfl_xor_sync(~0u, sums[set][i], apart);
      const int n = lane % 4 * 2 + i % 2, column = set * each + n;
      if (n < each && column < few) to[column * COLUMN + i / 2 * 8 + lane / 4] = sums[set][i];
      sums[set][i] = 0.0f;
    }
  }
}

// The tiles of 16 rows that the warps of a workgroup multiply: SPLIT warps share a tile, each has every SPLIT-th span.
template <int SETS>
__device__ __forceinline__ void multiply_tiles(const FewShape& shape, const Weight& weight, int expert,
                                               const Element* x, Element* y, unsigned char* shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int share = warp % SPLIT, tile_of_group = warp / SPLIT;
  const int tiles = (shape.rows + 15) / 16;
  const int stride = gridDim.x * TILES;
  const int first_tile = blockIdx.x * TILES + tile_of_group;
  const int steps = (SPANS - share + SPLIT - 1) / SPLIT;
  int left = first_tile < tiles ? ((tiles - 1 - first_tile) / stride + 1) * steps : 0;

  const Rows rows = {weight, shape, expert, lane};
  int ahead_tile = first_tile, ahead_span = share;
  auto load_next = [&](Step& step) {
    rows.load(step, ahead_tile, ahead_span);
    ahead_span += SPLIT;
    if (ahead_span >= SPANS) {
      ahead_span = share;
      ahead_tile += stride;
    }
  };
  // More sets need more registers, and longer for a step.
  constexpr int depth = SETS == 1 ? 4 : BIASED ? 2 : 3;
  Step slots[depth];
#pragma unroll
  for (int d = 0; d < depth; ++d) {
    if (d < left) load_next(slots[d]);
  }

  // Meanwhile, x.
  float* const kept = reinterpret_cast<float*>(shared);
  const unsigned zeros = shared_address(shared + KEPT_BYTES), of_x = zeros + (ZEROS + 127) / 128 * 128;
  for (int i = threadIdx.x; i < ZEROS / 16; i += blockDim.x) store_eight(zeros + i * 16, {0, 0, 0, 0});
  copy_rows(of_x, x, shape.few);
  __syncthreads();
  const Columns<SETS> columns(zeros, of_x, shape.few, lane);

  float sums[SETS][4] = {};
  int tile = first_tile, span = share, turn = 0;
  while (left > 0) {
#pragma unroll
    for (int d = 0; d < depth; ++d) {
      if (left <= 0) break;
      const Step step = slots[d];
      if (left > depth) load_next(slots[d]);
      --left;
      multiply(sums, step, columns, span);
      span += SPLIT;
      if (span < SPANS) continue;
      // The tile's last step. Its sums alternate between two places, so that warps meet once for a tile.
      float* const of_tile = kept + (turn * WARPS + tile_of_group * SPLIT) * (8 * COLUMN);
      keep(of_tile + share * (8 * COLUMN), sums, shape.few, lane);
      if (SPLIT > 1) {
        meet(1 + tile_of_group, SPLIT * 32);
      } else {
        __syncwarp();
      }
#pragma unroll 1
      for (int i = share * 32 + lane; i < 16 * shape.few; i += SPLIT * 32) {
        const int row = tile * 16 + i % 16, at = i / 16 * COLUMN + i % 16;
        float sum = 0.0f;
#pragma unroll
        for (int from = 0; from < SPLIT; ++from) sum += of_tile[from * (8 * COLUMN) + at];
        const long long start = static_cast<long long>(i / 16) * shape.width + shape.column;
        if (row < shape.rows) y[start + row] = pack(sum * __uint_as_float(FACTOR), 0.0f);
      }
      turn ^= 1;
      span = share;
      tile += stride;
    }
  }
}

// With ids, workgroups of each pair multiply its row of x with the weight of its expert; without, all of them multiply
// the same rows of x with the one weight that there is.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
    butterfly_grouped_few(const Element* __restrict__ x, const unsigned char* __restrict__ words,
                          const unsigned char* __restrict__ scales, const unsigned char* __restrict__ biases,
                          const unsigned* __restrict__ ids, Element* __restrict__ y,
                          const __grid_constant__ FewShape shape) {
  extern __shared__ __align__(128) unsigned char dynamic_shared[];
  int expert = 0;
  long long row = shape.first, to = shape.first;
  if (shape.experts > 0) {
    to = blockIdx.y;
    row = to / shape.share;
    expert = min(ids[to], shape.experts - 1u);
  }
  x += row * COLUMNS;
  y += to * shape.width;
  const Weight weight = {words, scales, biases};
  if (shape.few <= 8 / PARTS) {
    multiply_tiles<1>(shape, weight, expert, x, y, dynamic_shared);
  } else {
    // As many rows as there are at most.
    multiply_tiles<PARTS == 1 ? 1 : 2>(shape, weight, expert, x, y, dynamic_shared);
  }
}
