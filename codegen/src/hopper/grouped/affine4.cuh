// ---- Integers of 4 bits, eight in a word, of which groups share a scale and a bias ----

struct Scales { float scale, bias; };

// Those of element `k` of a row, for all elements of a piece.
__device__ __forceinline__ Scales load_scales(const Weight& weight, const Shape& shape, int expert, int row, int k) {
  const long long at = (static_cast<long long>(expert) * shape.rows + row) * (COLUMNS / GROUP) + k / GROUP;
  return {number(weight.scales, at), number(weight.biases, at)};
}

// Unpacks word `p`. With these bits below the exponent of 2^23, a float is 2^23 more than the integer: one subtraction
// takes the place of a conversion, of which an SM makes only 16 in a cycle.
__device__ __forceinline__ void unpack_eight(unsigned (&eight)[4], const unsigned (&words)[4], int p,
                                             const Scales& scales) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float low = __uint_as_float((words[p] >> 8 * i & 15) | 0x4b000000) - 8388608.0f;
    const float high = __uint_as_float((words[p] >> (8 * i + 4) & 15) | 0x4b000000) - 8388608.0f;
    eight[i] = pack(fmaf(low, scales.scale, scales.bias), fmaf(high, scales.scale, scales.bias));
  }
}
