// ---- Elements of the type of x ----

struct Factors {};

__device__ __forceinline__ void load_factors(Factors&, const Half&, int, int, int) {}

__device__ __forceinline__ void find_factors(Factors&, const Stages&, int, int, int, int) {}

// Which of eight elements of x belongs to place `i` of those of the weight.
__device__ constexpr int element_at(int i) { return i; }

// Unpacks piece `p` of eight elements, whose values are the numbers of the weight.
__device__ __forceinline__ void unpack_places(unsigned (&two)[4], const uint4& words, int) {
  two[0] = words.x;
  two[1] = words.y;
  two[2] = words.z;
  two[3] = words.w;
}

__device__ __forceinline__ void add_scaled(float (&sum)[4], const float (&c)[4], const float2&, const Factors&) {
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] += c[i];
}
