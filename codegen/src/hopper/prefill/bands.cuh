// ---- What a tile of queries sees: the union of its row's bands ----

// Flags of a tile: the last one of an item, seen by all queries, the end of all;
// masked by all bands rather than by the one whose number stands above bit BAND.
constexpr int LAST = 1, FULL = 2, END = 4, MANY = 8, BAND = 8;

// The first key at or after `cursor` that a query of q0..=q1 sees; UNBOUNDED if there is none.
__device__ __forceinline__ int next_key(const Bands& bands, int q0, int q1, int cursor) {
  int next = UNBOUNDED;
  for (int i = 0; i < bands.count(); ++i) {
    const Band band = bands.at(i);
    const int start = max(max(band.lo, q0 + band.first), cursor);
    const int stop = min(band.hi, q1 + band.end);
    if (start < stop) next = min(next, start);
  }
  return next;
}

// Whether every query of q0..=q1 sees every key of start..stop; may say no where many bands meet.
__device__ __forceinline__ bool is_full(const Bands& bands, int q0, int q1, int start, int stop) {
  int reach = start;
  for (int round = 0; round < 3 && reach < stop; ++round) {
    for (int i = 0; i < bands.count(); ++i) {
      const Band band = bands.at(i);
      if (max(band.lo, q1 + band.first) <= reach) reach = max(reach, min(band.hi, q0 + band.end));
    }
  }
  return reach >= stop;
}

// A thread owns two keys of every eight of a row of scores. Bit i: its i-th key lies before
// `limit`, both counted from its first key.
__device__ __forceinline__ unsigned keys_before(int limit) {
  const int inside = min(max(limit, 0), K_TILE);
  const int count = (inside >> 3) * 2 + min(inside & 7, 2);
  return count >= 32 ? ~0u : (1u << count) - 1;
}

// Bit i: query `q` sees the thread's i-th key through a band; the first key is `k`.
__device__ __forceinline__ unsigned keys_seen(const Band& band, int q, int k) {
  const int start = max(band.lo, q + band.first) - k;
  const int stop = min(band.hi, q + band.end) - k;
  return keys_before(stop) & ~keys_before(start);
}

// The flags that say which bands a partial tile has to be masked by: one, or all.
__device__ __forceinline__ int masking_bands(const Bands& bands, int q0, int q1, int k) {
  int which = 0, count = 0;
  for (int i = 0; i < bands.count(); ++i) {
    const Band band = bands.at(i);
    const int start = max(max(band.lo, q0 + band.first), k);
    const int stop = min(min(band.hi, q1 + band.end), k + K_TILE);
    if (start < stop) {
      which = i;
      ++count;
    }
  }
  return count == 1 ? which << BAND : MANY;
}
