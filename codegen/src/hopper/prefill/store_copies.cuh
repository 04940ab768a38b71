// ---- Output of a unit, by TMA from the slot of its queries ----

// Writes the output over the unit's queries, whose products are done. A warp next to the producer
// stores it to memory from there.
__device__ __forceinline__ void store(const Launch& launch, const Shared& shared, const Item& item,
                                      const Unit& unit, const Softmax& softmax,
                                      const float (&o)[O_COLUMNS / 2], float scale, int consumer,
                                      int q_slot, int warp, int lane, Element*, float* lse) {
  float inverse[2];
  const Ends ends = finish(launch, item, unit, softmax, scale, warp, lane, inverse);
  // Wait for the other warps, whose products read the same queries.
  synchronize(CONSUMER_AT + consumer, 128);
  const unsigned row = shared.q(q_slot, consumer) + (warp * 16 + lane % 16) * 128;
#pragma unroll
  for (int j = 0; j < O_COLUMNS / 8; j += 2) {
    unsigned x[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = (j + i / 2) * 4 + i % 2 * 2;
      if (at < O_COLUMNS / 2) x[i] = pack(o[at] * inverse[i % 2], o[at + 1] * inverse[i % 2]);
    }
    store_matrices(row + j / 8 * 64 * 128 + ((j % 8 + lane / 16) ^ lane % 8) * 16, x);
  }
  // By every thread that wrote, before it arrives.
  fence_copies();
  __syncwarp();
  if (elect()) barrier_arrive(shared.o_full(q_slot, consumer));
  store_lse(launch, item, unit, ends, warp, lane, lse);
}

// Stores the unit's rows without TMA, for a unit that starts before the first query of the launch.
__device__ __forceinline__ void copy_rows(const Launch& launch, const Item& item, const Unit& unit,
                                          unsigned staging, Element* output, int lane) {
  constexpr int PIECES = O_COLUMNS / 8;
#pragma unroll 1
  for (int i = lane; i < 64 * PIECES; i += 32) {
    const int row = i / PIECES;
    const int piece = i % PIECES;
    const Place place = place_of(launch, item, unit, row);
    unsigned x[4];
    load_shared(x, staging + (piece / 8 * 64 + row) * 128 + (piece % 8 ^ row % 8) * 16);
    if (place.valid) store_pieces(row_of(launch, item, place, output) + piece * 8, x);
  }
}

// Run by each warp next to the producer, for some of the consumers: stores their outputs, and releases
// the slots of queries.
__device__ __forceinline__ void write_outputs(const Launch& launch, const Shared& shared,
                                              const TensorMap* o_map, Element* output, int first,
                                              int step, int lane) {
  for (int count = 0;; ++count) {
    const int q_slot = count % Q_SLOTS;
    const unsigned phase = count / Q_SLOTS & 1;
    barrier_wait(shared.q_full(q_slot), phase);
    const Item item = shared.item(count % HEADERS);
    if (item.batch == NO_BATCH) break;
#pragma unroll 1
    for (int consumer = first; consumer < CONSUMERS; consumer += step) {
      const Unit unit = unit_of(item, shared.rank * UNITS + consumer);
      const unsigned staging = shared.q(q_slot, consumer);
      barrier_wait(shared.o_full(q_slot, consumer), phase);
      // A TMA store clips rows beyond the end of the tensor, but must not start before its beginning.
      const int token = unit.token - launch.q_offset;
      if (token < 0) copy_rows(launch, item, unit, staging, output, lane);
      else if (lane == 0) {
#pragma unroll 1
        for (int h = 0; h < UNIT_HEADS; ++h)
          if (!unit.idle && unit.head + h < GROUP)
#pragma unroll
            for (int c = 0; c < V_CHUNKS; ++c)
              store_box(o_map, staging + (c * 64 + h * UNIT_TOKENS) * 128, c * 64, token,
                        item.kv_head * GROUP + unit.head + h, item.batch);
        commit_stores();
        wait_stores();
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(shared.q_empty(q_slot));
    }
  }
}
