// ---- Instructions of warpgroups ----

// Waits for three barriers; each attempt tests all of them.
__device__ __forceinline__ void barrier_wait_all(unsigned a, unsigned parity_a, unsigned b,
                                                 unsigned parity_b, unsigned c, unsigned parity_c) {
  asm volatile(
      "{\n"
      ".reg .pred a, b, c;\n"
      "AGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 a, [%0], %1;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 b, [%2], %3;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 c, [%4], %5;\n"
      "and.pred a, a, b;\n"
      "and.pred a, a, c;\n"
      "@a bra READY;\n"
      "bra AGAIN;\n"
      "READY:\n"
      "}" ::"r"(a), "r"(parity_a), "r"(b), "r"(parity_b), "r"(c), "r"(parity_c)
      : "memory");
}

// Copies a box to the same address and barrier in every thread block of the cluster.
__device__ __forceinline__ void copy_box_to_cluster(unsigned to, const TensorMap* map,
                                                    unsigned barrier, int column, int token,
                                                    int head, int batch) {
  if (CLUSTER == 1) return copy_box(to, map, barrier, column, token, head, batch);
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(to), "l"(map),
      "r"(barrier), "r"(column), "r"(token), "r"(head), "r"(batch),
      "h"(static_cast<unsigned short>((1 << CLUSTER) - 1))
      : "memory");
}

// Stores a box from shared memory; elements outside the tensor are not written.
__device__ __forceinline__ void store_box(const TensorMap* map, unsigned from, int column,
                                          int token, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
      "r"(from), "r"(column), "r"(token), "r"(head), "r"(batch)
      : "memory");
}

__device__ __forceinline__ void commit_stores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until all stores that this thread started have read shared memory.
__device__ __forceinline__ void wait_stores() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// Four matrices of 8 rows of 16 bytes; lane `8 i + r` gives the address of row `r` of the `i`-th.
__device__ __forceinline__ void store_matrices(unsigned address, const unsigned (&x)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
               : "memory");
}

// Waits until this many threads have arrived at a named barrier.
__device__ __forceinline__ void synchronize(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Arrives at a named barrier without waiting.
__device__ __forceinline__ void arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// The same under a condition, but without a branch: across one, products would not stay asynchronous.
__device__ __forceinline__ void arrive_if(bool condition, int barrier, int threads) {
  asm volatile(
      "{\n"
      ".reg .pred yes;\n"
      "setp.ne.s32 yes, %0, 0;\n"
      "@yes bar.arrive %1, %2;\n"
      "}" ::"r"(static_cast<int>(condition)), "r"(barrier), "r"(threads)
      : "memory");
}

// Arrives at the same barrier of thread block `rank` of the cluster.
__device__ __forceinline__ void barrier_arrive_at(unsigned barrier, unsigned rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(barrier), "r"(rank)
      : "memory");
}

// Stores 16 bytes at once.
__device__ __forceinline__ void store_pieces(void* to, const unsigned (&x)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x[0]), "r"(x[1]),
               "r"(x[2]), "r"(x[3])
               : "memory");
}

// Orders this thread's accesses to shared memory before TMA copies that read or overwrite it.
__device__ __forceinline__ void fence_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void store_shared(unsigned address, const unsigned (&x)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x[0]), "r"(x[1]),
               "r"(x[2]), "r"(x[3])
               : "memory");
}

__device__ __forceinline__ void load_shared(unsigned (&x)[4], unsigned address) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address)
               : "memory");
}

// The descriptor of a wgmma operand: swizzled rows of 128 bytes; `leading` and `stride` in bytes. In a
// cluster, addresses hold the rank above the bits that belong in a descriptor.
__device__ __forceinline__ unsigned long long descriptor(unsigned address, unsigned leading,
                                                         unsigned stride) {
  return (1ull << 62) | (static_cast<unsigned long long>(stride >> 4) << 32) |
         (static_cast<unsigned long long>(leading >> 4) << 16) | (address & 0x3ffff) >> 4;
}

__device__ __forceinline__ void mma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void mma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most PENDING groups of products are in flight; the registers are valid from here on.
template <int PENDING, int COUNT>
__device__ __forceinline__ void mma_wait(float (&registers)[COUNT]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

// Keeps operands in their registers up to this point, because their products may still read them.
template <int COUNT>
__device__ __forceinline__ void keep_until_here(unsigned (&registers)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}
