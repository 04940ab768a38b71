// ---- One query and all q heads of a kv head: scores, softmax and output of some tiles ----
//
// The q heads are the rows of products of 16 rows. In the scores a warp has K_TILE / 4 of a
// tile's keys, in the output every fourth 8 columns; weights pass through shared memory.

// Shared memory, in bytes from `address`.
struct Shared {
  unsigned char* bytes;
  unsigned address;
  __device__ __forceinline__ unsigned q(int row) const { return address + row * Q_PITCH; }
  __device__ __forceinline__ unsigned k(int slot, int key) const {
    return address + SLOTS_AT + slot * SLOT_BYTES + key * Q_PITCH;
  }
  __device__ __forceinline__ unsigned v(int slot, int key) const {
    return k(slot, 0) + K_TILE * Q_PITCH + key * V_PITCH;
  }
  __device__ __forceinline__ unsigned weights(int row) const {
    return address + WEIGHTS_AT + row * WEIGHTS_PITCH;
  }
  // Each warp's largest logit of a row; later the sums of its weights.
  __device__ __forceinline__ float& of_warp(int warp, int row) const {
    return reinterpret_cast<float*>(bytes + WARPS_AT)[warp * ROWS + row];
  }
  // Largest logit and sum of weights of a row.
  __device__ __forceinline__ float2& of_row(int row) const {
    return reinterpret_cast<float2*>(bytes + ROWS_AT)[row];
  }
  // The output before it is divided by the sum, over the tiles, which are done with.
  __device__ __forceinline__ float& output(int row, int column) const {
    return reinterpret_cast<float*>(bytes + SLOTS_AT)[row * V_COLUMNS + column];
  }
};

// `count` of ROWS rows of COLUMNS elements, zeros after them.
template <int ROWS_COPIED, int COLUMNS, int PITCH>
__device__ __forceinline__ void copy_rows(unsigned to, const Element* from, unsigned stride, int count) {
  constexpr int PIECES = COLUMNS / 8;
  // No further, or the places of all pieces are kept in registers.
#pragma unroll 4
  for (int i = 0; i < (ROWS_COPIED * PIECES + THREADS - 1) / THREADS; ++i) {
    const int at = i * THREADS + threadIdx.x;
    const int row = at / PIECES;
    const int piece = at % PIECES;
    if (ROWS_COPIED * PIECES % THREADS == 0 || row < ROWS_COPIED) {
      const bool present = row < count;
      const long long offset = present ? static_cast<long long>(row) * stride + piece * 8 : 0;
      copy_piece(to + row * PITCH + piece * 16, from + offset, present);
    }
  }
}

// First of the 8 columns that a warp has in a tile of the output; the last tile may have too few
// for all warps.
__device__ __forceinline__ int column_of(int tile, int warp) { return (tile * 4 + warp) * 8; }

__device__ __forceinline__ bool has_columns(int tile, int warp) {
  return V_COLUMNS % 32 == 0 || column_of(tile, warp) < V_COLUMNS;
}

struct Part {
  // Rows `lane / 4` and that plus 8 of each 16.
  float top[ROW_TILES][2], sum[ROW_TILES][2];
  float o[ROW_TILES][COLUMN_TILES][4];
};

// What this block of threads finds in its tiles.
__device__ __forceinline__ void attend(const Shared& shared, const Launch& launch, Tiles& tiles,
                                       const Element* q, const Element* k, const Element* v,
                                       int warp, int lane, Part& part) {
  const float scale = @scale;
#pragma unroll
  for (int r = 0; r < ROW_TILES; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      part.top[r][h] = minus_infinity();
      part.sum[r][h] = 0.0f;
    }
#pragma unroll
    for (int c = 0; c < COLUMN_TILES; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i) part.o[r][c][i] = 0.0f;
  }

  // Counts of the tiles in the slots, the current one first.
  int counts[SLOTS];
  auto copy_tile = [&](int slot, int& count) {
    const Tile tile = tiles.next();
    count = tile.count;
    if (count > 0)
      copy_rows<K_TILE, D, Q_PITCH>(shared.k(slot, 0),
                                    k + static_cast<long long>(tile.key) * launch.k_token,
                                    launch.k_token, count);
    commit_copies();
    if (count > 0)
      copy_rows<K_TILE, V_COLUMNS, V_PITCH>(shared.v(slot, 0),
                                            v + static_cast<long long>(tile.key) * launch.v_token,
                                            launch.v_token, count);
    commit_copies();
  };

  copy_rows<ROWS, D, Q_PITCH>(shared.q(0), q, launch.q_head, GROUP);
