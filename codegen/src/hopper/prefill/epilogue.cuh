// ---- Epilogue: a unit's output and log-sum-exp, from registers to memory ----

// A thread's rows of the output: row `r` of two.
struct Place { int token, head; bool valid; };

__device__ __forceinline__ Place place_of(const Launch& launch, const Item& item, const Unit& unit,
                                          int row) {
  const int of_group = unit.head + row / UNIT_TOKENS;
  const int token = unit.token + row % UNIT_TOKENS - launch.q_offset;
  return {token, item.kv_head * GROUP + of_group,
          !unit.idle && of_group < GROUP && token >= 0 && token < launch.q_len};
}

// Writes the log-sum-exp of the thread's rows; returns what their outputs are to be multiplied by.
__device__ __forceinline__ void finish(const Launch& launch, const Item& item, const Unit& unit,
                                       const Softmax& softmax, float scale, int warp, int lane,
                                       float* lse, float (&inverse)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = softmax.sum[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const float top = softmax.top[r] * scale;
    const Place place = place_of(launch, item, unit, warp * 16 + r * 8 + lane / 4);
@sink(min(place.head, launch.kv_heads * GROUP - 1))
    inverse[r] = sum > 0.0f ? fade * reciprocal_fast(total) : 0.0f;
    if (place.valid && lane % 4 == 0) {
      const int heads = launch.kv_heads * GROUP;
      const long long at = static_cast<long long>(item.batch * heads + place.head) * launch.q_len;
      lse[at + place.token] =
          total > 0.0f ? (highest + log2_fast(total)) * 0.69314718f : minus_infinity();
    }
  }
}

__device__ __forceinline__ void store(const Launch& launch, const Item& item, const Unit& unit,
                                      const Softmax& softmax, const float (&o)[V_COLUMNS / 2],
                                      float scale, int warp, int lane, Element* output,
                                      float* lse) {
  float inverse[2];
  finish(launch, item, unit, softmax, scale, warp, lane, lse, inverse);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const Place place = place_of(launch, item, unit, warp * 16 + r * 8 + lane / 4);
    Element* const to = output + static_cast<long long>(item.batch) * launch.o_batch +
                        static_cast<long long>(place.head) * launch.o_head +
                        static_cast<long long>(place.token) * launch.o_token;
    // 32 columns at a time, so that each lane has 16 consecutive bytes of its row.
#pragma unroll
    for (int c = 0; c < V_COLUMNS / 32; ++c) {
      unsigned x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int i = (c * 4 + j) * 4 + r * 2;
        x[j] = pack(o[i] * inverse[r], o[i + 1] * inverse[r]);
      }
      transpose_quad(x, lane);
      if (place.valid) store_pieces(to + c * 32 + lane % 4 * 8, x);
    }
#pragma unroll
    for (int j = V_COLUMNS / 32 * 4; j < V_COLUMNS / 8; ++j) {
      const int i = j * 4 + r * 2;
      if (place.valid)
        *reinterpret_cast<unsigned*>(to + j * 8 + lane % 4 * 2) =
            pack(o[i] * inverse[r], o[i + 1] * inverse[r]);
    }
  }
}
