// ---- Floats of 8 bits (e4m3), four in a word, of which squares of 128 rows and columns share a factor ----

// All 16 rows of a tile are in one square.
struct Factors { float scale; };

// Loaded while a stage is on its way: there are few.
__device__ __forceinline__ void load_factors(Factors& factors, const Half& half, int expert, int row, int step) {
  const long long down = (half.of_expert + GROUP - 1) / GROUP;
  const int across = (COLUMNS + GROUP - 1) / GROUP;
  const int square = min(half.first + row, half.of_expert - 1) / GROUP;
  factors.scale = number(half.weight.scales, (expert * down + square) * across + step * SPAN / GROUP);
}

__device__ __forceinline__ void find_factors(Factors&, const Stages&, int, int, int, int) {}

// Which of eight elements of x belongs to place `i` of those of the weight.
__device__ constexpr int element_at(int i) { return i / 4 * 4 + i / 2 % 2 + i % 2 * 2; }

// Unpacks piece `p` of eight elements: sign, exponent and fraction are moved to where the type of x has them, which
// makes numbers that are smaller by a power of two. Codes of NaN, which no weight has, stand for 480 and -480.
__device__ __forceinline__ void unpack_places(unsigned (&two)[4], const uint4& words, int p) {
  const unsigned pair[2] = {p == 0 ? words.x : words.z, p == 0 ? words.y : words.w};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const unsigned word = pair[i];
    two[2 * i] = word << 8 & 0x80008000 | word << FLOAT_SHIFT & FLOAT_MASK;
    two[2 * i + 1] = word & 0x80008000 | word >> (8 - FLOAT_SHIFT) & FLOAT_MASK;
  }
}

__device__ __forceinline__ void add_scaled(float (&sum)[4], const float (&c)[4], const float2&, const Factors& factors) {
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] = fmaf(c[i], factors.scale, sum[i]);
}
