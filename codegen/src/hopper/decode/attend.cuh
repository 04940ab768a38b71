// ---- One query and all q heads of a kv head: scores, softmax and output of some tiles ----
//
// A team, one warp or all, takes tiles of 16 keys and waits for no other team. Products are transposed:
// their 16 rows are keys, then columns of V, and their 8 columns are q heads, because heads are few.
// Every warp of a team computes all scores, and a share of the output's columns.

// The number of a warp's `tile`-th step of 16 output columns. The last may be too few for all warps.
__device__ __forceinline__ int step_of(int tile, int warp) { return tile * TEAM + warp; }

__device__ __forceinline__ bool has_columns(int step) {
  return V_COLUMNS % (TEAM * 16) == 0 || step * 16 < V_COLUMNS;
}

// A team's result for its tiles, as far as this thread holds it.
struct Part {
  // Of q heads `lane % 4 * 2` and the next in every 8: the base-2 logit that weights are relative to,
  // and the sum of weights over this thread's keys.
  float base[HEAD_TILES][2], sum[HEAD_TILES][2];
  // Output of the same two heads in columns `lane / 4` and `lane / 4 + 8` of every 16.
  float o[HEAD_TILES][COLUMN_TILES][4];

  __device__ __forceinline__ Part() {
#pragma unroll
    for (int r = 0; r < HEAD_TILES; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        base[r][h] = minus_infinity();
        sum[r][h] = 0.0f;
      }
#pragma unroll
      for (int c = 0; c < COLUMN_TILES; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[r][c][i] = 0.0f;
    }
  }
};

// Tensor maps of keys and values, and the job's place in them.
struct Keys {
  const TensorMap *k_map, *v_map;
  int kv_head, batch;

  // Starts the copy of a tile; called by one thread.
  template <int BOXES>
  __device__ __forceinline__ void copy(const TensorMap* map, unsigned to, unsigned full, const Tile& tile) const {
    barrier_expect(full, BOXES * K_TILE * 128);
#pragma unroll
    for (int c = 0; c < BOXES; ++c)
      copy_box_once(to + c * K_TILE * 128, map, full, c * 64, tile.key, kv_head, batch);
  }

  __device__ __forceinline__ void copy_k(const Shared& shared, const Tile& tile, int team, int slot) const {
    copy<D_BOXES>(k_map, shared.k(team, slot), shared.k_full(team, slot), tile);
  }

  __device__ __forceinline__ void copy_v(const Shared& shared, const Tile& tile, int team, int slot) const {
    copy<V_BOXES>(v_map, shared.v(team, slot), shared.v_full(team, slot), tile);
  }
};

// Queries as second operands of products, two steps of 16 columns at a time; kept in registers where
// there is room.
struct Queries {
  static constexpr int PAIRS = (D_STEPS + 1) / 2;
  unsigned kept[KEEP_QUERIES ? HEAD_TILES : 1][KEEP_QUERIES ? PAIRS : 1][4];
  unsigned piece;

  __device__ __forceinline__ explicit Queries(int lane)
      : piece(piece_of(lane % 8, lane / 8 % 2) ^ lane / 16 << 5) {}

  __device__ __forceinline__ void keep(const Shared& shared) {
#pragma unroll
    for (int r = 0; r < HEAD_TILES; ++r)
#pragma unroll
      for (int pair = 0; pair < PAIRS; ++pair)
        if (KEEP_QUERIES)
          load_matrices(kept[KEEP_QUERIES ? r : 0][KEEP_QUERIES ? pair : 0],
                        shared.q() + r * 8 * 128 + at_step<ROWS>(piece, 2 * pair));
  }

  __device__ __forceinline__ void load(unsigned (&x)[4], const Shared& shared, int r, int pair) const {
    if (!KEEP_QUERIES)
      return load_matrices(x, shared.q() + r * 8 * 128 + at_step<ROWS>(piece, 2 * pair));
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = kept[KEEP_QUERIES ? r : 0][KEEP_QUERIES ? pair : 0][i];
  }
};

