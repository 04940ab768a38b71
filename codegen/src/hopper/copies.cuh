// ---- mbarriers, and copies by TMA ----

struct alignas(64) TensorMap { unsigned long long words[16]; };

// True in one thread of a warp, the same one each time. Unlike with a comparison of lane numbers, the
// compiler knows that it is only one.
__device__ __forceinline__ bool elect() {
  unsigned elected;
  asm volatile(
      "{\n"
      ".reg .pred yes;\n"
      "elect.sync _|yes, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, yes;\n"
      "}" : "=r"(elected));
  return elected;
}

__device__ __forceinline__ void barrier_init(unsigned barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to others, TMA included.
__device__ __forceinline__ void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and makes the barrier's phase wait for this many bytes of copies as well.
__device__ __forceinline__ void barrier_expect(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void barrier_wait(unsigned barrier, unsigned parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "AGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra READY;\n"
      "bra AGAIN;\n"
      "READY:\n"
      "}" ::"r"(barrier), "r"(parity)
      : "memory");
}

// The first address from `shared` on where a swizzled box can start: a multiple of 1024 bytes.
__device__ __forceinline__ unsigned boxes_address(const void* shared) {
  return (shared_address(shared) + 1023) & ~1023u;
}

// Copies the box at (column, token, head, batch); elements outside the tensor become zero.
__device__ __forceinline__ void copy_box(unsigned to, const TensorMap* map, unsigned barrier,
                                         int column, int token, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to), "l"(map), "r"(barrier), "r"(column),
      "r"(token), "r"(head), "r"(batch)
      : "memory");
}

// Copies bytes: both addresses and the number are multiples of 16.
__device__ __forceinline__ void copy_bytes(unsigned to, const void* from, unsigned bytes, unsigned barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void prefetch_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ void synchronize_cluster() {
  if (CLUSTER == 1) return __syncthreads();
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
