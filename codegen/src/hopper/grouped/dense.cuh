// ---- Elements of the type of x, which are copied as they are: nothing calls these two ----

struct Scales {};

__device__ __forceinline__ Scales load_scales(const Weight&, const Shape&, int, int, int) { return {}; }

__device__ __forceinline__ void unpack_eight(unsigned (&)[4], const unsigned (&)[4], int, const Scales&) {}
