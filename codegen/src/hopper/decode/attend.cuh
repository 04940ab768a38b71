// ---- One query and all q heads of a kv head: scores, softmax and output of some tiles ----
//
// A team, one warp or all, takes tiles of 16 keys, and waits for no other team. The q heads are the rows of
// products of 16 rows. Every warp of a team has all scores, and a share of the output's columns.

// Shared memory, in bytes from `address`.
struct Shared {
  unsigned char* bytes;
  unsigned address;
  __device__ __forceinline__ unsigned q(int row) const { return address + row * Q_PITCH; }
  __device__ __forceinline__ unsigned k(int team, int slot, int key) const {
    return address + SLOTS_AT + (team * SLOTS + slot) * SLOT_BYTES + key * Q_PITCH;
  }
  __device__ __forceinline__ unsigned v(int team, int slot, int key) const {
    return k(team, slot, 0) + K_TILE * Q_PITCH + key * V_PITCH;
  }
  // Largest logit and sum of weights of a row, as a team found them.
  __device__ __forceinline__ float2& of_team(int team, int row) const {
    return reinterpret_cast<float2*>(bytes + TEAMS_AT)[team * ROWS + row];
  }
  // The same of all teams together.
  __device__ __forceinline__ float2& of_row(int row) const {
    return reinterpret_cast<float2*>(bytes + ROWS_AT)[row];
  }
  // A team's output before it is divided by the sum, over its tiles, which are done with.
  __device__ __forceinline__ float& output(int team, int row, int column) const {
    return reinterpret_cast<float*>(bytes + SLOTS_AT + team * SLOTS * SLOT_BYTES)[row * V_COLUMNS + column];
  }
};

// `count` rows of COLUMNS elements, zeros up to ROWS_COPIED, by threads `thread` of OF. Eight threads
// copy a row, so that all they do for each of its pieces is one instruction.
template <int ROWS_COPIED, int COLUMNS, int PITCH, int OF>
__device__ __forceinline__ void copy_rows(int thread, unsigned to, const Element* from, unsigned stride,
                                          int count) {
  constexpr int PIECES = COLUMNS / 8;
  const int first = thread / 8;
  const int column = thread % 8;
  const Element* source = from + static_cast<long long>(first) * stride + column * 8;
  const long long step = static_cast<long long>(OF / 8) * stride;
  to += first * PITCH + column * 16;
#pragma unroll
  for (int i = 0; i < (ROWS_COPIED + OF / 8 - 1) / (OF / 8); ++i) {
    const int row = first + i * (OF / 8);
    const bool present = row < count;
    if (ROWS_COPIED % (OF / 8) == 0 || row < ROWS_COPIED) {
      const Element* const source_row = present ? source : from;
#pragma unroll
      for (int j = 0; j < (PIECES + 7) / 8; ++j)
        if (PIECES % 8 == 0 || column + j * 8 < PIECES)
          copy_piece(to + i * (OF / 8) * PITCH + j * 128, source_row + j * 64, present);
    }
    source += step;
  }
}

// First of the 16 columns of a pair of tiles of the output that a warp has; the last pair may have
// too few for all warps.
__device__ __forceinline__ int column_of(int pair, int warp) { return (pair * TEAM + warp) * 16; }

__device__ __forceinline__ bool has_columns(int column) {
  return V_COLUMNS % (TEAM * 16) == 0 || column < V_COLUMNS;
}

struct Part {
  // Rows `lane / 4` and that plus 8 of each 16.
  float top[ROW_TILES][2], sum[ROW_TILES][2];
  float o[ROW_TILES][2 * COLUMN_PAIRS][4];
};

// What a team finds in its tiles; `warp` of the team.
__device__ __forceinline__ void attend(const Shared& shared, const Launch& launch, Tiles& tiles,
                                       const Element* q, const Element* k, const Element* v,
                                       int team, int warp, int lane, Part& part) {
  const float scale = @scale;
#pragma unroll
  for (int r = 0; r < ROW_TILES; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      part.top[r][h] = minus_infinity();
      part.sum[r][h] = 0.0f;
    }
#pragma unroll
    for (int c = 0; c < 2 * COLUMN_PAIRS; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i) part.o[r][c][i] = 0.0f;
  }

  copy_rows<ROWS, D, Q_PITCH, THREADS>(threadIdx.x, shared.q(0), q, launch.q_head, GROUP);
  commit_copies();
  // Columns after D, which no copy fills.
  if (D % 16 != 0)
    for (int row = threadIdx.x; row < ROWS + TEAMS * SLOTS * K_TILE; row += THREADS) {
      const int of_tiles = row - ROWS;
      const unsigned start =
          row < ROWS ? shared.q(row) : shared.k(0, of_tiles / K_TILE, of_tiles % K_TILE);
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(start + D * 2), "r"(0) : "memory");
    }
  auto load_queries = [&](unsigned (&a)[4], int r, int t) {
    load_matrices(a, shared.q(r * 16 + lane % 16) + t * 32 + lane / 16 * 16);
  };
  unsigned queries[KEEP_QUERIES ? ROW_TILES : 1][KEEP_QUERIES ? D_STEPS : 1][4];

  // Counts of the tiles in flight, the current one first. The first tiles are only copied: one
  // loop for all, because instructions have to be fetched as well.
  int counts[SLOTS] = {};
  const int thread = warp * 32 + lane;
  int slot = 0;
