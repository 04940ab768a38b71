// ---- What teams, and blocks of a cluster, found becomes the output ----

// Leaves what the team found in shared memory.
__device__ __forceinline__ void leave(const Shared& shared, const Part& part, int team, int warp, int lane) {
#pragma unroll
  for (int r = 0; r < HEAD_TILES; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = r * 8 + lane % 4 * 2 + h;
      if (GROUP % 8 != 0 && row >= GROUP) continue;
#pragma unroll
      for (int c = 0; c < COLUMN_TILES; ++c)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = step_of(c, warp) * 16 + i * 8 + lane / 4;
          if (V_COLUMNS % (TEAM * 16) == 0 || column < V_COLUMNS)
            shared.output(team, row, column) = part.o[r][c][i * 2 + h];
        }
    }
#pragma unroll
  for (int r = 0; r < HEAD_TILES; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = r * 8 + lane % 4 * 2 + h;
      float sum = part.sum[r][h];
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) sum += __shfl_xor_sync(~0u, sum, distance);
      if (warp == 0 && lane < 4 && row < GROUP) shared.of_team(team, row) = make_float2(part.base[r][h], sum);
    }
}

// Four columns of a row, over several parts of its keys; weights are relative to `top`.
struct Merged { float top, sum; float4 x; };

// `row_of(i)` gives top and sum of the `i`-th part, `output_of(i)` its columns.
template <int PARTS, typename RowOf, typename OutputOf>
__device__ __forceinline__ Merged merged(RowOf row_of, OutputOf output_of) {
  float2 rows[PARTS];
  float4 parts[PARTS];
#pragma unroll
  for (int i = 0; i < PARTS; ++i) {
    rows[i] = row_of(i);
    parts[i] = output_of(i);
  }
  Merged all = {minus_infinity(), 0.0f, make_float4(0.0f, 0.0f, 0.0f, 0.0f)};
#pragma unroll
  for (int i = 0; i < PARTS; ++i) all.top = fmaxf(all.top, rows[i].x);
  const float base = all.top == minus_infinity() ? 0.0f : all.top;
#pragma unroll
  for (int i = 0; i < PARTS; ++i) {
    const float share = exp2_fast(rows[i].x - base);
    all.sum += share * rows[i].y;
    all.x.x += share * parts[i].x;
    all.x.y += share * parts[i].y;
    all.x.z += share * parts[i].z;
    all.x.w += share * parts[i].w;
  }
  return all;
}

__device__ __forceinline__ Merged merged_teams(const Shared& shared, unsigned row, unsigned column) {
  return merged<TEAMS>([&](int i) { return shared.of_team(i, row); },
                       [&](int i) { return reinterpret_cast<float4&>(shared.output(i, row, column)); });
}

__device__ __forceinline__ Merged merged_cluster(const Shared& shared, unsigned row, unsigned column) {
  const unsigned of_row = shared.address + ROWS_AT + row * 8;
  const unsigned output = shared.address + SLOTS_AT + (row * O_PITCH + column) * 4;
  return merged<CLUSTER>([&](int i) { return load_from_cluster(place_in(of_row, i)); },
                         [&](int i) { return load_four_from_cluster(place_in(output, i)); });
}

// The output of a job, of whose WIDTH blocks this is the `part`-th: each has a share of the columns,
// four at a time.
template <int WIDTH>
__device__ __forceinline__ void merge(const Launch& launch, const Shared& shared, unsigned kv_head,
                                      unsigned part, Element* o, float* lse) {
  constexpr unsigned FOURS = V_COLUMNS / 4;
  if (WIDTH > 1) {
    for (unsigned at = threadIdx.x; at < GROUP * FOURS; at += THREADS) {
      const unsigned row = at / FOURS, column = at % FOURS * 4;
      const Merged all = merged_teams(shared, row, column);
      // In the place of the first team.
      reinterpret_cast<float4&>(shared.output(0, row, column)) = all.x;
      if (column == 0) shared.of_row(row) = make_float2(all.top, all.sum);
    }
    synchronize_cluster();
  }
  for (unsigned at = threadIdx.x * WIDTH + part; at < GROUP * FOURS; at += THREADS * WIDTH) {
    const unsigned row = at / FOURS, column = at % FOURS * 4;
    const Merged all = WIDTH > 1 ? merged_cluster(shared, row, column) : merged_teams(shared, row, column);
    const float top = all.top, sum = all.sum;
@sink(kv_head * GROUP + row)
    const float inverse = sum > 0.0f ? fade * reciprocal_fast(total) : 0.0f;
    store_pair(o + static_cast<unsigned long long>(row) * launch.o_head + column,
               pack(all.x.x * inverse, all.x.y * inverse), pack(all.x.z * inverse, all.x.w * inverse));
    if (column == 0)
      store_float(lse + static_cast<unsigned long long>(row) * static_cast<unsigned>(launch.q_len),
                  total > 0.0f ? (highest + log2_fast(total)) * 0.69314718f : minus_infinity());
  }
  // Shared memory must last until the others of the cluster have read it.
  if (WIDTH > 1) synchronize_cluster();
}
