// ---- Output of a unit, directly from registers to memory ----

__device__ __forceinline__ void store(const Launch& launch, const Shared&, const Item& item,
                                      const Unit& unit, const Softmax& softmax,
                                      const float (&o)[O_COLUMNS / 2], float scale, int consumer,
                                      int, int warp, int lane, Element* output, float* lse) {
  // Consumers that share a unit hold consecutive ranges of its columns.
  const int first = UNITS < CONSUMERS ? consumer * O_COLUMNS : 0;
  float inverse[2];
  const Ends ends = finish(launch, item, unit, softmax, scale, warp, lane, inverse);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const Place place = place_of(launch, item, unit, warp * 16 + r * 8 + lane / 4);
    Element* const to = row_of(launch, item, place, output) + first;
    // 32 columns at a time, so that each lane has 16 consecutive bytes of its row.
#pragma unroll
    for (int c = 0; c < O_COLUMNS / 32; ++c) {
      unsigned x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int i = (c * 4 + j) * 4 + r * 2;
        x[j] = pack(o[i] * inverse[r], o[i + 1] * inverse[r]);
      }
      transpose_quad(x, lane);
      if (place.valid) store_pieces(to + c * 32 + lane % 4 * 8, x);
    }
#pragma unroll
    for (int j = O_COLUMNS / 32 * 4; j < O_COLUMNS / 8; ++j) {
      const int i = j * 4 + r * 2;
      if (place.valid)
        *reinterpret_cast<unsigned*>(to + j * 8 + lane % 4 * 2) =
            pack(o[i] * inverse[r], o[i + 1] * inverse[r]);
    }
  }
  if (first == 0) store_lse(launch, item, unit, ends, warp, lane, lse);
}

__device__ __forceinline__ void write_outputs(const Launch&, const Shared&, const TensorMap*,
                                              Element*, int, int, int) {}
