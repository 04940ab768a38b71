// ---- Norms of rows as x ----

// How many rows are added to each row before its norm, whether each has a factor, whether sums and norms are kept; what
// is added to the mean square.
struct NormShape { int terms, weighted, sums, norms; float epsilon; int unused; };
struct alignas(8) NormedShape { FewShape few; NormShape norm; };

// Loads that stay where they are in the program.
__device__ __forceinline__ uint4 load_now(const void* from) {
  uint4 x;
  asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from)
               : "memory");
  return x;
}

__device__ __forceinline__ void floats_of(float (&eight)[8], const uint4& low, const uint4& high) {
  const unsigned words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) eight[i] = __uint_as_float(words[i]);
}

// Rows and what is added to them; where sums and norms go.
struct Normed {
  const float* x;
  const Element* added;
  const float* factors;
  const float* weight;
  float* sums;
  Element* norms;
  NormShape shape;

  // Pieces of eight elements of a row, and how many of them a thread has.
  static constexpr int PIECES = COLUMNS / 8;
  static constexpr int OWN = (PIECES + WARPS * 32 - 1) / (WARPS * 32);

  // A thread's pieces of the first row, of the first that is added to it, and of the weight.
  struct Early { uint4 x[OWN][2], added[OWN], weight[OWN][2]; };

  __device__ __forceinline__ int element_of(int i) const { return (i * WARPS * 32 + threadIdx.x) * 8; }

  __device__ __forceinline__ void begin(Early& early) const {
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      const int k = element_of(i);
      if (k >= COLUMNS) break;
      early.x[i][0] = load_now(x + k);
      early.x[i][1] = load_now(x + k + 4);
      if (shape.terms > 0) early.added[i] = load_now(added + k);
      early.weight[i][0] = load_now(weight + k);
      early.weight[i][1] = load_now(weight + k + 4);
    }
  }

  // The sum of eight elements of a row and of what is added to it.
  __device__ __forceinline__ void load(float (&sum)[8], int row, int k, const Early& early, int i) const {
    const float* const from = x + static_cast<long long>(row) * COLUMNS + k;
    float own[8], more[8] = {};
    if (row == 0) floats_of(own, early.x[i][0], early.x[i][1]);
    else floats_of(own, load_now(from), load_now(from + 4));
#pragma unroll 4
    for (int term = 0; term < shape.terms; ++term) {
      const int number = row * shape.terms + term;
      const Element* const of_term = added + static_cast<long long>(number) * COLUMNS + k;
      const uint4 in = number == 0 ? early.added[i] : __ldg(reinterpret_cast<const uint4*>(of_term));
      const float factor = shape.weighted ? __ldg(factors + number) : 1.0f;
      const unsigned words[4] = {in.x, in.y, in.z, in.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 two = wide(words[j]);
        more[2 * j] = fmaf(factor, two.x, more[2 * j]);
        more[2 * j + 1] = fmaf(factor, two.y, more[2 * j + 1]);
      }
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) sum[j] = own[j] + more[j];
  }

  // Puts norms of the first `count` rows where products find them; warps meet by `scratch`. The first workgroup keeps
  // what is to be kept.
  __device__ __forceinline__ void fill(unsigned to, unsigned scratch, int count, const Early& early) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int row = 0; row < count; ++row) {
      float sum[OWN][8];
#pragma unroll
      for (int i = 0; i < OWN; ++i) {
        const int k = element_of(i);
        if (k < COLUMNS) load(sum[i], row, k, early, i);
      }
      float square = 0.0f;
#pragma unroll
      for (int i = 0; i < OWN; ++i) {
        const int k = element_of(i);
        if (k >= COLUMNS) break;
#pragma unroll
        for (int j = 0; j < 8; ++j) square = fmaf(sum[i][j], sum[i][j], square);
        if (shape.sums && blockIdx.x == 0) {
          float4* const out = reinterpret_cast<float4*>(sums + static_cast<long long>(row) * COLUMNS + k);
          out[0] = {sum[i][0], sum[i][1], sum[i][2], sum[i][3]};
          out[1] = {sum[i][4], sum[i][5], sum[i][6], sum[i][7]};
        }
      }
#pragma unroll
      for (int apart = 16; apart > 0; apart /= 2) square += __shfl_xor_sync(~0u, square, apart);
      // Rows take two places in turn: warps that are still at this row meet those ahead at the next one.
      const unsigned squares = scratch + row % 2 * WARPS * 4;
      if (lane == 0) store_one(squares + warp * 4, square);
      meet(1, WARPS * 32);
      float all = 0.0f;
#pragma unroll
      for (int i = 0; i < WARPS; ++i) all += load_one(squares + i * 4);
      const float factor = rsqrtf(all / COLUMNS + shape.epsilon);
#pragma unroll
      for (int i = 0; i < OWN; ++i) {
        const int k = element_of(i);
        if (k >= COLUMNS) break;
        float of_weight[8];
        floats_of(of_weight, early.weight[i][0], early.weight[i][1]);
        unsigned words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float one = sum[i][2 * j] * factor * of_weight[2 * j];
          words[j] = pack(one, sum[i][2 * j + 1] * factor * of_weight[2 * j + 1]);
        }
        if (shape.norms && blockIdx.x == 0) {
          uint4* const out = reinterpret_cast<uint4*>(norms + static_cast<long long>(row) * COLUMNS + k);
          *out = {words[0], words[1], words[2], words[3]};
        }
        put_piece(piece_at(to, row, k), words);
      }
      // Zeros behind the last span.
      const int k = COLUMNS + threadIdx.x * 8;
      if (k < STEPS * SPAN) store_eight(piece_at(to, row, k), {0, 0, 0, 0});
    }
  }
};

// Rows of x, the norms of sums, times the one weight that there is.
extern "C" __global__ void __launch_bounds__(WARPS * 32 + 128, 1)
    butterfly_grouped_normed(const float* __restrict__ x, const Element* __restrict__ added,
                             const float* __restrict__ factors, const float* __restrict__ weight,
                             const unsigned char* __restrict__ words, const unsigned char* __restrict__ scales,
                             const unsigned char* __restrict__ biases, float* __restrict__ sums,
                             Element* __restrict__ norms, Element* __restrict__ y,
                             const __grid_constant__ NormedShape shape) {
  const Weight own = {words, scales, biases};
  const Normed rows = {x, added, factors, weight, sums, norms, shape.norm};
  multiply_few(shape.few, {own, own}, 0, rows, y);
}
