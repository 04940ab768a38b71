// ---- Entry: which job this block of threads belongs to, and its part in it ----

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(@bounds)
    butterfly_attention(const Element* __restrict__ q, const Element* __restrict__ k,
                        const Element* __restrict__ v, const unsigned* __restrict__ params,@table_arguments
                        Element* __restrict__ o, float* __restrict__ lse) {
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  const Shared shared = {dynamic_shared, shared_address(dynamic_shared)};
  Launch launch = read_launch(params);@table_launch
  launch.batch = params[19];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;

  // A cluster has as many jobs, a power of two, as it takes for all of them.
  const int jobs = launch.q_len * launch.kv_heads * launch.batch;
  const int clusters = gridDim.x / CLUSTER;
  int width = CLUSTER;
  while (width > 1 && clusters * (CLUSTER / width) < jobs) width /= 2;
  const int rank = blockIdx.x % CLUSTER;
  const int job = blockIdx.x / CLUSTER * (CLUSTER / width) + rank / width;
  const int part = rank % width;
  const bool idle = job >= jobs;
  const int local = job % launch.q_len;
  const long long kv_head = job / launch.q_len % launch.kv_heads;
  const long long batch = job / launch.q_len / launch.kv_heads;
  const int query = launch.q_offset + local;

  if (!idle) {
    const Stages stages = stages_of(launch);
    Band list[@bands];
    write_bands(launch, stages, query / BLOCK, list);
    const Bands bands = bands_of(launch, query / BLOCK, list);
    Tiles tiles(bands, query, lane, part, width);
    Part found;
    attend(shared, launch, tiles,
           q + batch * launch.q_batch + kv_head * GROUP * launch.q_head +
               static_cast<long long>(local) * launch.q_token,
           k + batch * launch.k_batch + kv_head * launch.k_head,
           v + batch * launch.v_batch + kv_head * launch.v_head, warp, lane, found);
    wait_copies<0>();
    __syncthreads();
    leave(shared, found, warp, lane);
  }
  synchronize_cluster();
  if (!idle)
    merge(launch, shared, kv_head, rank - part, part, width,
          o + batch * launch.o_batch + kv_head * GROUP * launch.o_head +
              static_cast<long long>(local) * launch.o_token,
          launch.o_head,
          lse + (batch * launch.kv_heads + kv_head) * GROUP * launch.q_len + local, launch.q_len);
  // Shared memory must last until the whole cluster has read it.
  synchronize_cluster();
}
