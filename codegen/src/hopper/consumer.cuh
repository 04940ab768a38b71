// ---- Consumer: a warpgroup that computes one unit of each item ----
//
// The loop runs over the tiles of all items. While it turns the scores of a tile into weights,
// the values of the tile before it are being multiplied; at the first tile of an item these
// belong to the item before, whose epilogue therefore runs while the ring fills.

__device__ __forceinline__ void consume(const Launch& launch, const Shared& shared, int consumer,
                                        Element* output, float* lse) {
  const int warp = threadIdx.x / 32 % 4;
  const int lane = threadIdx.x % 32;
  const float scale = launch.scale * 1.44269504f;
  const float slack = SLACK / scale;
  Slot slot;
  int count = 0;
  Item item;
  Unit unit;
  Bands bands;
  Softmax softmax;
  float s[K_TILE / 2];
  float o[V_COLUMNS / 2];
  unsigned p[K_TILE / 4];
  float fade[2];

  auto release = [&](unsigned barrier) {
    __syncwarp();
    if (lane == 0) barrier_arrive(barrier);
  };
  auto release_slot = [&](unsigned barrier) {
    if (CLUSTER == 1) return release(barrier);
    __syncwarp();
    if (lane < CLUSTER) barrier_arrive_at(barrier, lane);
  };
  auto begin_item = [&] {
    const int header = count % (Q_SLOTS + 1);
    item = shared.item(header);
    unit = unit_of(item, shared.rank * CONSUMERS + consumer);
    bands = bands_of(launch, item.token / BLOCK, shared.bands(header));
    softmax.start();
    ++count;
  };
  auto hide = [&](int2 tile) {
    const int first = tile.y >> BAND;
    const int last = tile.y & MANY ? bands.count() - 1 : first;
    unsigned seen[2] = {0, 0};
    for (int i = first; i <= last; ++i) {
      const Band band = bands.at(i);
#pragma unroll
      for (int r = 0; r < 2; ++r)
        seen[r] |= keys_seen(band, unit.token + (warp * 16 + r * 8 + lane / 4) % UNIT_TOKENS,
                             tile.x + lane % 4 * 2);
    }
    if (HALVES && tile.y & HALF) mask<K_TILE / 4>(s, seen);
    else mask<K_TILE / 2>(s, seen);
  };
  auto weigh = [&](int2 tile) {
    if (HALVES && tile.y & HALF) return softmax.weigh<K_TILE / 4>(s, scale, slack, fade);
    return softmax.weigh<K_TILE / 2>(s, scale, slack, fade);
  };
  auto multiply_scores = [&](int q_slot) {
    const unsigned long long q = descriptor(shared.q(q_slot, consumer), 16, 1024);
    const unsigned long long k = descriptor(shared.slot(slot.index), 16, 1024);
#pragma unroll
    for (int t = 0; t < D_STEPS; ++t)
      mma_scores(s, q + (t / 4 * 64 * 128 + t % 4 * 32) / 16,
                 k + (t / 4 * K_TILE * 128 + t % 4 * 32) / 16, t > 0);
    mma_commit();
  };
  auto multiply_values = [&](bool accumulate) {
    const unsigned long long v = descriptor(shared.slot(slot.index), K_TILE * 128, 1024);
#pragma unroll
    for (int t = 0; t < K_TILE / 16; ++t)
      mma_values(o, p[4 * t], p[4 * t + 1], p[4 * t + 2], p[4 * t + 3], v + t * 16 * 128 / 16,
                 t > 0 || accumulate);
    mma_commit();
  };
  auto keep_weights = [&] {
#pragma unroll
    for (int i = 0; i < K_TILE / 4; ++i) p[i] = pack(s[2 * i], s[2 * i + 1]);
  };

  // The first tile of all.
  barrier_wait(shared.full(slot.index), slot.turn);
  int2 tile = shared.tile(slot.index);
  if (tile.y & END) return release_slot(shared.empty(slot.index));
  begin_item();
  barrier_wait(shared.q_full(0), 0);
  mma_fence();
  multiply_scores(0);
  mma_wait<0>(s);
  release_slot(shared.empty(slot.index));
  if (!STAGED && tile.y & LAST) release(shared.q_empty(0));
  slot.advance();
  if (!(tile.y & FULL)) hide(tile);
  weigh(tile);
  keep_weights();

@order_start
  bool accumulate = false;
  while (true) {
    barrier_wait(shared.full(slot.index), slot.turn);
    tile = shared.tile(slot.index);
    if (tile.y & END) break;
    const bool first = tile.y & FIRST;
    const int turn = first ? count : count - 1;
    if (first) barrier_wait(shared.q_full(turn % Q_SLOTS), turn / Q_SLOTS & 1);
@order_wait
    mma_fence();
    multiply_scores(turn % Q_SLOTS);
    const unsigned k_empty = shared.empty(slot.index);
    slot.advance();
    barrier_wait(shared.full(slot.index), slot.turn);
    multiply_values(accumulate);
@order_pass
    mma_wait<1>(s);
    release_slot(k_empty);
    if (!STAGED && tile.y & LAST) release(shared.q_empty(turn % Q_SLOTS));
    if (first) {
      mma_wait<0>(o);
      store(launch, item, unit, softmax, o, scale, warp, lane,
            shared.q((count - 1) % Q_SLOTS, consumer), output, lse);
      if (STAGED) release(shared.q_empty((count - 1) % Q_SLOTS));
      begin_item();
    }
    if (!(tile.y & FULL)) hide(tile);
    const bool grown = weigh(tile);
    mma_wait<0>(o);
    keep_until_here(p);
    release_slot(shared.empty(slot.index));
    slot.advance();
    if (grown && !first) {
#pragma unroll
      for (int i = 0; i < V_COLUMNS / 2; ++i) o[i] *= fade[i >> 1 & 1];
    }
    keep_weights();
    accumulate = !first;
  }
  release_slot(shared.empty(slot.index));
  slot.advance();
  barrier_wait(shared.full(slot.index), slot.turn);
  mma_fence();
  multiply_values(accumulate);
  mma_wait<0>(o);
  release_slot(shared.empty(slot.index));
  store(launch, item, unit, softmax, o, scale, warp, lane,
        shared.q((count - 1) % Q_SLOTS, consumer), output, lse);
}
