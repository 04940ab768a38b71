// ---- Entry: two warpgroups of producers, two of consumers ----

extern "C" __global__ void __launch_bounds__(PRODUCERS + 256, 1)
    butterfly_grouped(const Element* __restrict__ x, const unsigned char* __restrict__ words,
                      const unsigned char* __restrict__ scales, const unsigned char* __restrict__ biases,
                      const unsigned* __restrict__ order, const unsigned* __restrict__ offsets,
                      const unsigned* __restrict__ tiles, Element* __restrict__ y,
                      const __grid_constant__ Shape shape) {
  extern __shared__ unsigned char dynamic_shared[];
  Ring ring;
  ring.address = boxes_address(dynamic_shared);
  if (threadIdx.x == 0) {
    // All threads of the producers fill a slot; a lane of each consumer's warp releases it.
    for (int i = 0; i < SLOTS; ++i) {
      barrier_init(ring.full(), PRODUCERS);
      barrier_init(ring.empty(), 8);
      ring.advance();
    }
    fence_barriers();
  }
  ring.index = 0;
  ring.phase = 0;
  __syncthreads();
  const Lists lists = {order, offsets, tiles};
  // Registers of the four warpgroups are together those that the launch has: 2 * 88 + 2 * 168 = 4 * 128.
  if (threadIdx.x < PRODUCERS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 88;");
    produce(shape, ring, lists, x, {words, scales, biases});
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 168;");
    consume(shape, ring, lists, (threadIdx.x - PRODUCERS) / 128, y);
  }
}
