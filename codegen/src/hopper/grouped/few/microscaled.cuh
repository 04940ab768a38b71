// ---- Floats of 4 bits (e2m1), eight in a word, of which groups share a power of two ----

// Of the two rows: the power's exponent plus 127.
struct Factors { unsigned exponent[2]; };

__device__ __forceinline__ void load_factors(Factors&, const Half&, int, int, int) {}

__device__ __forceinline__ void find_factors(Factors& factors, const Stages& stages, int row, int chunk, int step,
                                             int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const unsigned address = stages.scales() + scale_at(row + 8 * i, chunk, step, lane);
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(factors.exponent[i]) : "r"(address) : "memory");
  }
}

// Which of eight elements of x belongs to place `i` of those of the weight.
__device__ constexpr int element_at(int i) { return i / 2 + i % 2 * 4; }

// Unpacks piece `p` of eight elements: sign, exponent and fraction are moved to where the type of x has them, which
// makes numbers that are smaller by a power of two.
__device__ __forceinline__ void unpack_places(unsigned (&two)[4], const uint4& words, int p) {
  const unsigned word = p == 0 ? words.x : p == 1 ? words.y : p == 2 ? words.z : words.w;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int move = FLOAT_SHIFT - 4 * i;
    const unsigned number = move >= 0 ? word << (move & 31) : word >> (-move & 31);
    two[i] = word << (12 - 4 * i) & 0x80008000 | number & FLOAT_MASK;
  }
}

// 255 stands for NaN.
__device__ __forceinline__ void add_scaled(float (&sum)[4], const float (&c)[4], const float2&, const Factors& factors) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned bits = factors.exponent[i / 2];
    const float scale = __uint_as_float(bits == 255 ? 0x7fc00000 : bits == 0 ? 0x00400000 : bits << 23);
    sum[i] = fmaf(c[i], scale, sum[i]);
  }
}
