// ---- The tiles of a query's keys, and which of them this block of threads takes ----
//
// A query sees the union of its bands, each an interval of keys. A key counts for the first
// interval that has it, by start, then by number: what an interval keeps is then again one
// interval, cut into tiles from its start. So a tile has no hidden keys but those after its end.

// `count` keys from `key` on; none at the end.
struct Tile { int key, count; };

// Every warp walks alone, and all alike: a lane holds one interval.
struct Tiles {
  const Bands& bands;
  const int query, lane;
  // Blocks of threads that take the tiles in turns.
  const int step;
  // Of this lane: its interval, the number of its tiles, and of those of lanes before it.
  int start, length, tiles, before;
  // Bands of lanes from here, their tiles, and the next one to take, counted from the first.
  int base, total, next_tile;

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
        start = max(band.lo, query + band.first);
        end = min(band.hi, query + band.end);
      }
    }
    int covered = 0;
#pragma unroll
    for (int i = 0; i < bands.count(); ++i) {
      const Band band = bands.at(i);
      const int from = max(band.lo, query + band.first);
      const int to = min(band.hi, query + band.end);
      if (from < to && (from < start || (from == start && i < base + lane)))
        covered = max(covered, to);
    }
    start = max(start, covered);
    length = max(end - start, 0);
    tiles = (length + K_TILE - 1) / K_TILE;
    int sum = tiles;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int lower = __shfl_up_sync(~0u, sum, distance);
      if (lane >= distance) sum += lower;
    }
    before = sum - tiles;
    total = __shfl_sync(~0u, sum, 31);
  }

  __device__ __forceinline__ Tile next() {
    while (true) {
      if (next_tile < total) {
        const bool mine = before <= next_tile && next_tile < before + tiles;
        const int owner = __ffs(__ballot_sync(~0u, mine)) - 1;
        const int skipped = (next_tile - __shfl_sync(~0u, before, owner)) * K_TILE;
        const int key = __shfl_sync(~0u, start, owner) + skipped;
        const int left = __shfl_sync(~0u, length, owner) - skipped;
        next_tile += step;
        return {key, min(left, K_TILE)};
      }
      if (base + 32 >= bands.count()) return {0, 0};
      next_tile -= total;
      base += 32;
      load();
    }
  }
};
