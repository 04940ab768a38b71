// ---- Rows of x in shared memory, and how products find them ----

// Pieces of eight elements that a lane has of them.
constexpr int LANE_PIECES = ELEMENTS / 8;
// Bytes of a row: lanes of neighbouring rows read different banks.
constexpr int PITCH = STEPS * SPAN * 2 + 64;
// Zeros for lanes that multiply nothing.
constexpr int ZEROS = SPAN * 2 + 64;

// Where a piece of eight elements goes, the one from element `k` on of row `row`: four lanes find their pieces side by
// side.
__device__ __forceinline__ unsigned piece_at(unsigned to, int row, int k) {
  const int lane = k % SPAN / ELEMENTS, piece = k % ELEMENTS / 8;
  return to + row * PITCH + (k / SPAN * (SPAN / 8) + piece * 4 + lane) * 16;
}

// Puts it there, in the order in which the weight is unpacked.
__device__ __forceinline__ void put_piece(unsigned at, const unsigned (&from)[4]) {
  unsigned out[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int low = element_at(2 * j), high = element_at(2 * j + 1);
    const unsigned a = from[low / 2] >> low % 2 * 16, b = from[high / 2] >> high % 2 * 16;
    out[j] = a & 0xffff | b << 16;
    if (X_POWER != 0) out[j] = times(out[j], X_POWER);
  }
  store_eight(at, {out[0], out[1], out[2], out[3]});
}

// Rows of x as they are in memory.
struct Rows {
  const Element* x;

  struct Early {};
  __device__ __forceinline__ void begin(Early&) const {}

  // Copies the first `count` of them, and zeros behind those of their last span.
  __device__ __forceinline__ void fill(unsigned to, unsigned, int count, const Early&) const {
    constexpr int pieces = STEPS * SPAN / 8;
    for (int i = threadIdx.x; i < count * pieces; i += WARPS * 32) {
      const int row = i / pieces, k = i % pieces * 8;
      uint4 in = {0, 0, 0, 0};
      if (k < COLUMNS) in = __ldg(reinterpret_cast<const uint4*>(x + static_cast<long long>(row) * COLUMNS + k));
      put_piece(piece_at(to, row, k), {in.x, in.y, in.z, in.w});
    }
  }
};
