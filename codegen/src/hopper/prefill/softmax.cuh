// ---- Online softmax of a unit; a thread owns two rows of scores, eight apart ----

struct Softmax {
  // Of each row: the score that its weights are relative to (its maximum so far, or a guess); the same
  // as a base-2 logit, always finite; and the sum of the weights of this thread's keys.
  float top[2], offset[2], sum[2];

  __device__ __forceinline__ void start() {
    top[0] = top[1] = minus_infinity();
    sum[0] = sum[1] = 0.0f;
  }

  // Makes weights relative to the largest score of a tile's first sixteen keys. A score of the row is
  // never too large for that, and `weigh` detects if it is too small.
  __device__ __forceinline__ void guess(const float (&s)[K_TILE / 2], float scale) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top[r] = fmaxf(fmaxf(s[2 * r], s[2 * r + 1]), fmaxf(s[4 + 2 * r], s[5 + 2 * r]));
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
      offset[r] = top[r] * scale;
    }
  }

  // Makes weights relative to the largest score so far, and rescales the sums. The caller has to
  // multiply the output so far by `fade`. `half`: the second half of the scores is hidden.
  __device__ __forceinline__ void raise(const float (&s)[K_TILE / 2], float scale, bool half,
                                        float (&fade)[2]) {
    float most[2][2] = {{s[0], s[1]}, {s[2], s[3]}};
    auto look = [&](int from, int to) {
#pragma unroll
      for (int i = from; i < to; ++i)
        most[i >> 1 & 1][i & 1] = fmaxf(most[i >> 1 & 1][i & 1], s[i]);
    };
    look(4, K_TILE / 4);
    if (!half) look(K_TILE / 4, K_TILE / 2);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float higher = fmaxf(top[r], fmaxf(most[r][0], most[r][1]));
      higher = fmaxf(higher, __shfl_xor_sync(~0u, higher, 1));
      higher = fmaxf(higher, __shfl_xor_sync(~0u, higher, 2));
      // Rows that see nothing have a top of minus infinity.
      offset[r] = higher == minus_infinity() ? 0.0f : higher * scale;
      fade[r] = exp2_fast(fmaf(top[r], scale, -offset[r]));
      top[r] = higher;
      sum[r] *= fade[r];
    }
  }

  // Computes the weights of scores, two in a register, and their sums, `added`. Returns false if a
  // weight may not fit its type, or if the row has seen no key so far: then `raise` has to come first.
  // Looking at the sums is cheaper than looking for the largest score of every tile.
  template <bool MAY_HALVE>
  __device__ __forceinline__ bool weigh(const float (&s)[K_TILE / 2], float scale, bool half,
                                        unsigned (&p)[K_TILE / 4], float (&added)[2]) const {
    // Independent partial sums, so that none waits for another.
    constexpr int PARTS = K_TILE > 64 ? K_TILE / 16 : 4;
    float part[PARTS] = {};
    auto some = [&](int from, int to) {
#pragma unroll
      for (int i = from; i < to; i += 2) {
        const float x = exp2_fast(fmaf(s[i], scale, -offset[i >> 1 & 1]));
        const float y = exp2_fast(fmaf(s[i + 1], scale, -offset[i >> 1 & 1]));
        part[i % PARTS] += x;
        part[i % PARTS + 1] += y;
        p[i / 2] = pack(x, y);
      }
    };
    if (!MAY_HALVE) {
      some(0, K_TILE / 2);
    } else {
      some(0, K_TILE / 4);
      if (!half) {
        some(K_TILE / 4, K_TILE / 2);
      } else {
#pragma unroll
        for (int i = K_TILE / 8; i < K_TILE / 4; ++i) p[i] = 0;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      added[r] = part[2 * r] + part[2 * r + 1];
      if (PARTS > 4) added[r] += part[PARTS - 4 + 2 * r] + part[PARTS - 3 + 2 * r];
    }
    return added[0] <= MOST && added[1] <= MOST && top[0] > minus_infinity() &&
           top[1] > minus_infinity();
  }

  __device__ __forceinline__ void add(const float (&added)[2]) {
    sum[0] += added[0];
    sum[1] += added[1];
  }
};

// Masks the keys that are not seen. A second half that no row of the warp sees is left as it is.
__device__ __forceinline__ void mask(float (&s)[K_TILE / 2], const Sight& sight) {
  auto some = [&](int from, int to) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int i = from; i < to; ++i)
        if (!(sight.seen[r] >> i & 1)) s[i / 2 * 4 + r * 2 + i % 2] = minus_infinity();
  };
  if (!sight.first_seen) some(0, K_TILE / 8);
  if (!sight.second_hidden) some(K_TILE / 8, K_TILE / 4);
}
