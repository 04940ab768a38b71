// ---- Norms of rows as x ----

// How many rows are added to each row before its norm, whether each has a factor, whether sums and norms are kept; what
// is added to the mean square.
struct NormShape { int terms, weighted, sums, norms; float epsilon; int unused; };
struct alignas(8) NormedShape { FewShape few; NormShape norm; };

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

  // The sum of eight elements of a row and of what is added to it.
  __device__ __forceinline__ void load(float (&sum)[8], int row, int k) const {
    const float4* const from = reinterpret_cast<const float4*>(x + static_cast<long long>(row) * COLUMNS + k);
    const float4 low = __ldg(from), high = __ldg(from + 1);
    const float own[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    float more[8] = {};
#pragma unroll 4
    for (int term = 0; term < shape.terms; ++term) {
      const int number = row * shape.terms + term;
      const uint4 in = __ldg(reinterpret_cast<const uint4*>(added + static_cast<long long>(number) * COLUMNS + k));
      const float factor = shape.weighted ? __ldg(factors + number) : 1.0f;
      const unsigned words[4] = {in.x, in.y, in.z, in.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 two = wide(words[i]);
        more[2 * i] = fmaf(factor, two.x, more[2 * i]);
        more[2 * i + 1] = fmaf(factor, two.y, more[2 * i + 1]);
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] = own[i] + more[i];
  }

  // Puts norms of the first `count` rows where products find them; warps meet by `scratch`. The first workgroup keeps
  // what is to be kept.
  __device__ __forceinline__ void fill(unsigned to, unsigned scratch, int count) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int row = 0; row < count; ++row) {
      float sum[OWN][8];
#pragma unroll
      for (int i = 0; i < OWN; ++i) {
        const int k = (i * WARPS * 32 + threadIdx.x) * 8;
        if (k < COLUMNS) load(sum[i], row, k);
      }
      float square = 0.0f;
#pragma unroll
      for (int i = 0; i < OWN; ++i) {
        const int k = (i * WARPS * 32 + threadIdx.x) * 8;
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
        const int k = (i * WARPS * 32 + threadIdx.x) * 8;
        if (k >= COLUMNS) break;
        const float4* const from = reinterpret_cast<const float4*>(weight + k);
        const float4 low = __ldg(from), high = __ldg(from + 1);
        const float of_weight[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
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
