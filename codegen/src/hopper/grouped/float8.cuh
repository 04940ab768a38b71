// ---- Floats of 8 bits (e4m3), of which squares of 128 rows and columns share a factor ----

struct Scales { float scale; };

// That of element `k` of a row, for all elements of a piece. Each expert begins with squares of its own.
__device__ __forceinline__ Scales load_scales(const Weight& weight, const Shape& shape, int expert, int row, int k) {
  const long long down = (shape.rows + GROUP - 1) / GROUP;
  const int across = (COLUMNS + GROUP - 1) / GROUP;
  return {number(weight.scales, (expert * down + row / GROUP) * across + k / GROUP)};
}

// Unpacks words `2 p` and `2 p + 1`. Every such float is one of 16 bits.
__device__ __forceinline__ void unpack_eight(unsigned (&eight)[4], const unsigned (&words)[4], int p,
                                             const Scales& scales) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned short two = words[2 * p + i / 2] >> (i % 2 * 16);
    float low, high;
    asm("{\n"
        ".reg .b32 both;\n"
        ".reg .b16 l, h;\n"
        "cvt.rn.f16x2.e4m3x2 both, %2;\n"
        "mov.b32 {l, h}, both;\n"
        "cvt.f32.f16 %0, l;\n"
        "cvt.f32.f16 %1, h;\n"
        "}" : "=f"(low), "=f"(high) : "h"(two));
    eight[i] = pack(low * scales.scale, high * scales.scale);
  }
}
