// ---- Consumer: a warpgroup that computes one unit of each item, or its share of one ----
//
// While the scores of a tile become weights, the values of the tile before it are being multiplied. At
// the first tile of an item, that tile belongs to the item before, whose output is stored while the new
// scores are being multiplied. The code of each step exists only once, because the main loop has to fit
// the instruction cache.

__device__ __forceinline__ void consume(const Launch& launch, const Shared& shared, int consumer,
                                        Element* output, float* lse) {
  const int warp = threadIdx.x / 32 % 4;
  const int lane = threadIdx.x % 32;
  const float scale = @scale;
@cap_factor
  Slot slot;
  // Number of items begun, and the first query of this consumer's unit in the last of them.
  int count = 0, token = 0;
  Bands bands;
  Softmax softmax;
  int2 tile = make_int2(0, 0);
  Sight sight;
  float s[K_TILE / 2];
  float o[O_COLUMNS / 2];
  unsigned p[K_TILE / 4];
  float fade[2], added[2];

  auto release = [&](unsigned barrier) {
    __syncwarp();
    if (elect()) barrier_arrive(barrier);
  };
  auto release_slot = [&](unsigned barrier) {
    if (CLUSTER == 1) return release(barrier);
    __syncwarp();
    if (lane < CLUSTER) barrier_arrive_at(barrier, lane);
  };
  auto unit_here = [&](const Item& item) {
    return unit_of(item, shared.rank * UNITS + consumer % UNITS);
  };
  auto begin_item = [&](const Item& item) {
    token = unit_here(item).token;
    bands = bands_of(launch, item.token / BLOCK, item.kv_head, item.batch, shared.bands(count % HEADERS));
    softmax.start();
    ++count;
  };
  // The item is read again rather than kept, to save registers.
  auto end_item = [&] {
    const Item item = shared.item((count - 1) % HEADERS);
    store(launch, shared, item, unit_here(item), softmax, o, scale, consumer, (count - 1) % Q_SLOTS,
          warp, lane, output, lse);
  };
  // Finds the keys of a tile that the unit's rows see.
  auto look = [&] {
    sight.second_hidden = false;
    if (tile.y & FULL) return;
    sight.seen[0] = sight.seen[1] = 0;
    const int first = tile.y >> BAND;
    const int last = tile.y & MANY ? bands.count() - 1 : first;
#pragma unroll 1
    for (int i = first; i <= last; ++i) {
      const Band band = bands.at(i);
#pragma unroll
      for (int r = 0; r < 2; ++r)
        sight.seen[r] |= keys_seen(band, token + (warp * 16 + r * 8 + lane / 4) % UNIT_TOKENS,
                                   tile.x + lane % 4 * 2);
    }
    sight.compare_halves();
  };
  // The same, where there is time for it while scores are being multiplied.
  auto look_ahead = [&] {
    if (HALVES) look();
  };
  // Masks the scores of keys that are not seen, after a softcap if there is one. A hidden second half
  // is left as it is, because nothing reads it.
  auto hide = [&] {
@cap
    if (!HALVES) look();
    if (!(tile.y & FULL)) mask(s, sight);
  };
@products
  // When the products of a tile's scores are done: releases the slot of its keys and, after the last
  // tile, that of the queries, unless the output will overwrite them.
  auto take_scores = [&](int keys) {
    add_scores(shared.slot(keys));
    release_slot(shared.empty(keys));
    if (!STORED_BY_COPY && tile.y & LAST) release(shared.q_empty((count - 1) % Q_SLOTS));
  };
  // The first tile of an item decides which score weights are relative to: the largest of the tile or,
  // in a long tile that is full, of its first sixteen keys, if no weight overflows then.
  auto first_weights = [&] {
    if (HALVES && tile.y & FULL) {
      softmax.guess(s, scale);
      if (__all_sync(~0u, softmax.weigh<false>(s, scale, false, p, added))) return softmax.add(added);
    }
    softmax.raise(s, scale, sight.second_hidden, fade);
    softmax.weigh<HALVES>(s, scale, sight.second_hidden, p, added);
    softmax.add(added);
  };
  // Consumers with units of their own take turns at issuing products, so that the softmax of each
  // runs during the products of the others (FlashAttention-3, section 3.1). The first consumer has the
  // first phase.
  auto await_turn = [&] {
    if (UNITS > 1) synchronize(ORDER_AT + consumer, 256);
  };
  auto pass_turn = [&] {
    if (UNITS > 1) arrive(ORDER_AT + (consumer + 1) % UNITS, 256);
  };
  if (UNITS > 1) arrive_if(consumer == UNITS - 1, ORDER_AT, 256);
  auto await = [&] { barrier_wait(shared.full(slot.index), slot.phase); };

  // The very first tile. The lane that reads it is also the one that releases its slot: race checkers
  // understand that order, but not one between lanes without a barrier.
  await();
  if (lane == 0) tile = shared.tile(slot.index);
  tile.x = __shfl_sync(~0u, tile.x, 0);
  tile.y = __shfl_sync(~0u, tile.y, 0);
  barrier_wait(shared.q_full(0), 0);
  Item next = shared.item(0);
  mma_fence();
  multiply_scores(0);
  while (next.batch != NO_BATCH) {
    begin_item(next);
    look_ahead();
    mma_wait<0>(s);
    take_scores(slot.index);
    slot.advance();
    hide();
    first_weights();
    // Whether products with values are added to the output, or start it anew.
    bool accumulate = false;
    while (!(tile.y & LAST)) {
      await();
      tile = shared.tile(slot.index);
      await_turn();
      mma_fence();
      multiply_scores((count - 1) % Q_SLOTS);
      const int keys = slot.index;
      slot.advance();
      look_ahead();
      await();
      multiply_values(slot.index, accumulate);
      pass_turn();
      mma_wait<1>(s);
      take_scores(keys);
      hide();
      // Issuing products takes as long as computing them, so a later wait gains nothing.
      mma_wait<0>(o);
      keep_until_here(p);
      release_slot(shared.empty(slot.index));
      slot.advance();
      const bool half = sight.second_hidden;
      const bool fits = HALVES && !(tile.y & FULL) ? softmax.weigh<true>(s, scale, half, p, added)
                                                   : softmax.weigh<false>(s, scale, half, p, added);
      if (!__all_sync(~0u, fits)) {
        softmax.raise(s, scale, half, fade);
#pragma unroll
        for (int i = 0; i < O_COLUMNS / 2; ++i) o[i] *= fade[i >> 1 & 1];
        softmax.weigh<HALVES>(s, scale, half, p, added);
      }
      softmax.add(added);
      accumulate = true;
    }

    // Values first, so that the output is stored while the next item's scores are being multiplied.
    const Slot values = slot;
    slot.advance();
    barrier_wait_all(shared.full(values.index), values.phase, shared.full(slot.index), slot.phase,
                     shared.q_full(count % Q_SLOTS), count / Q_SLOTS & 1);
    tile = shared.tile(slot.index);
    await_turn();
    mma_fence();
    multiply_values(values.index, accumulate);
    // After the last item this multiplies whatever is in the slots: a branch would delay the products.
    multiply_scores(count % Q_SLOTS);
    pass_turn();
    mma_wait<1>(o);
    keep_until_here(p);
    release_slot(shared.empty(values.index));
    // Read before the output is stored, because of its latency.
    next = shared.item(count % HEADERS);
    end_item();
  }
  mma_wait<0>(s);
  release_slot(shared.empty(slot.index));
}
