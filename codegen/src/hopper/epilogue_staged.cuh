// ---- Epilogue, staged: a unit's output through shared memory, where its Q was ----

// Each warp stores its own 16 rows: none waits for another.
__device__ __forceinline__ void store(const Launch& launch, const Item& item, const Unit& unit,
                                      const Softmax& softmax, const float (&o)[V_COLUMNS / 2],
                                      float scale, int warp, int lane, unsigned staging,
                                      Element* output, float* lse) {
  float inverse[2];
  finish(launch, item, unit, softmax, scale, warp, lane, lse, inverse);
  const unsigned rows = staging + warp * 16 * 128;
  const unsigned row = rows + lane % 16 * 128;
#pragma unroll
  for (int g = 0; g < (V_COLUMNS + 15) / 16; ++g) {
    unsigned x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int i = g * 8 + j * 2;
      x[j] = i < V_COLUMNS / 2 ? pack(o[i] * inverse[j & 1], o[i + 1] * inverse[j & 1]) : 0;
    }
    const int chunk = g / 4;
    const int column = (g % 4 * 2 + lane / 16) ^ (lane % 8);
    store_matrices(row + chunk * 64 * 128 + column * 16, x[0], x[1], x[2], x[3]);
  }
  __syncwarp();
  const int of_group = unit.head + warp * 16 / UNIT_TOKENS;
  const int token = unit.token + warp * 16 % UNIT_TOKENS - launch.q_offset;
  Element* const to = output + static_cast<long long>(item.batch) * launch.o_batch +
                      static_cast<long long>(item.kv_head * GROUP + of_group) * launch.o_head;
  // Pieces of 16 bytes, consecutive ones by consecutive lanes.
  constexpr int PIECES = V_COLUMNS / 8;
#pragma unroll
  for (int i = 0; i < PIECES * 16; i += 32) {
    const int r = (i + lane) / PIECES;
    const int piece = (i + lane) % PIECES;
    if (r < 16 && !unit.idle && of_group < GROUP && token + r >= 0 && token + r < launch.q_len)
      *reinterpret_cast<uint4*>(to + static_cast<long long>(token + r) * launch.o_token +
                                piece * 8) =
          load_shared(rows + piece / 8 * 64 * 128 + r * 128 + (piece % 8 ^ r % 8) * 16);
  }
  // The next Q comes here by the other path to shared memory.
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
