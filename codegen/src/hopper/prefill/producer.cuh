// ---- Producer: one warp that keeps copies in flight; one elected lane starts them ----
//
// Order of tiles in the ring, for each item: K of its first tile; then, for each further tile, its K
// and the V of the tile before; then V of the last tile. After all items comes a slot without a copy,
// for the item that marks the end.

struct Slot {
  int index = 0;
  unsigned phase = 0;
  __device__ __forceinline__ void advance() {
    if (++index == SLOTS) {
      index = 0;
      phase ^= 1;
    }
  }
};

__device__ __forceinline__ void produce(const Launch& launch, const Shared& shared,
                                        const TensorMap* q_map, const TensorMap* k_map,
                                        const TensorMap* v_map, int lane) {
  Slot slot;
  int count = 0;
  // Each thread block of the cluster copies its part of a tile to all of them.
  auto copy_tile = [&](const TensorMap* map, int chunks, int token, int head, int batch) {
    if (elect()) {
      barrier_expect(shared.full(slot.index), K_TILE * chunks * 128);
      const int row = shared.rank * K_PART;
#pragma unroll
      for (int c = 0; c < chunks; ++c)
        copy_box_to_cluster(shared.slot(slot.index) + (c * K_TILE + row) * 128, map,
                            shared.full(slot.index), c * 64, token + row, head, batch);
    }
    slot.advance();
  };
  auto copy_values = [&](const Item& item, int token) {
    barrier_wait(shared.empty(slot.index), slot.phase ^ 1);
    copy_tile(v_map, V_CHUNKS, token, item.kv_head, item.batch);
  };
  auto copy_queries = [&](const Item& item, int count) {
    const int q_slot = count % Q_SLOTS;
    barrier_wait(shared.q_empty(q_slot), (count / Q_SLOTS & 1) ^ 1);
    if (elect()) {
      barrier_expect(shared.q_full(q_slot), UNITS * 64 * D_CHUNKS * 128);
#pragma unroll 1
      for (int w = 0; w < UNITS; ++w) {
        const Unit unit = unit_of(item, shared.rank * UNITS + w);
#pragma unroll
        for (int c = 0; c < D_CHUNKS; ++c)
          copy_box(shared.q(q_slot, w) + c * 64 * 128, q_map, shared.q_full(q_slot), c * 64,
                   unit.token - launch.q_offset, item.kv_head * GROUP + unit.head, item.batch);
      }
    }
  };
  const PerLaunch per_launch = per_launch_of(launch);
  Item item;
  for (int round = 0; next_item(launch, round, item); ++round) {
    const int q0 = first_query(launch, item);
    const int q1 = last_query(launch, item);

    const int header = count % HEADERS;
    if (lane == 0) {
      shared.item(header) = item;
      write_bands(launch, per_launch, item.token / BLOCK, item.kv_head, shared.bands(header));
    }
    __syncwarp();
    const Bands bands = bands_of(launch, item.token / BLOCK, item.kv_head, item.batch, shared.bands(header));
    const Seen seen(bands, q0, q1, lane);

    int k = seen.next_key(0);
    if (k == UNBOUNDED) k = 0;  // Nothing seen: one tile, all of it masked.
    bool first = true;
    int v_token = 0;
    do {
      const int next = seen.next_key(k + K_TILE);
      int flags = next == UNBOUNDED ? LAST : 0;
      flags |= seen.is_full(k, k + K_TILE) ? FULL : seen.masking_bands(k);
      barrier_wait(shared.empty(slot.index), slot.phase ^ 1);
      if (elect()) shared.tile(slot.index) = make_int2(k, flags);
      copy_tile(k_map, D_CHUNKS, k, item.kv_head, item.batch);
      // Keys first: the slot of the queries becomes free later than a slot of the ring.
      if (first) copy_queries(item, count++);
      else copy_values(item, v_token);
      first = false;
      v_token = k;
      k = next;
    } while (k != UNBOUNDED);
    copy_values(item, v_token);
  }
  barrier_wait(shared.q_empty(count % Q_SLOTS), (count / Q_SLOTS & 1) ^ 1);
  if (lane == 0) {
    shared.item(count % HEADERS).batch = NO_BATCH;
    barrier_arrive(shared.q_full(count % Q_SLOTS));
  }
  barrier_wait(shared.empty(slot.index), slot.phase ^ 1);
  if (lane == 0) barrier_arrive(shared.full(slot.index));
  slot.advance();
  // Shared memory must not be given up before the whole cluster is done with it.
  if (CLUSTER > 1) {
    for (int i = 0; i < SLOTS; ++i) {
      barrier_wait(shared.empty(slot.index), slot.phase ^ 1);
      slot.advance();
    }
  }
}
