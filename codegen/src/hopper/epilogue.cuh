// ---- Epilogue: a unit's output and log-sum-exp, from registers to memory ----

// A 4x4 transposition among four neighbouring lanes: lane i ends with element i of each.
__device__ __forceinline__ void transpose_quad(unsigned (&x)[4], int lane) {
  const bool odd = lane & 1;
  const bool high = lane & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const unsigned got = __shfl_xor_sync(~0u, odd ? x[i] : x[i + 1], 1);
    if (odd) x[i] = got;
    else x[i + 1] = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const unsigned got = __shfl_xor_sync(~0u, high ? x[i] : x[i + 2], 2);
    if (high) x[i] = got;
    else x[i + 2] = got;
  }
}

__device__ __forceinline__ void store(const Launch& launch, const Item& item, const Unit& unit,
                                      const Softmax& softmax, const float (&o)[V_COLUMNS / 2],
                                      float scale, int warp, int lane, Element* output,
                                      float* lse) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = softmax.sum[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
    const int row = warp * 16 + r * 8 + lane / 4;
    const int token = unit.token + row % UNIT_TOKENS - launch.q_offset;
    const int of_group = unit.head + row / UNIT_TOKENS;
    const int head = item.kv_head * GROUP + of_group;
    const bool valid = !unit.idle && of_group < GROUP && token >= 0 && token < launch.q_len;
    if (valid && lane % 4 == 0) {
      const long long at = static_cast<long long>(item.batch) * launch.kv_heads * GROUP + head;
      lse[at * launch.q_len + token] =
          sum > 0.0f ? (softmax.top[r] * scale + log2_fast(sum)) * 0.69314718f : minus_infinity();
    }
    Element* const to = output + static_cast<long long>(item.batch) * launch.o_batch +
                        static_cast<long long>(head) * launch.o_head +
                        static_cast<long long>(token) * launch.o_token;
    // 32 columns at a time, so that each lane has 16 consecutive bytes of its row.
#pragma unroll
    for (int c = 0; c < V_COLUMNS / 32; ++c) {
      unsigned x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int i = (c * 4 + j) * 4 + r * 2;
        x[j] = pack(o[i] * inverse, o[i + 1] * inverse);
      }
      transpose_quad(x, lane);
      if (valid)
        *reinterpret_cast<uint4*>(to + c * 32 + lane % 4 * 8) = make_uint4(x[0], x[1], x[2], x[3]);
    }
#pragma unroll
    for (int j = V_COLUMNS / 32 * 4; j < V_COLUMNS / 8; ++j) {
      const int i = j * 4 + r * 2;
      if (valid)
        *reinterpret_cast<unsigned*>(to + j * 8 + lane % 4 * 2) =
            pack(o[i] * inverse, o[i + 1] * inverse);
    }
  }
}
