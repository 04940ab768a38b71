// ---- Rows of x, or pairs of a row and one of its experts ----

// The expert whose rows a workgroup multiplies; ids that no expert has stand for the last one.
__device__ __forceinline__ int expert_of(const FewShape& shape, const unsigned* ids) {
  return shape.experts > 0 ? min(ids[blockIdx.y], shape.experts - 1u) : 0;
}

// With ids, workgroups of each pair multiply its row of x with the weight of its expert; without, all of them multiply
// the same rows of x with the one weight that there is.
extern "C" __global__ void __launch_bounds__(WARPS * 32 + 128, 1)
    butterfly_grouped_few(const Element* __restrict__ x, const unsigned char* __restrict__ words,
                          const unsigned char* __restrict__ scales, const unsigned char* __restrict__ biases,
                          const unsigned char* __restrict__ words_apart,
                          const unsigned char* __restrict__ scales_apart,
                          const unsigned char* __restrict__ biases_apart, const unsigned* __restrict__ ids,
                          Element* __restrict__ y, const __grid_constant__ FewShape shape) {
  const Halves halves = {{words, scales, biases}, {words_apart, scales_apart, biases_apart}};
  const long long to = shape.experts > 0 ? blockIdx.y : shape.first;
  const Rows rows = {x + (shape.experts > 0 ? to / shape.share : to) * COLUMNS};
  multiply_few(shape, halves, expert_of(shape, ids), rows, y + to * shape.width);
}
