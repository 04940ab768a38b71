// ---- Storing rows from registers to memory ----

// A 4x4 transposition among four neighbouring lanes: lane i ends up with element i of each.
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
