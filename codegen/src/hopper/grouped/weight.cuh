// ---- The weight: rows of all experts, one after another ----

// Its tensors; formats without scales or biases are given any others in their place.
struct Weight {
  const unsigned char* words;
  const unsigned char* scales;
  const unsigned char* biases;
};

// Loads 16 bytes that no other workgroup is likely to need soon.
__device__ __forceinline__ uint4 load_words(const unsigned char* from) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from));
  return x;
}
