// ---- The activation of gates ----

// x / (1 + exp(-x)).
__device__ __forceinline__ float silu(float x) { return x * reciprocal_fast(1.0f + exp2_fast(-1.44269504f * x)); }
