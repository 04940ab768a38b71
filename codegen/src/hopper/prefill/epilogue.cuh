// ---- Epilogue: from sums to the output and log-sum-exp of a unit's rows ----

// Query and q head of a row of the output; valid if the launch has that row.
struct Place { int token, head; bool valid; };

__device__ __forceinline__ Place place_of(const Launch& launch, const Item& item, const Unit& unit,
                                          int row) {
  const int of_group = unit.head + row / UNIT_TOKENS;
  const int token = unit.token + row % UNIT_TOKENS - launch.q_offset;
  return {token, item.kv_head * GROUP + of_group,
          !unit.idle && of_group < GROUP && token >= 0 && token < launch.q_len};
}

// The address of the row in memory.
__device__ __forceinline__ Element* row_of(const Launch& launch, const Item& item,
                                           const Place& place, Element* output) {
  return output + static_cast<long long>(item.batch) * launch.o_batch +
         static_cast<long long>(place.head) * launch.o_head +
         static_cast<long long>(place.token) * launch.o_token;
}

// Of a thread's two rows: the base-2 logit that weights are relative to, and the sum of weights, both
// with the sink included.
struct Ends { float highest[2], total[2]; };

// Sets `inverse` to the factors that the outputs of the thread's rows have to be multiplied by.
__device__ __forceinline__ Ends finish(const Launch& launch, const Item& item, const Unit& unit,
                                       const Softmax& softmax, float scale, int warp, int lane,
                                       float (&inverse)[2]) {
  Ends ends;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = softmax.sum[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const float top = softmax.top[r] * scale;
    const Place place = place_of(launch, item, unit, warp * 16 + r * 8 + lane / 4);
@sink(min(place.head, launch.kv_heads * GROUP - 1))
    inverse[r] = sum > 0.0f ? fade * reciprocal_fast(total) : 0.0f;
    ends.highest[r] = highest;
    ends.total[r] = total;
  }
  return ends;
}

// Writes the log-sum-exp. Four lanes have the same two rows: each of the first two writes one.
__device__ __forceinline__ void store_lse(const Launch& launch, const Item& item, const Unit& unit,
                                          const Ends& ends, int warp, int lane, float* lse) {
  const int r = lane % 2;
  const Place place = place_of(launch, item, unit, warp * 16 + r * 8 + lane / 4);
  const float total = r ? ends.total[1] : ends.total[0];
  const float highest = r ? ends.highest[1] : ends.highest[0];
  const int heads = launch.kv_heads * GROUP;
  const long long at = static_cast<long long>(item.batch * heads + place.head) * launch.q_len;
  if (place.valid && lane % 4 < 2)
    lse[at + place.token] =
        total > 0.0f ? (highest + log2_fast(total)) * 0.69314718f : minus_infinity();
}
