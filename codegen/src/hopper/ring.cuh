// ---- A ring of slots ----

// A slot has M_TILE rows of a, and below them rows of b, each with 128 bytes of a step of their elements. Barriers are
// behind the slots: all that say that a slot is full, then all that say that it is empty.
struct Ring {
  unsigned address;
  int index = 0;
  unsigned phase = 0;
  __device__ __forceinline__ unsigned a() const { return address + index * SLOT_BYTES; }
  __device__ __forceinline__ unsigned b() const { return a() + M_TILE * 128; }
  __device__ __forceinline__ unsigned full() const { return address + SLOTS * SLOT_BYTES + index * 8; }
  __device__ __forceinline__ unsigned empty() const { return full() + SLOTS * 8; }
  __device__ __forceinline__ void advance() {
    if (++index == SLOTS) {
      index = 0;
      phase ^= 1;
    }
  }
};
