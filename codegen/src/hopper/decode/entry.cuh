// ---- Entry: which job this block of threads belongs to, and its part in it ----

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(@bounds)
    butterfly_attention(const Element* __restrict__ q, const Element* __restrict__ k,
                        const Element* __restrict__ v, const unsigned* __restrict__ params,@table_arguments
                        Element* __restrict__ o, float* __restrict__ lse) {
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  const Shared shared = {dynamic_shared, shared_address(dynamic_shared)};
  Launch launch = read_launch(params);@table_launch
  launch.batch = params[19];
  const int team = threadIdx.x / 32 / TEAM;
  const int warp = threadIdx.x / 32 % TEAM;
  const int lane = threadIdx.x % 32;

  // A cluster has as many jobs, a power of two, as it takes for all of them.
  const unsigned jobs = launch.q_len * launch.kv_heads * launch.batch;
  const unsigned clusters = gridDim.x / CLUSTER;
  int width_bits = CLUSTER_BITS;
  while (width_bits > 0 && clusters << (CLUSTER_BITS - width_bits) < jobs) --width_bits;
  const int width = 1 << width_bits;
  const unsigned job = blockIdx.x >> width_bits;
  const int rank = blockIdx.x % CLUSTER;
  const int part = rank % static_cast<unsigned>(width);
  const bool idle = job >= jobs;
  // One query is the usual case, and divisions are slow.
  const unsigned of_queries = launch.q_len == 1 ? job : job / launch.q_len;
  const int local = job - of_queries * launch.q_len;
  const long long batch = of_queries / launch.kv_heads;
  const long long kv_head = of_queries - static_cast<unsigned>(batch) * launch.kv_heads;
  const int query = launch.q_offset + local;

  if (!idle) {
    const Stages stages = stages_of(launch);
    Band list[@bands];
    write_bands(launch, stages, query / BLOCK, list);
    const Bands bands = bands_of(launch, query / BLOCK, list);
    Tiles tiles(bands, query, lane, part * TEAMS + team, width * TEAMS);
    Part found;
    attend(shared, launch, tiles,
           q + batch * launch.q_batch + kv_head * GROUP * launch.q_head +
               static_cast<long long>(local) * launch.q_token,
           k + batch * launch.k_batch + kv_head * launch.k_head,
           v + batch * launch.v_batch + kv_head * launch.v_head, team, warp, lane, found);
    leave(shared, found, team, warp, lane);
    __syncthreads();
    merge_teams(shared);
  }
  if (width > 1) synchronize_cluster();
  else __syncthreads();
  if (!idle)
    merge(launch, shared, kv_head, rank - part, part, width,
          o + batch * launch.o_batch + kv_head * GROUP * launch.o_head +
              static_cast<long long>(local) * launch.o_token,
          launch.o_head,
          lse + (batch * launch.kv_heads + kv_head) * GROUP * launch.q_len + local, launch.q_len);
  // Shared memory must last until the others of its job have read it.
  if (width > 1) synchronize_cluster();
}
