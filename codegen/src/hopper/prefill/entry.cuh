// ---- Entry: roles ----

extern "C" __global__ void @cluster__launch_bounds__(THREADS, 1)
    butterfly_attention(@arguments) {
  extern __shared__ unsigned char dynamic_shared[];
  const unsigned start = boxes_address(dynamic_shared);
  const Shared shared = {dynamic_shared + (start - shared_address(dynamic_shared)), start,
                         static_cast<int>(blockIdx.x % CLUSTER)};
  Launch launch = read_launch(parameters);@launch

  if (threadIdx.x == 0) {
    for (int i = 0; i < SLOTS; ++i) {
      barrier_init(shared.full(i), 1);
      barrier_init(shared.empty(i), CLUSTER * CONSUMERS * 4);
    }
    for (int i = 0; i < Q_SLOTS; ++i) {
      barrier_init(shared.q_full(i), 1);
      barrier_init(shared.q_empty(i), STORED_BY_COPY ? CONSUMERS : CONSUMERS * 4);
      for (int w = 0; w < CONSUMERS; ++w) barrier_init(shared.o_full(i, w), 4);
    }
    fence_barriers();
    asm volatile("fence.proxy.async;" ::: "memory");
    prefetch_map(&q_map);
    prefetch_map(&k_map);
    prefetch_map(&v_map);
    prefetch_map(&o_map);
  }
  synchronize_cluster();

  // Warp and warpgroup numbers go through `__shfl_sync` so that the compiler knows that they are the
  // same in all lanes.
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER_REGISTERS));
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (warp == 0) produce(launch, shared, &q_map, &k_map, &v_map, threadIdx.x);
    else write_outputs(launch, shared, &o_map, o, warp - 1, 3, threadIdx.x % 32);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
    const int consumer = __shfl_sync(~0u, threadIdx.x / 128 - 1, 0);
    consume(launch, shared, consumer, o, lse);
  }
}
