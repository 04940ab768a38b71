// ---- Entry: a cluster takes a query and a kv head of a sequence ----

extern "C" __global__ void __cluster_dims__(SPLITS, 1, 1) __launch_bounds__(THREADS)
    butterfly_attention(const Element* __restrict__ q, const Element* __restrict__ k,
                        const Element* __restrict__ v, const unsigned* __restrict__ params,@table_arguments
                        Element* __restrict__ o, float* __restrict__ lse) {
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  const Shared shared = {dynamic_shared, shared_address(dynamic_shared)};
  Launch launch = read_launch(params);@table_launch
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int rank = blockIdx.x % SPLITS;
  const int local = blockIdx.x / SPLITS;
  const int query = launch.q_offset + local;
  const long long batch = blockIdx.z;
  const long long kv_head = blockIdx.y;

  const Stages stages = stages_of(launch);
  Band list[@bands];
  write_bands(launch, stages, query / BLOCK, list);
  const Bands bands = bands_of(launch, query / BLOCK, list);
  Tiles tiles(bands, query, lane, rank);
  Part part;
  attend(shared, launch, tiles,
         q + batch * launch.q_batch + kv_head * GROUP * launch.q_head +
             static_cast<long long>(local) * launch.q_token,
         k + batch * launch.k_batch + kv_head * launch.k_head,
         v + batch * launch.v_batch + kv_head * launch.v_head, warp, lane, part);
  wait_copies<0>();
  __syncthreads();
  leave(shared, part, warp, lane);
  synchronize_cluster();
  merge(shared, rank,
        o + batch * launch.o_batch + kv_head * GROUP * launch.o_head +
            static_cast<long long>(local) * launch.o_token,
        launch.o_head,
        lse + (batch * launch.kv_heads + kv_head) * GROUP * launch.q_len + local, launch.q_len);
  // Shared memory must last until the whole cluster has read it.
  synchronize_cluster();
}
