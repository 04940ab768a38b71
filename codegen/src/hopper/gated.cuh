// ---- Products as they are stored ----

// Products `at` and `at + 1`; with gates, those of the second half of c, times silu of those of the first.
template <bool GATED, int COUNT>
__device__ __forceinline__ unsigned stored(const float (&c)[COUNT], int at) {
  if (!GATED) return pack(c[at], c[at + 1]);
  return pack(silu(c[at]) * c[COUNT / 2 + at], silu(c[at + 1]) * c[COUNT / 2 + at + 1]);
}