// Scores of a tile's keys. Loads come before products, which add to several independent sums so that
// they do not wait for each other.
__device__ __forceinline__ void multiply_keys(const Shared& shared, const Queries& queries, unsigned k,
                                              unsigned piece, float (&s)[HEAD_TILES][4]) {
  constexpr int SUMS = HEAD_TILES == 1 ? 4 : 2;
  float sums[SUMS][HEAD_TILES][4] = {};
#pragma unroll
  for (int t0 = 0; t0 < D_STEPS; t0 += 4) {
    unsigned a[4][4], b[2][HEAD_TILES][4];
#pragma unroll
    for (int i = 0; i < 4 && t0 + i < D_STEPS; ++i) {
      load_matrices(a[i], k + at_step<K_TILE>(piece, t0 + i));
      if (i % 2 == 0)
#pragma unroll
        for (int r = 0; r < HEAD_TILES; ++r) queries.load(b[i / 2][r], shared, r, (t0 + i) / 2);
    }
#pragma unroll
    for (int i = 0; i < 4 && t0 + i < D_STEPS; ++i)
#pragma unroll
      for (int r = 0; r < HEAD_TILES; ++r)
        mma(sums[i % SUMS][r], a[i], b[i / 2][r][i % 2 * 2], b[i / 2][r][i % 2 * 2 + 1]);
  }
#pragma unroll
  for (int r = 0; r < HEAD_TILES; ++r)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[r][i] = sums[0][r][i] + sums[1][r][i];
      if (SUMS == 4) s[r][i] += sums[SUMS - 2][r][i] + sums[SUMS - 1][r][i];
    }
}

// Weights of `count` keys, as second operands of the next products: 2^(logit - base). The base is
// raised to the largest logit, and the output rescaled, only if it is behind by more than MOST_AHEAD.
__device__ __forceinline__ void weigh(const Launch& launch, float (&s)[HEAD_TILES][4], int count, int lane,
                                      Part& part, unsigned (&p)[HEAD_TILES][2]) {
  const float scale = @scale;
  bool behind = false;
#pragma unroll
  for (int r = 0; r < HEAD_TILES; ++r)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = i / 2 * 8 + lane / 4;
      // Columns beyond the last head multiply whatever was in shared memory. They must not decide when
      // the base is raised.
      const bool is_head = r * 8 + 8 <= GROUP || r * 8 + lane % 4 * 2 + i % 2 < GROUP;
      s[r][i] = key < count && is_head ? @logit : minus_infinity();
      behind |= s[r][i] > part.base[r][i % 2] + MOST_AHEAD;
    }
  if (__any_sync(~0u, behind)) {
#pragma unroll
    for (int r = 0; r < HEAD_TILES; ++r) {
      float fade[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float top = fmaxf(part.base[r][h], fmaxf(s[r][h], s[r][2 + h]));
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2)
          top = fmaxf(top, __shfl_xor_sync(~0u, top, distance));
        // Nothing was seen yet, so there is nothing to rescale.
        fade[h] = top == minus_infinity() ? 1.0f : exp2_fast(part.base[r][h] - top);
        part.base[r][h] = top;
        part.sum[r][h] *= fade[h];
      }
#pragma unroll
      for (int c = 0; c < COLUMN_TILES; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) part.o[r][c][i] *= fade[i % 2];
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
#pragma unroll
    for (int i = 0; i < 2; ++i) p[r][i] = transposed(pack(s[r][2 * i], s[r][2 * i + 1]));
  }
}

// Values of four steps of 16 columns, as first operands of products.
struct Values {
  unsigned a[4][4];

  __device__ __forceinline__ void load(unsigned v, unsigned piece, int first, int warp) {
#pragma unroll
    for (int i = 0; i < 4 && first + i < COLUMN_TILES; ++i)
      if (has_columns(step_of(first + i, warp)))
        load_transposed(a[i], v + at_step<K_TILE>(piece, step_of(first + i, warp)));
  }