#pragma unroll
  for (int i = 0; i < SLOTS; ++i) copy_tile(i, counts[i]);
  // Columns after D, which no copy fills.
  if (D % 16 != 0)
    for (int row = threadIdx.x; row < ROWS + SLOTS * K_TILE; row += THREADS) {
      const unsigned start = row < ROWS ? shared.q(row) : shared.k((row - ROWS) / K_TILE, (row - ROWS) % K_TILE);
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(start + D * 2), "r"(0) : "memory");
    }

  int slot = 0;
  while (counts[0] > 0) {
    wait_copies<2 * SLOTS - 1>();
    __syncthreads();
    // Scores of 16 rows and of 16 keys of this warp. Loads first, then products, in two sums that
    // do not wait for each other.
    float s[ROW_TILES][2][4] = {};
    float s_odd[ROW_TILES][2][4] = {};
#pragma unroll
    for (int t0 = 0; t0 < D_STEPS; t0 += 4) {
      unsigned a[4][ROW_TILES][4], b[4][4];
#pragma unroll
      for (int i = 0; i < 4 && t0 + i < D_STEPS; ++i) {
        const int t = t0 + i;
        load_matrices(b[i], shared.k(slot, warp * 16 + lane / 16 * 8 + lane % 8) + t * 32 + lane / 8 % 2 * 16);
#pragma unroll
        for (int r = 0; r < ROW_TILES; ++r)
          load_matrices(a[i][r], shared.q(r * 16 + lane % 16) + t * 32 + lane / 16 * 16);
      }
#pragma unroll
      for (int i = 0; i < 4 && t0 + i < D_STEPS; ++i)
#pragma unroll
        for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
          for (int n = 0; n < 2; ++n)
            mma(i % 2 ? s_odd[r][n] : s[r][n], a[i][r], b[i][2 * n], b[i][2 * n + 1]);
    }
#pragma unroll
    for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = warp * 16 + n * 8 + lane % 4 * 2 + i % 2;
          s[r][n][i] = key < counts[0] ? @logit : minus_infinity();
        }
#pragma unroll
    for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float most = fmaxf(fmaxf(s[r][0][h * 2], s[r][0][h * 2 + 1]), fmaxf(s[r][1][h * 2], s[r][1][h * 2 + 1]));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        if (lane % 4 == 0) shared.of_warp(warp, r * 16 + h * 8 + lane / 4) = most;
      }
    __syncthreads();

    float fade[ROW_TILES][2];
#pragma unroll
    for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = r * 16 + h * 8 + lane / 4;
        float top = part.top[r][h];
#pragma unroll
        for (int w = 0; w < 4; ++w) top = fmaxf(top, shared.of_warp(w, row));
        // A tile has a key, so that this is finite, unless a logit is not.
        const float base = top == minus_infinity() ? 0.0f : top;
        fade[r][h] = exp2_fast(part.top[r][h] - base);
        part.top[r][h] = top;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float x = exp2_fast(s[r][n][h * 2] - base);
          const float y = exp2_fast(s[r][n][h * 2 + 1] - base);
          sum += x + y;
          const unsigned to = shared.weights(row) + (warp * 16 + n * 8 + lane % 4 * 2) * 2;
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(pack(x, y)) : "memory");
        }
        part.sum[r][h] = part.sum[r][h] * fade[r][h] + sum;
      }
    wait_copies<2 * SLOTS - 2>();
    __syncthreads();

#pragma unroll
    for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
      for (int c = 0; c < COLUMN_TILES; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) part.o[r][c][i] *= fade[r][i / 2];
    // Both at once are too many registers for large outputs.
#pragma unroll 1
    for (int half = 0; half < K_TILE / 32; ++half) {
      unsigned p[ROW_TILES][2][4];
#pragma unroll
      for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
        for (int t = 0; t < 2; ++t)
          load_matrices(p[r][t], shared.weights(r * 16 + lane % 16) + half * 64 + t * 32 + lane / 16 * 16);
#pragma unroll
      for (int c0 = 0; c0 < COLUMN_TILES; c0 += 4) {
        unsigned b[4][4];
#pragma unroll
        for (int i = 0; i < 4 && c0 + i < COLUMN_TILES; ++i)
          if (has_columns(c0 + i, warp))
            load_transposed(b[i], shared.v(slot, half * 32 + lane) + column_of(c0 + i, warp) * 2);
#pragma unroll
        for (int t = 0; t < 2; ++t)
#pragma unroll
          for (int i = 0; i < 4 && c0 + i < COLUMN_TILES; ++i)
            if (has_columns(c0 + i, warp))
#pragma unroll
              for (int r = 0; r < ROW_TILES; ++r) mma(part.o[r][c0 + i], p[r][t], b[i][2 * t], b[i][2 * t + 1]);
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i + 1 < SLOTS; ++i) counts[i] = counts[i + 1];
    copy_tile(slot, counts[SLOTS - 1]);
    if (++slot == SLOTS) slot = 0;
  }
}
