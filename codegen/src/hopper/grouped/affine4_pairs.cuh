// ---- Integers of 4 bits, eight in a word, of which groups share a scale and a bias, both of the type of x ----

// Twice each, as both elements of a pair.
struct Scales { unsigned scale, bias; };

__device__ __forceinline__ unsigned both(const unsigned char* from, long long at) {
  return __ldg(reinterpret_cast<const unsigned short*>(from) + at) * 0x10001u;
}

// Those of element `k` of a row, for all elements of a piece.
__device__ __forceinline__ Scales load_scales(const Weight& weight, const Shape& shape, int expert, int row, int k) {
  const long long at = (static_cast<long long>(expert) * shape.rows + row) * (COLUMNS / GROUP) + k / GROUP;
  return {both(weight.scales, at), both(weight.biases, at)};
}

// Unpacks word `p`, two integers at a time that are 16 bits apart. In the lowest bits of BASE an integer is added to
// BASE, which subtracts exactly; so all is rounded once, after the product and the sum.
__device__ __forceinline__ void unpack_eight(unsigned (&eight)[4], const unsigned (&words)[4], int p,
                                             const Scales& scales) {
  unsigned pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned raised = (words[p] >> 4 * i & 0x000f000f) | BASE;
    asm("{\n"
        ".reg .b32 integers;\n"
        "sub.rn." PAIR " integers, %1, %2;\n"
        "fma.rn." PAIR " %0, integers, %3, %4;\n"
        "}" : "=r"(pairs[i]) : "r"(raised), "r"(BASE), "r"(scales.scale), "r"(scales.bias));
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    eight[i] = __byte_perm(pairs[2 * i], pairs[2 * i + 1], 0x5410);
    eight[2 + i] = __byte_perm(pairs[2 * i], pairs[2 * i + 1], 0x7632);
  }
}
