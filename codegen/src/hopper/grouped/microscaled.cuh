// ---- Floats of 4 bits (e2m1), eight in a word, of which groups share a power of two ----

struct Scales { float scale; };

// That of element `k` of a row, for all elements of a piece: a byte, the power's exponent plus 127; 255 stands for NaN.
__device__ __forceinline__ Scales load_scales(const Weight& weight, const Shape& shape, int expert, int row, int k) {
  const long long at = (static_cast<long long>(expert) * shape.rows + row) * (COLUMNS / GROUP) + k / GROUP;
  const unsigned bits = __ldg(weight.scales + at);
  return {__uint_as_float(bits == 255 ? 0x7fc00000 : bits == 0 ? 0x00400000 : bits << 23)};
}

// The lowest 4 bits. As the lowest of an f32's exponent and the highest of its fraction they stand for a number that is
// smaller by 2^126, which is subnormal where it is 0.5.
__device__ __forceinline__ float e2m1(unsigned bits) {
  return __uint_as_float((bits & 8) << 28 | (bits & 7) << 22) * __uint_as_float(253 << 23);
}

// Unpacks word `p`.
__device__ __forceinline__ void unpack_eight(unsigned (&eight)[4], const unsigned (&words)[4], int p,
                                             const Scales& scales) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned two = words[p] >> 8 * i;
    eight[i] = pack(e2m1(two) * scales.scale, e2m1(two >> 4) * scales.scale);
  }
}
