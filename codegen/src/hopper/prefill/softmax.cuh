// ---- Online softmax of a unit; a thread owns two rows of scores, eight apart ----

struct Softmax {
  // Largest logit in use, and the sum of the weights of this thread's keys.
  float top[2], sum[2];

  __device__ __forceinline__ void start() {
    top[0] = top[1] = minus_infinity();
    sum[0] = sum[1] = 0.0f;
  }

  // Scores become weights. Returns whether the output has to be multiplied by `fade`: only when
  // a logit exceeds the one in use by more than SLACK powers of two, which keeps weights small.
  __device__ __forceinline__ bool weigh(float (&s)[K_TILE / 2], float scale, float slack,
                                        float (&fade)[2]) {
    float most[2][2] = {{s[0], s[1]}, {s[2], s[3]}};
#pragma unroll
    for (int i = 4; i < K_TILE / 2; ++i)
      most[i >> 1 & 1][i & 1] = fmaxf(most[i >> 1 & 1][i & 1], s[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) most[r][0] = fmaxf(most[r][0], most[r][1]);
    const bool grown =
        __any_sync(~0u, most[0][0] > top[0] + slack || most[1][0] > top[1] + slack);
    if (grown) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float higher = fmaxf(top[r], most[r][0]);
        higher = fmaxf(higher, __shfl_xor_sync(~0u, higher, 1));
        higher = fmaxf(higher, __shfl_xor_sync(~0u, higher, 2));
        fade[r] = exp2_fast((top[r] - finite(higher)) * scale);
        top[r] = higher;
        sum[r] *= fade[r];
      }
    }
    const float offset[2] = {finite(top[0]) * scale, finite(top[1]) * scale};
    // Independent partial sums, so that none waits for another.
    float part[8] = {};
#pragma unroll
    for (int i = 0; i < K_TILE / 2; ++i) {
      s[i] = exp2_fast(fmaf(s[i], scale, -offset[i >> 1 & 1]));
      part[i % 8] += s[i];
    }
    sum[0] += (part[0] + part[1]) + (part[4] + part[5]);
    sum[1] += (part[2] + part[3]) + (part[6] + part[7]);
    return grown;
  }

  // Rows that see nothing have a top of minus infinity.
  static __device__ __forceinline__ float finite(float x) {
    return x == minus_infinity() ? 0.0f : x;
  }
};

// Hides the keys that a band does not show.
__device__ __forceinline__ void mask(float (&s)[K_TILE / 2], const unsigned (&seen)[2]) {
#pragma unroll
  for (int i = 0; i < K_TILE / 2; ++i)
    if (!(seen[i >> 1 & 1] >> (i / 4 * 2 + i % 2) & 1)) s[i] = minus_infinity();
}
