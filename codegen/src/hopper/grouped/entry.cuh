// ---- Entry: one producer, two consumers ----

extern "C" __global__ void __launch_bounds__(384, 1)
    butterfly_grouped(const Element* __restrict__ x, const unsigned char* __restrict__ words,
                      const unsigned char* __restrict__ scales, const unsigned char* __restrict__ biases,
                      const unsigned* __restrict__ order, const unsigned* __restrict__ offsets,
                      const unsigned* __restrict__ tiles, Element* __restrict__ y,
                      const __grid_constant__ Shape shape) {
  extern __shared__ unsigned char dynamic_shared[];
  Ring ring;
  ring.address = boxes_address(dynamic_shared);
  if (threadIdx.x == 0) {
    // All threads of the producer fill a slot; a lane of each consumer's warp releases it.
    for (int i = 0; i < SLOTS; ++i) {
      barrier_init(ring.full(), 128);
      barrier_init(ring.empty(), 8);
      ring.advance();
    }
    fence_barriers();
  }
  ring.index = 0;
  ring.phase = 0;
  __syncthreads();
  const Lists lists = {order, offsets, tiles};
  // Registers of the three warpgroups are together those that the launch has: 120 + 2 * 192 = 3 * 168.
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 120;");
    produce(shape, ring, lists, x, {words, scales, biases});
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 192;");
    consume(shape, ring, lists, threadIdx.x / 128 - 1, y);
  }
}