  // Sets the values of keys from `count` on to zero. Weights of zero would not be enough where values
  // are infinite or NaN.
  __device__ __forceinline__ void hide(int count, int lane) {
    if (count >= K_TILE) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = half * 8 + lane % 4 * 2;
      const unsigned seen = (key < count ? 0xffffu : 0u) | (key + 1 < count ? 0xffff0000u : 0u);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i][half * 2] &= seen;
        a[i][half * 2 + 1] &= seen;
      }
    }
  }

  __device__ __forceinline__ void multiply(const unsigned (&p)[HEAD_TILES][2], int first, int warp,
                                           Part& part) const {
#pragma unroll
    for (int i = 0; i < 4 && first + i < COLUMN_TILES; ++i)
      if (has_columns(step_of(first + i, warp)))
#pragma unroll
        for (int r = 0; r < HEAD_TILES; ++r) mma(part.o[r][first + i], a[i], p[r][0], p[r][1]);
  }
};

// A team's ring: the number of keys in each tile in flight, the current one first, and the slot and
// phase bit of the current one.
template <int LENGTH>
struct Ring {
  int counts[LENGTH];
  int slot, parity;

  // Goes on to the next tile. A tile with `next` keys takes the slot of the current one.
  __device__ __forceinline__ void advance(int next) {
#pragma unroll
    for (int i = 0; i + 1 < LENGTH; ++i) counts[i] = counts[i + 1];
    counts[LENGTH - 1] = next;
    if (++slot == LENGTH) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// Starts the copies of the first tiles, before any work that can be done later.
__device__ __forceinline__ Ring<SLOTS> first_tiles(const Shared& shared, Tiles<K_TILE>& tiles, const Keys& keys,
                                                   int team, int warp) {
  Ring<SLOTS> ring;
  ring.slot = 0;
  ring.parity = 1;
#pragma unroll 1
  for (int i = 0; i < SLOTS; ++i) {
    const Tile tile = tiles.next();
    if (tile.count > 0 && warp == 0 && elect()) {
      keys.copy_k(shared, tile, team, ring.slot);
      keys.copy_v(shared, tile, team, ring.slot);
    }
    ring.advance(tile.count);
  }
  return ring;
}

// Computes a team's result over its tiles; `warp` is the number of this warp within the team.
__device__ __forceinline__ void attend(const Shared& shared, const Launch& launch, Ring<SLOTS>& ring,
                                       Tiles<K_TILE>& tiles, const Keys& keys, int team, int warp, int lane,
                                       Part& part) {
  const unsigned k_piece = piece_of(lane % 16, lane / 16);
  const unsigned v_piece = piece_of(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  Queries queries(lane);
  barrier_wait(shared.q_full(), 0);
  queries.keep(shared);
#pragma unroll 1
  while (ring.counts[0] > 0) {
    // Find the next tile while the current one is being copied.
    const Tile next = tiles.next();
    float s[HEAD_TILES][4];
    unsigned p[HEAD_TILES][2];
    barrier_wait(shared.k_full(team, ring.slot), ring.parity);
    multiply_keys(shared, queries, shared.k(team, ring.slot), k_piece, s);
    // From here on the slot of the tile's keys is free; that of its values is free further below.
    synchronize_team();
    if (next.count > 0 && warp == 0 && elect()) keys.copy_k(shared, next, team, ring.slot);
    // The first values are loaded while their weights are computed.
    const unsigned v = shared.v(team, ring.slot);
    Values values;
    barrier_wait(shared.v_full(team, ring.slot), ring.parity);
    values.load(v, v_piece, 0, warp);
    weigh(launch, s, ring.counts[0], lane, part, p);
#pragma unroll
    for (int c = 0; c < COLUMN_TILES; c += 4) {
      if (c > 0) values.load(v, v_piece, c, warp);
      values.hide(ring.counts[0], lane);
      values.multiply(p, c, warp, part);
    }
    synchronize_team();
    if (next.count > 0 && warp == 0 && elect()) keys.copy_v(shared, next, team, ring.slot);
    ring.advance(next.count);
  }
}
