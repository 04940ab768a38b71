// ---- Merging the results of teams, and of a cluster's thread blocks, into the output ----

// Writes the team's result to shared memory.
__device__ __forceinline__ void leave(const Shared& shared, const Part& part, int team, int warp, int lane) {
  // Sums first: their shuffles have a long latency, and would otherwise wait for the outputs.
  float sums[HEAD_TILES][2];
#pragma unroll
  for (int r = 0; r < HEAD_TILES; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) sums[r][h] = part.sum[r][h];
#pragma unroll
  for (int distance = 4; distance < 32; distance *= 2)
#pragma unroll
    for (int r = 0; r < HEAD_TILES; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h) sums[r][h] += __shfl_xor_sync(~0u, sums[r][h], distance);
#pragma unroll
  for (int r = 0; r < HEAD_TILES; ++r)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = r * 8 + lane % 4 * 2 + h;
      if (GROUP % 8 != 0 && row >= GROUP) continue;
      if (warp == 0 && lane < 4) shared.of_team(team, row) = make_float2(part.base[r][h], sums[r][h]);
#pragma unroll
      for (int c = 0; c < COLUMN_TILES; ++c)
        if (has_columns(step_of(c, warp)))
          reinterpret_cast<float2&>(shared.output(team, row, step_of(c, warp) * 16 + lane / 4)) =
              make_float2(part.o[r][c][h], part.o[r][c][2 + h]);
    }
}

// Four columns of a row, merged over several parts of its keys; weights are relative to `top`.
struct Merged { float top, sum, x[4]; };

// Merges PARTS parts: `row_of(i)` gives top and sum of part i, `output_of(i, c)` its c-th column.
template <int PARTS, typename RowOf, typename OutputOf>
__device__ __forceinline__ Merged merged(RowOf row_of, OutputOf output_of) {
  float2 rows[PARTS];
  float parts[PARTS][4];
#pragma unroll
  for (int i = 0; i < PARTS; ++i) {
    rows[i] = row_of(i);
#pragma unroll
    for (int c = 0; c < 4; ++c) parts[i][c] = output_of(i, c);
  }
  Merged all = {minus_infinity()};
#pragma unroll
  for (int i = 0; i < PARTS; ++i) all.top = fmaxf(all.top, rows[i].x);
  const float base = all.top == minus_infinity() ? 0.0f : all.top;
#pragma unroll
  for (int i = 0; i < PARTS; ++i) {
    const float share = exp2_fast(rows[i].x - base);
    all.sum += share * rows[i].y;
#pragma unroll
    for (int c = 0; c < 4; ++c) all.x[c] += share * parts[i][c];
  }
  return all;
}

__device__ __forceinline__ Merged merged_teams(const Shared& shared, unsigned row, unsigned column) {
  return merged<TEAMS>([&](int i) { return shared.of_team(i, row); },
                       [&](int i, int c) { return shared.output(i, row, column + c); });
}

__device__ __forceinline__ Merged merged_cluster(const Shared& shared, unsigned row, unsigned column) {
  const unsigned of_row = shared.address + ROWS_AT + row * 8, output = shared.address + SLOTS_AT;
  return merged<CLUSTER>([&](int i) { return load_pair_from_cluster(place_in(of_row, i)); },
                         [&](int i, int c) {
                           const unsigned at = 4 * Shared::at_output(row, column + c);
                           return load_from_cluster(place_in(output, i) + at);
                         });
}

// Writes four columns of a row of the output, which begins at `o`, and its log-sum-exp.
__device__ __forceinline__ void write_merged(const Launch& launch, const Merged& all, unsigned kv_head, unsigned row,
                                             unsigned column, Element* o, float* lse) {
  const float top = all.top, sum = all.sum;
@sink(kv_head * GROUP + row)
  const float inverse = sum > 0.0f ? fade * reciprocal_fast(total) : 0.0f;
  store_pair(o + static_cast<unsigned long long>(row) * launch.o_head + column,
             pack(all.x[0] * inverse, all.x[1] * inverse), pack(all.x[2] * inverse, all.x[3] * inverse));
  if (column == 0)
    store_float(lse + static_cast<unsigned long long>(row) * static_cast<unsigned>(launch.q_len),
                total > 0.0f ? (highest + log2_fast(total)) * 0.69314718f : minus_infinity());
}

// Writes the output of a job. Each of its WIDTH thread blocks, of which this is number `part`, writes a
// share of the columns, four at a time.
template <int WIDTH>
__device__ __forceinline__ void merge(const Launch& launch, const Shared& shared, unsigned kv_head,
                                      unsigned part, Element* o, float* lse) {
  constexpr unsigned FOURS = V_COLUMNS / 4;
  if (WIDTH > 1) {
    for (unsigned at = threadIdx.x; at < GROUP * FOURS; at += THREADS) {
      const unsigned row = at / FOURS, column = at % FOURS * 4;
      const Merged all = merged_teams(shared, row, column);
      // Overwrites the first team's result.
#pragma unroll
      for (int c = 0; c < 4; ++c) shared.output(0, row, column + c) = all.x[c];
      if (column == 0) shared.of_row(row) = make_float2(all.top, all.sum);
    }
    synchronize_cluster();
  }
  for (unsigned at = threadIdx.x * WIDTH + part; at < GROUP * FOURS; at += THREADS * WIDTH) {
    const unsigned row = at / FOURS, column = at % FOURS * 4;
    const Merged all = WIDTH > 1 ? merged_cluster(shared, row, column) : merged_teams(shared, row, column);
    write_merged(launch, all, kv_head, row, column, o, lse);
  }
  // Shared memory must not be given up before the others of the cluster have read it.
  if (WIDTH > 1) synchronize_cluster();
}
