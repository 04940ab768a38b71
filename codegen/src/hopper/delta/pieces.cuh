// ---- What all four kernels are given by value, and what some of them share ----

// The strides of rows by sequence and by token, in elements; the epsilon of the norm.
struct alignas(8) Shape { long long row_batch; int tokens, chunks, row_token; float epsilon; };

// Loads 16 bytes at once, of memory that the kernel does not write.
__device__ __forceinline__ void load_pieces(unsigned (&x)[4], const void* from) {
  asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "l"(from));
}
