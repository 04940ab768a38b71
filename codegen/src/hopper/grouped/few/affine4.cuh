// ---- Integers of 4 bits, eight in a word, of which groups share a scale and a bias ----

// Of the two rows.
struct Factors { float scale[2], bias[2]; };

__device__ __forceinline__ void load_factors(Factors&, const Half&, int, int, int) {}

__device__ __forceinline__ void find_factors(Factors& factors, const Stages& stages, int row, int chunk, int step,
                                             int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = scale_at(row + 8 * i, chunk, step, lane);
    factors.scale[i] = shared_number(stages.scales() + at);
    factors.bias[i] = shared_number(stages.biases() + at);
  }
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

// `ones` are the sums of x in the lane's two columns.
__device__ __forceinline__ void add_scaled(float (&sum)[4], const float (&c)[4], const float2& ones,
                                           const Factors& factors) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float one = i % 2 == 0 ? ones.x : ones.y;
    sum[i] = fmaf(fmaf(-OFFSET, one, c[i]), factors.scale[i / 2], sum[i]);
    sum[i] = fmaf(one, factors.bias[i / 2], sum[i]);
  }
}
