// ---- The parts of a cluster become the output ----

// Leaves what the team found in shared memory.
__device__ __forceinline__ void leave(const Shared& shared, const Part& part, int team, int warp, int lane) {
#pragma unroll
  for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = r * 16 + h * 8 + lane / 4;
      float sum = part.sum[r][h];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (row < GROUP) {
        if (warp == 0 && lane % 4 == 0) shared.of_team(team, row) = make_float2(part.top[r][h], sum);
#pragma unroll
        for (int c = 0; c < 2 * COLUMN_PAIRS; ++c) {
          const int column = column_of(c / 2, warp) + c % 2 * 8 + lane % 4 * 2;
          if (V_COLUMNS % (TEAM * 16) == 0 || column < V_COLUMNS)
            reinterpret_cast<float2&>(shared.output(team, row, column)) =
                make_float2(part.o[r][c][h * 2], part.o[r][c][h * 2 + 1]);
        }
      }
    }
}

// Merges the teams of a block, in the place of the first.
__device__ __forceinline__ void merge_teams(const Shared& shared) {
  for (int at = threadIdx.x; at < GROUP * (V_COLUMNS / 4); at += THREADS) {
    const int row = at / (V_COLUMNS / 4);
    const int column = at % (V_COLUMNS / 4) * 4;
    float2 rows[TEAMS];
    float top = minus_infinity();
#pragma unroll
    for (int i = 0; i < TEAMS; ++i) {
      rows[i] = shared.of_team(i, row);
      top = fmaxf(top, rows[i].x);
    }
    const float base = top == minus_infinity() ? 0.0f : top;
    float sum = 0.0f;
    float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < TEAMS; ++i) {
      const float share = exp2_fast(rows[i].x - base);
      const float4 part = reinterpret_cast<float4&>(shared.output(i, row, column));
      sum += share * rows[i].y;
      x.x += share * part.x;
      x.y += share * part.y;
      x.z += share * part.z;
      x.w += share * part.w;
    }
    reinterpret_cast<float4&>(shared.output(0, row, column)) = x;
    if (column == 0) shared.of_row(row) = make_float2(top, sum);
  }
}

// Each block of a job merges its share of the columns, four at a time. The job's blocks are
// `width` of the cluster from `first` on, and this is the `part`-th.
__device__ __forceinline__ void merge(const Launch& launch, const Shared& shared, int kv_head,
                                      int first, int part, int width, Element* o, unsigned o_head, float* lse, unsigned lse_head) {
  for (int at = threadIdx.x * width + part; at < GROUP * (V_COLUMNS / 4); at += THREADS * width) {
    const int row = at / (V_COLUMNS / 4);
    const int column = at % (V_COLUMNS / 4) * 4;
    const unsigned of_row = shared.address + ROWS_AT + row * 8;
    const unsigned output = shared.address + SLOTS_AT + (row * V_COLUMNS + column) * 4;
    float2 rows[CLUSTER];
    float4 parts[CLUSTER];
#pragma unroll
    for (int i = 0; i < CLUSTER; ++i) {
      rows[i] = make_float2(minus_infinity(), 0.0f);
      parts[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (i < width) {
        rows[i] = load_from_cluster(place_in(of_row, first + i));
        parts[i] = load_four_from_cluster(place_in(output, first + i));
      }
    }
    float top = minus_infinity();
#pragma unroll
    for (int i = 0; i < CLUSTER; ++i) top = fmaxf(top, rows[i].x);
    const float base = top == minus_infinity() ? 0.0f : top;
    float sum = 0.0f;
    float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < CLUSTER; ++i) {
      const float share = exp2_fast(rows[i].x - base);
      sum += share * rows[i].y;
      x.x += share * parts[i].x;
      x.y += share * parts[i].y;
      x.z += share * parts[i].z;
      x.w += share * parts[i].w;
    }
@sink(kv_head * GROUP + row)
    const float inverse = sum > 0.0f ? fade / total : 0.0f;
    const uint2 packed = make_uint2(pack(x.x * inverse, x.y * inverse), pack(x.z * inverse, x.w * inverse));
    *reinterpret_cast<uint2*>(o + static_cast<long long>(row) * o_head + column) = packed;
    if (column == 0)
      lse[static_cast<long long>(row) * lse_head] =
          total > 0.0f ? (highest + log2_fast(total)) * 0.69314718f : minus_infinity();
  }
}
