// ---- Results of parts of a query's keys, in memory, and their merging ----

// For each job, part and row (q head): the output before the division by the sum, V_COLUMNS floats, then
// the base-2 logit that its weights are relative to, their sum, and two floats that are not used.
struct Partials {
  float* at;
  unsigned parts;
  static constexpr unsigned PITCH = V_COLUMNS + 4;

  // Goes to a part of a job.
  __device__ __forceinline__ void select(unsigned long long job, unsigned part) {
    at += (job * parts + part) * (GROUP * PITCH);
  }
};

// Writes the merged results of a thread block's teams.
__device__ __forceinline__ void keep(const Shared& shared, const Partials& partials) {
  constexpr unsigned FOURS = V_COLUMNS / 4;
  for (unsigned at = threadIdx.x; at < GROUP * FOURS; at += THREADS) {
    const unsigned row = at / FOURS, column = at % FOURS * 4;
    const Merged all = merged_teams(shared, row, column);
    float* to = partials.at + row * Partials::PITCH;
    *reinterpret_cast<float4*>(to + column) = make_float4(all.x[0], all.x[1], all.x[2], all.x[3]);
    if (column == 0) *reinterpret_cast<float2*>(to + V_COLUMNS) = make_float2(all.top, all.sum);
  }
}

// Columns of a row that a thread block merges; each thread has four of them, of the parts of its slice.
constexpr int MERGED = 32;
constexpr int SLICES = THREADS / (MERGED / 4);
// Parts that a thread loads at a time.
constexpr int AT_ONCE = 8;

// Merges the parts of MERGED columns of a row into the output, always in the same order.
__device__ __forceinline__ void merge_parts(const Launch& launch, Partials partials, Element* o, float* lse) {
  __shared__ float4 sums[SLICES][MERGED / 4];
  __shared__ float2 rows[SLICES];
  constexpr unsigned CHUNKS = (V_COLUMNS + MERGED - 1) / MERGED;
  const unsigned chunk = blockIdx.x % CHUNKS, row = blockIdx.x / CHUNKS % GROUP;
  const unsigned local = blockIdx.x / (CHUNKS * GROUP), kv_head = blockIdx.y, batch = blockIdx.z;
  const unsigned lane = threadIdx.x % (MERGED / 4), slice = threadIdx.x / (MERGED / 4);
  const unsigned column = chunk * MERGED + lane * 4;
  const bool has_column = V_COLUMNS % MERGED == 0 || column < V_COLUMNS;
  const unsigned long long heads =
      static_cast<unsigned long long>(batch) * static_cast<unsigned>(launch.kv_heads) + kv_head;
  partials.select(heads * static_cast<unsigned>(launch.q_len) + local, 0);
  const float* from = partials.at + row * Partials::PITCH;

  Merged mine = {minus_infinity()};
#pragma unroll 1
  for (unsigned first = slice; first < partials.parts; first += AT_ONCE * SLICES) {
    float2 row_of[AT_ONCE];
    float4 x[AT_ONCE];
    float top = mine.top;
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      const unsigned part = first + i * SLICES;
      const float* of_part = from + static_cast<unsigned long long>(part) * (GROUP * Partials::PITCH);
      const bool is_part = part < partials.parts;
      row_of[i] = is_part ? *reinterpret_cast<const float2*>(of_part + V_COLUMNS)
                          : make_float2(minus_infinity(), 0.0f);
      x[i] = is_part && has_column ? *reinterpret_cast<const float4*>(of_part + column)
                                   : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) top = fmaxf(top, row_of[i].x);
    const float base = top == minus_infinity() ? 0.0f : top;
    const float fade = exp2_fast(mine.top - base);
    mine.top = top;
    mine.sum *= fade;
#pragma unroll
    for (int c = 0; c < 4; ++c) mine.x[c] *= fade;
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      const float share = exp2_fast(row_of[i].x - base);
      mine.sum += share * row_of[i].y;
      mine.x[0] += share * x[i].x;
      mine.x[1] += share * x[i].y;
      mine.x[2] += share * x[i].z;
      mine.x[3] += share * x[i].w;
    }
  }
  sums[slice][lane] = make_float4(mine.x[0], mine.x[1], mine.x[2], mine.x[3]);
  if (lane == 0) rows[slice] = make_float2(mine.top, mine.sum);
  __syncthreads();
  if (slice > 0 || !has_column) return;
  const Merged all = merged<SLICES>([&](int i) { return rows[i]; },
                                    [&](int i, int c) { return reinterpret_cast<float*>(&sums[i][lane])[c]; });
  const float top = all.top, sum = all.sum;
@sink(kv_head * GROUP + row)
  const float inverse = sum > 0.0f ? fade * reciprocal_fast(total) : 0.0f;
  o += static_cast<unsigned long long>(batch) * launch.o_batch +
       static_cast<unsigned long long>(kv_head * GROUP + row) * launch.o_head +
       static_cast<unsigned long long>(local) * launch.o_token;
  store_pair(o + column, pack(all.x[0] * inverse, all.x[1] * inverse),
             pack(all.x[2] * inverse, all.x[3] * inverse));
  if (column == 0)
    store_float(lse + (heads * GROUP + row) * static_cast<unsigned>(launch.q_len) + local,
                total > 0.0f ? (highest + log2_fast(total)) * 0.69314718f : minus_infinity());
}