#pragma unroll 1
  for (int step = 1 - SLOTS;; ++step) {
    const Tile tile = tiles.next();
    if (tile.count > 0)
      copy_rows<K_TILE, D, Q_PITCH, TEAM * 32>(thread, shared.k(team, slot, 0),
                                               k + static_cast<long long>(tile.key) * launch.k_token,
                                               launch.k_token, tile.count);
    commit_copies();
    if (tile.count > 0)
      copy_rows<K_TILE, V_COLUMNS, V_PITCH, TEAM * 32>(thread, shared.v(team, slot, 0),
                                                       v + static_cast<long long>(tile.key) * launch.v_token,
                                                       launch.v_token, tile.count);
    commit_copies();
#pragma unroll
    for (int i = 0; i + 1 < SLOTS; ++i) counts[i] = counts[i + 1];
    counts[SLOTS - 1] = tile.count;
    if (++slot == SLOTS) slot = 0;
    if (step < 0) continue;
    if (step == 0) {
      wait_copies<2 * SLOTS>();
      __syncthreads();
      if (KEEP_QUERIES)
#pragma unroll
        for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
          for (int t = 0; t < D_STEPS; ++t)
            load_queries(queries[KEEP_QUERIES ? r : 0][KEEP_QUERIES ? t : 0], r, t);
    }
    if (counts[0] == 0) break;

    wait_copies<2 * SLOTS - 1>();
    synchronize_team();
    // Scores of the keys. Loads first, then products, in two sums that do not wait for each other.
    float s[ROW_TILES][2][4] = {};
    float s_odd[ROW_TILES][2][4] = {};
#pragma unroll
    for (int t0 = 0; t0 < D_STEPS; t0 += 4) {
      unsigned a[4][ROW_TILES][4], b[4][4];
#pragma unroll
      for (int i = 0; i < 4 && t0 + i < D_STEPS; ++i) {
        const int t = t0 + i;
        load_matrices(b[i], shared.k(team, slot, lane / 16 * 8 + lane % 8) + t * 32 + lane / 8 % 2 * 16);
#pragma unroll
        for (int r = 0; r < ROW_TILES; ++r) {
          if (!KEEP_QUERIES) load_queries(a[i][r], r, t);
          else
#pragma unroll
            for (int j = 0; j < 4; ++j) a[i][r][j] = queries[KEEP_QUERIES ? r : 0][KEEP_QUERIES ? t : 0][j];
        }
      }
#pragma unroll
      for (int i = 0; i < 4 && t0 + i < D_STEPS; ++i)
#pragma unroll
        for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
          for (int n = 0; n < 2; ++n)
            mma(i % 2 ? s_odd[r][n] : s[r][n], a[i][r], b[i][2 * n], b[i][2 * n + 1]);
    }

    unsigned p[ROW_TILES][4];
#pragma unroll
    for (int r = 0; r < ROW_TILES; ++r) {
      float fade[2];
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = n * 8 + lane % 4 * 2 + i % 2;
          s[r][n][i] = key < counts[0] ? @logit : minus_infinity();
        }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float top = fmaxf(fmaxf(s[r][0][h * 2], s[r][0][h * 2 + 1]), fmaxf(s[r][1][h * 2], s[r][1][h * 2 + 1]));
        top = fmaxf(top, part.top[r][h]);
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        // A tile has a key, so that this is finite, unless a logit is not.
        const float base = top == minus_infinity() ? 0.0f : top;
        fade[h] = exp2_fast(part.top[r][h] - base);
        part.top[r][h] = top;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float x = exp2_fast(s[r][n][h * 2] - base);
          const float y = exp2_fast(s[r][n][h * 2 + 1] - base);
          sum += x + y;
          p[r][n * 2 + h] = pack(x, y);
        }
        part.sum[r][h] = part.sum[r][h] * fade[h] + sum;
      }
#pragma unroll
      for (int c = 0; c < 2 * COLUMN_PAIRS; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) part.o[r][c][i] *= fade[i / 2];
    }
    wait_copies<2 * SLOTS - 2>();
    synchronize_team();

#pragma unroll
    for (int c0 = 0; c0 < COLUMN_PAIRS; c0 += 4) {
      unsigned b[4][4];
#pragma unroll
      for (int i = 0; i < 4 && c0 + i < COLUMN_PAIRS; ++i)
        if (has_columns(column_of(c0 + i, warp)))
          load_transposed(b[i], shared.v(team, slot, lane % 16) + column_of(c0 + i, warp) * 2 + lane / 16 * 16);
#pragma unroll
      for (int i = 0; i < 4 && c0 + i < COLUMN_PAIRS; ++i)
        if (has_columns(column_of(c0 + i, warp)))
#pragma unroll
          for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
            for (int n = 0; n < 2; ++n)
              mma(part.o[r][2 * (c0 + i) + n], p[r], b[i][2 * n], b[i][2 * n + 1]);
    }
    synchronize_team();
  }
}
