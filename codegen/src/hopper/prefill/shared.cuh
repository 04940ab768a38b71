// ---- Shared memory: slots of Q, the ring of K and V, and their barriers and headers ----

// A header is an item and its bands. While the producer writes one, consumers may still read those of
// as many items as there are slots for Q, and of one more.
constexpr int HEADERS = Q_SLOTS + 2;

// Numbers of named barriers. From CONSUMER_AT on: one for the warps of each consumer. From ORDER_AT on:
// one for the turns of each consumer or, where consumers share a unit, one for all.
constexpr int CONSUMER_AT = 1, ORDER_AT = CONSUMER_AT + CONSUMERS;

struct Shared {
  unsigned char* bytes;
  unsigned address;
  // Rank of this thread block in the cluster.
  int rank;

  __device__ __forceinline__ unsigned q(int slot, int unit) const {
    return address + (slot * UNITS + unit) * Q_BYTES;
  }
  __device__ __forceinline__ unsigned slot(int i) const { return address + RING_AT + i * SLOT_BYTES; }
  __device__ __forceinline__ unsigned full(int i) const { return address + BARRIERS_AT + i * 8; }
  __device__ __forceinline__ unsigned empty(int i) const { return full(SLOTS + i); }
  __device__ __forceinline__ unsigned q_full(int i) const { return full(2 * SLOTS + i); }
  __device__ __forceinline__ unsigned q_empty(int i) const { return full(2 * SLOTS + Q_SLOTS + i); }
  // A consumer's output overwrites its queries.
  __device__ __forceinline__ unsigned o_full(int i, int consumer) const {
    return full(2 * SLOTS + 2 * Q_SLOTS + i * CONSUMERS + consumer);
  }
  // First key and flags of the tile whose K is in slot `i`.
  __device__ __forceinline__ int2& tile(int i) const {
    return reinterpret_cast<int2*>(bytes + TILES_AT)[i];
  }
  __device__ __forceinline__ Item& item(int i) const {
    return reinterpret_cast<Item*>(bytes + ITEMS_AT)[i];
  }
  __device__ __forceinline__ Band* bands(int i) const {
    return reinterpret_cast<Band*>(bytes + BANDS_AT) + i * BANDS;
  }
};
