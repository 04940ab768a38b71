// ---- Keys that a tile of queries sees: the union of its row's bands ----

// Flags of a tile. LAST: the last tile of an item. FULL: all queries see all of its keys. MANY: all
// bands have to mask it; without MANY, only the band whose number is in the bits from BAND on.
constexpr int LAST = 1, FULL = 2, MANY = 4, BAND = 8;

// Whether tiles are long enough for masks to skip halves of them, and for the mask of a tile to be
// computed while its scores are still being multiplied.
constexpr bool HALVES = K_TILE >= 128;

// The keys that the queries q0..=q1 see. A whole warp computes this, and its lanes share the bands:
// lane i has bands i, i + 32 and so on. A closed form has fewer than 32.
struct Seen {
  const Bands& bands;
  const int q0, q1, lane;
  // Of the lane's first band: the keys that some query sees, and those that all queries see.
  int any_start, any_stop, all_start, all_stop;

  __device__ __forceinline__ Seen(const Bands& bands, int q0, int q1, int lane)
      : bands(bands), q0(q0), q1(q1), lane(lane) {
    any_start = any_stop = all_start = all_stop = 0;
    if (lane < bands.count()) {
      const Band band = bands.at(lane);
      any_start = max(band.lo, q0 + band.first);
      any_stop = min(band.hi, q1 + band.end);
      all_start = max(band.lo, q1 + band.first);
      all_stop = min(band.hi, q0 + band.end);
    }
  }

  // The first key at or after `cursor` that some query sees; UNBOUNDED if there is none.
  __device__ __forceinline__ int next_key(int cursor) const {
    const int start = max(any_start, cursor);
    int next = start < any_stop ? start : UNBOUNDED;
    for (int i = lane + 32; BANDS == 0 && i < bands.count(); i += 32) {
      const Band band = bands.at(i);
      const int from = max(max(band.lo, q0 + band.first), cursor);
      if (from < min(band.hi, q1 + band.end)) next = min(next, from);
    }
    return __reduce_min_sync(~0u, next);
  }

  // Whether all queries see all keys of start..stop. May wrongly return false, never true: it joins
  // only a few adjacent bands.
  __device__ __forceinline__ bool is_full(int start, int stop) const {
    int reach = start;
    for (int round = 0; round < 3; ++round) {
      int further = all_start <= reach ? max(reach, all_stop) : reach;
      for (int i = lane + 32; BANDS == 0 && i < bands.count(); i += 32) {
        const Band band = bands.at(i);
        if (max(band.lo, q1 + band.first) <= reach) further = max(further, min(band.hi, q0 + band.end));
      }
      reach = __reduce_max_sync(~0u, further);
      if (reach >= stop) return true;
    }
    return false;
  }

  // The flags that say which bands have to mask a partial tile: one, or all.
  __device__ __forceinline__ int masking_bands(int k) const {
    const unsigned which = __ballot_sync(~0u, max(any_start, k) < min(any_stop, k + K_TILE));
    return bands.count() <= 32 && __popc(which) == 1 ? (__ffs(which) - 1) << BAND : MANY;
  }
};

// A thread owns two of every eight keys in a row of scores. Returns how many of its keys lie before
// `limit`, which counts keys from the thread's first one and may lie beyond the tile.
__device__ __forceinline__ int keys_before(int limit) {
  const int inside = max(limit, 0);
  return (inside >> 3) * 2 + min(inside & 7, 2);
}

// A word with `count` bits set from bit `first` on; bits beyond the word are dropped.
__device__ __forceinline__ unsigned bits(int first, int count) {
  unsigned x;
  asm("bmsk.clamp.b32 %0, %1, %2;" : "=r"(x) : "r"(first), "r"(count));
  return x;
}

// Bit i says whether query `q` sees the thread's i-th key through `band`; its first key is `k`.
__device__ __forceinline__ unsigned keys_seen(const Band& band, int q, int k) {
  const int start = keys_before(max(band.lo, q + band.first) - k);
  const int stop = keys_before(min(band.hi, q + band.end) - k);
  return bits(start, max(stop - start, 0));
}

// The keys of a masked tile that a thread's two rows see.
struct Sight {
  unsigned seen[2];
  // Whether all rows of the warp see all of the tile's first half, and none any of its second half.
  bool first_seen, second_hidden;

  __device__ __forceinline__ void compare_halves() {
    constexpr unsigned FIRST = 0xffff;
    first_seen = HALVES && __all_sync(~0u, (seen[0] & seen[1] & FIRST) == FIRST);
    second_hidden = HALVES && __all_sync(~0u, (seen[0] | seen[1]) <= FIRST);
  }
};
