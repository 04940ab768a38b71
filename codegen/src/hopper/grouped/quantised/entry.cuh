// ---- Entry: a warpgroup with the producer, two of consumers ----

extern "C" __global__ void __launch_bounds__(384, 1)
    butterfly_grouped_quantised(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map,
                                const __grid_constant__ TensorMap other_map, const void*, const void*, const void*,
                                const float* __restrict__ x_factors, const unsigned char* __restrict__ factors,
                                const unsigned char* __restrict__ other_factors, const unsigned* __restrict__ order,
                                const unsigned* __restrict__ offsets, const unsigned* __restrict__ tiles,
                                Element* __restrict__ y, const __grid_constant__ Shape shape) {
  extern __shared__ unsigned char dynamic_shared[];
  Ring ring;
  ring.address = boxes_address(dynamic_shared);
  if (threadIdx.x == 0) {
    for (int i = 0; i < SLOTS; ++i) {
      barrier_init(ring.full(), 1);
      barrier_init(ring.empty(), 8);
      ring.advance();
    }
    fence_barriers();
    prefetch_map(&a_map);
    prefetch_map(&b_map);
    prefetch_map(&other_map);
  }
  ring.index = 0;
  ring.phase = 0;
  __syncthreads();
  const Lists lists = {order, offsets, tiles};
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == 0) produce(shape, ring, lists, &a_map, &b_map, &other_map);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    consume(shape, ring, lists, threadIdx.x / 128 - 1, {x_factors, {factors, other_factors}}, y);
  }
}
