// ---- Consumer: a warpgroup that computes one unit of each item ----
//
// The loop runs over the tiles of all items. While it turns the scores of a tile into weights,
// the values of the tile before it are being multiplied. At the first tile of an item these
// belong to the item before, whose output is stored while the scores are being multiplied.

__device__ __forceinline__ void consume(const Launch& launch, const Shared& shared, int consumer,
                                        Element* output, float* lse) {
  const int warp = threadIdx.x / 32 % 4;
  const int lane = threadIdx.x % 32;
  const float scale = @scale;
@cap_factor
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
  // Makes logits of scores, and hides those of keys that are not seen.
  auto hide = [&](int2 tile) {
@cap
    if (tile.y & FULL) return;
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
    mask(s, seen);
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
  auto multiply_values = [&](int v_slot, bool accumulate) {
    const unsigned long long v = descriptor(shared.slot(v_slot), K_TILE * 128, 1024);
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

  auto await = [&] { barrier_wait(shared.full(slot.index), slot.turn); };
  auto await_queries = [&] { barrier_wait(shared.q_full(count % Q_SLOTS), count / Q_SLOTS & 1); };

  // The first tile of all. The lane that reads it is the one that gives its slot back: checkers for
  // races see that order, and none among lanes without a branch.
  await();
  int2 tile = make_int2(0, 0);
  if (lane == 0) tile = shared.tile(slot.index);
  tile.x = __shfl_sync(~0u, tile.x, 0);
  tile.y = __shfl_sync(~0u, tile.y, 0);
  if (tile.y & NONE) return release_slot(shared.empty(slot.index));
  await_queries();
  mma_fence();
  multiply_scores(0);
  begin_item();
  mma_wait<0>(s);
  release_slot(shared.empty(slot.index));
  if (tile.y & LAST) release(shared.q_empty(0));
  slot.advance();
  hide(tile);
  softmax.weigh(s, scale, slack, fade);
  keep_weights();

  // Whether the values of the tile before are added to those of earlier tiles of its item.
  bool accumulate = false;
  while (true) {
    if (tile.y & LAST) {
      // Values first: the output is then stored while the next item's scores are multiplied.
      await();
      const int v_slot = slot.index;
      if (tile.y & END) {
        mma_fence();
        multiply_values(v_slot, accumulate);
        mma_wait<0>(o);
        break;
      }
      slot.advance();
      await();
      tile = shared.tile(slot.index);
      await_queries();
      mma_fence();
      multiply_values(v_slot, accumulate);
      multiply_scores(count % Q_SLOTS);
      mma_wait<1>(o);
      keep_until_here(p);
      release_slot(shared.empty(v_slot));
      store(launch, item, unit, softmax, o, scale, warp, lane, output, lse);
      begin_item();
      mma_wait<0>(s);
      release_slot(shared.empty(slot.index));
      if (tile.y & LAST) release(shared.q_empty((count - 1) % Q_SLOTS));
      slot.advance();
      hide(tile);
      softmax.weigh(s, scale, slack, fade);
      accumulate = false;
    } else {
      await();
      tile = shared.tile(slot.index);
      mma_fence();
      multiply_scores((count - 1) % Q_SLOTS);
      const unsigned k_empty = shared.empty(slot.index);
      slot.advance();
      await();
      multiply_values(slot.index, accumulate);
      mma_wait<1>(s);
      release_slot(k_empty);
      if (tile.y & LAST) release(shared.q_empty((count - 1) % Q_SLOTS));
      hide(tile);
      const bool grown = softmax.weigh(s, scale, slack, fade);
      mma_wait<0>(o);
      keep_until_here(p);
      release_slot(shared.empty(slot.index));
      slot.advance();
      if (grown) {
#pragma unroll
        for (int i = 0; i < V_COLUMNS / 2; ++i) o[i] *= fade[i >> 1 & 1];
      }
      accumulate = true;
    }
    keep_weights();
  }
  release_slot(shared.empty(slot.index));
  store(launch, item, unit, softmax, o, scale, warp, lane, output, lse);
}
