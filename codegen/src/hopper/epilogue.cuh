// ---- Epilogue: what all of its forms share ----

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
    inverse[r] = sum > 0.0f ? reciprocal_fast(sum) : 0.0f;
    const Place place = place_of(launch, item, unit, warp * 16 + r * 8 + lane / 4);
    if (place.valid && lane % 4 == 0) {
      const int heads = launch.kv_heads * GROUP;
      const long long at = static_cast<long long>(item.batch * heads + place.head) * launch.q_len;
      lse[at + place.token] =
          sum > 0.0f ? (softmax.top[r] * scale + log2_fast(sum)) * 0.69314718f : minus_infinity();
    }
  }
}
