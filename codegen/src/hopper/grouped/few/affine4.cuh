// ---- Integers of 4 bits, eight in a word, of which groups share a scale and a bias ----

// Of the two rows.
struct Factors { float scale[2], bias[2]; };

__device__ __forceinline__ Factors load_factors(const Weight& weight, int, int, long long row, long long other, int k) {
  const long long at[2] = {row * (COLUMNS / GROUP) + k / GROUP, other * (COLUMNS / GROUP) + k / GROUP};
  Factors factors;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    factors.scale[i] = number(weight.scales, at[i]);
    factors.bias[i] = number(weight.biases, at[i]);
  }
  return factors;
}

// Which of eight elements of x belongs to place `i` of those of the weight.
__device__ constexpr int element_at(int i) { return i / 2 + i % 2 * 4; }

// Unpacks piece `p` of eight elements: with these bits below the exponent of OFFSET, an element is OFFSET more than the
// integer.
__device__ __forceinline__ void unpack_places(unsigned (&two)[4], const uint4& words, int p) {
  const unsigned word = p == 0 ? words.x : p == 1 ? words.y : p == 2 ? words.z : words.w;
#pragma unroll
  for (int i = 0; i < 4; ++i) two[i] = chosen_or(word >> 4 * i, 0x000f000f, MAGIC);
}

// `ones` has the sums of x.
__device__ __forceinline__ void add_scaled(float (&sum)[4], const float (&c)[4], const float (&ones)[4],
                                           const Factors& factors) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sum[i] = fmaf(fmaf(-OFFSET, ones[i], c[i]), factors.scale[i / 2], sum[i]);
    sum[i] = fmaf(ones[i], factors.bias[i / 2], sum[i]);
  }
}
