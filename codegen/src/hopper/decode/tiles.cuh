// ---- The tiles of a query's keys, and which of them a team takes ----
//
// A query sees the union of its bands, each of which is an interval of keys. A key in several intervals
// belongs to the first of them, by start and then by number. What remains of each interval is again one
// interval, which is cut into tiles from its start. So the only hidden keys of a tile are those after
// its end.

// The first key of a band that a query sees, and one past the last. Most limits are those of blocks and
// do not depend on the query.
__device__ __forceinline__ int from_key(const Band& band, int query) {
  return band.first <= -UNBOUNDED ? band.lo : max(band.lo, query + band.first);
}

__device__ __forceinline__ int to_key(const Band& band, int query) {
  return band.end >= UNBOUNDED ? band.hi : min(band.hi, query + band.end);
}

// `count` keys from `key` on; a count of zero marks the end.
struct Tile { int key, count; };

// Every warp of a team goes through the same tiles of KEYS keys by itself; each lane holds one interval.
template <int KEYS>
struct Tiles {
  const Bands& bands;
  const int query, lane;
  // The number of teams, which take the tiles in turns.
  const int step;
  // This lane's interval, the number of its tiles, and the number of tiles of the lanes before it.
  int start, length, tiles, before;
  // The band of lane 0, and the next tile to take, counted from the first tile of these lanes.
  int base, next_tile;

  __device__ __forceinline__ Tiles(const Bands& bands, int query, int lane, int rank, int step)
      : bands(bands), query(query), lane(lane), step(step), base(0), next_tile(rank) {
    load();
  }

  __device__ __forceinline__ void load() {
    start = length = 0;
    int end = 0;
#pragma unroll
    for (int i = 0; i < bands.count(); ++i) {
      const Band band = bands.at(i);
      if (i == base + lane) {
        start = from_key(band, query);
        end = to_key(band, query);
      }
    }
    int covered = 0;
#pragma unroll
    for (int i = 0; i < bands.count(); ++i) {
      const Band band = bands.at(i);
      const int from = from_key(band, query);
      const int to = to_key(band, query);
      if (from < to && (from < start || (from == start && i < base + lane)))
        covered = max(covered, to);
    }
    start = max(start, covered);
    length = max(end - start, 0);
    tiles = (length + KEYS - 1) / KEYS;
    int sum = tiles;
    constexpr int LANES = BANDS > 0 ? BANDS : 32;
#pragma unroll
    for (int distance = 1; distance < LANES; distance *= 2) {
      const int lower = __shfl_up_sync(~0u, sum, distance);
      if (lane >= distance) sum += lower;
    }
    before = sum - tiles;
  }

  __device__ __forceinline__ Tile next() {
    while (true) {
      // At most one lane's interval has the next tile; it passes the tile on to all lanes.
      const int skipped = (next_tile - before) * KEYS;
      const bool mine = before <= next_tile && skipped < length;
      const unsigned key = __reduce_max_sync(~0u, mine ? static_cast<unsigned>(start + skipped) : 0u);
      const unsigned left = __reduce_max_sync(~0u, mine ? static_cast<unsigned>(length - skipped) : 0u);
      if (left > 0 || base + 32 >= bands.count()) {
        next_tile += step;
        return {static_cast<int>(key), static_cast<int>(min(left, static_cast<unsigned>(KEYS)))};
      }
      next_tile -= __shfl_sync(~0u, before + tiles, 31);
      base += 32;
      load();
    }
  }
};
