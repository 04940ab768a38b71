// ---- What a tile of queries sees: the union of its row's bands ----

// Flags of a tile: the last one of an item; seen by all queries; masked by all bands rather than by
// the one whose number stands above bit BAND.
constexpr int LAST = 1, FULL = 2, MANY = 4, BAND = 8;

// Whether tiles are so long that halves of them are skipped, and that there is time to find what
// is seen of one before its scores are there.
constexpr bool HALVES = K_TILE >= 128;

// Of the queries q0..=q1, by a warp whose lanes hold the bands: lane `i` every 32nd from the i-th.
// A closed form has fewer than 32.
struct Seen {
  const Bands& bands;
  const int q0, q1, lane;
  // Of the lane's first band: the keys that some query sees, and those that every query sees.
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

  // Whether every query sees every key of start..stop; may say no where many bands meet.
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

  // The flags that say which bands a partial tile has to be masked by: one, or all.
  __device__ __forceinline__ int masking_bands(int k) const {
    const unsigned which = __ballot_sync(~0u, max(any_start, k) < min(any_stop, k + K_TILE));
    return bands.count() <= 32 && __popc(which) == 1 ? (__ffs(which) - 1) << BAND : MANY;
  }
};

// A thread owns two keys of every eight of a row of scores: how many of them, and of those of
// tiles to come, lie before `limit`, which counts from its first key.
__device__ __forceinline__ int keys_before(int limit) {
  const int inside = max(limit, 0);
  return (inside >> 3) * 2 + min(inside & 7, 2);
}

// `count` bits from bit `first` on; those beyond the last one are left out.
__device__ __forceinline__ unsigned bits(int first, int count) {
  unsigned x;
  asm("bmsk.clamp.b32 %0, %1, %2;" : "=r"(x) : "r"(first), "r"(count));
  return x;
}

// Bit i: query `q` sees the thread's i-th key through a band; the first key is `k`.
__device__ __forceinline__ unsigned keys_seen(const Band& band, int q, int k) {
  const int start = keys_before(max(band.lo, q + band.first) - k);
  const int stop = keys_before(min(band.hi, q + band.end) - k);
  return bits(start, max(stop - start, 0));
}

// What a thread's rows see of a tile that is masked.
struct Sight {
  unsigned seen[2];
  // Whether all rows of the warp see the first half, and none sees anything of the second.
  bool first_seen, second_hidden;

  __device__ __forceinline__ void compare_halves() {
    constexpr unsigned FIRST = 0xffff;
    first_seen = HALVES && __all_sync(~0u, (seen[0] & seen[1] & FIRST) == FIRST);
    second_hidden = HALVES && __all_sync(~0u, (seen[0] | seen[1]) <= FIRST);
  }
};
