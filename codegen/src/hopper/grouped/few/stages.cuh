// ---- A ring of stages, each with some steps of the weight's rows that warps of a workgroup multiply at a time ----

// Rows of an expert's weight; experts, of which 0 stands for one weight without ids; rows of x that are multiplied with
// each row of the weight, and the first of them; consecutive pairs that share a row of x; where the first row's products
// go in rows of y, and the elements of such a row; whether as many rows again are multiplied with silu of these, and
// where they are: behind them, or in tensors of their own.
struct alignas(8) FewShape { int rows, experts, few, first, share, column, width, halves; };
constexpr int TOGETHER = 1, APART = 2;

// All tensors; those of the second half are any others unless it has its own.
struct Halves { Weight own, apart; };

// The rows that are multiplied, or half of them: their tensors, in which each expert has so many rows, and the first.
struct Half {
  Weight weight;
  int of_expert, first;

  __device__ __forceinline__ Half(const FewShape& shape, const Halves& halves, int half)
      : weight(shape.halves == APART && half == 1 ? halves.apart : halves.own),
        of_expert(shape.halves == TOGETHER ? 2 * shape.rows : shape.rows),
        first(shape.halves == TOGETHER ? half * shape.rows : 0) {}

  // The row of the tensors.
  __device__ __forceinline__ long long at(int expert, int row) const {
    return static_cast<long long>(expert) * of_expert + first + row;
  }
};

__device__ __forceinline__ int halves_of(const FewShape& shape) { return shape.halves == 0 ? 1 : 2; }

// Steps of a row of the weight.
constexpr int STEPS = (COLUMNS + SPAN - 1) / SPAN;
// Rows of the weight in a stage.
constexpr int STAGE_ROWS = TILES * 16;
// Bytes of a row in a stage, and how many stages have a row.
constexpr int CHUNK_BYTES = CHUNK * 64;
constexpr int CHUNKS = (ROW_BYTES + CHUNK_BYTES - 1) / CHUNK_BYTES;
// Tensors of scales and biases; their bytes of a row, and of a step of it.
constexpr int TENSORS = BIASED ? 2 : SCALE_BYTES > 0 ? 1 : 0;
constexpr int ROW_SCALES = SCALE_BYTES == 0 ? 0 : COLUMNS / GROUP * SCALE_BYTES;
constexpr int STEP_SCALES = PARTS * SCALE_BYTES;

// A stage has words, scales and biases. Each has a barrier that says it is full, and one that says it is empty.
struct Stages {
  unsigned address, barriers;
  int count;
  int index = 0;
  unsigned phase = 0;
  __device__ __forceinline__ unsigned words() const { return address + index * STAGE_BYTES; }
  __device__ __forceinline__ unsigned scales() const { return words() + STAGE_ROWS * WORDS_PITCH; }
  __device__ __forceinline__ unsigned biases() const { return scales() + SCALES_OF_STAGE; }
  __device__ __forceinline__ unsigned full() const { return barriers + index * 16; }
  __device__ __forceinline__ unsigned empty() const { return full() + 8; }
  __device__ __forceinline__ void advance() {
    if (++index == count) {
      index = 0;
      phase ^= 1;
    }
  }
};

// Copies bytes by the lanes of a warp, wherever they start.
__device__ __forceinline__ void copy_by_lanes(unsigned to, const unsigned char* from, int bytes) {
#pragma unroll 4
  for (int i = threadIdx.x % 32; i < bytes; i += 32) {
    const unsigned short byte = __ldg(from + i);
    asm volatile("st.shared.b8 [%0], %1;" ::"r"(to + i), "h"(byte) : "memory");
  }
}

// Starts to copy 16 bytes.
__device__ __forceinline__ void copy_sixteen(unsigned to, const unsigned char* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// Arrives at a barrier when all copies of 16 bytes are there that the thread has started.
__device__ __forceinline__ void arrive_after_copies(unsigned barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Threads that say that a stage is full: one for words, and those that copy scales.
constexpr unsigned FILLED_BY = 1 + (TENSORS == 0 ? 0 : SLICED ? 32 : 1);

// Fills the ring with words, by one warp. An SM starts only about 20 bulk copies in a microsecond, so they have to be
// long: one of all rows where rows are short, else one for each row. The latter have a pitch with which lanes of
// neighbouring rows read different banks.
__device__ __forceinline__ void fill_words(const FewShape& shape, Stages stages, const Halves& halves, int expert) {
  const int lane = threadIdx.x % 32;
  for (int first = blockIdx.x * STAGE_ROWS; first < shape.rows; first += gridDim.x * STAGE_ROWS) {
    const int rows = min(STAGE_ROWS, shape.rows - first);
    for (int step = 0; step < halves_of(shape) * CHUNKS; ++step) {
      const int chunk = step % CHUNKS;
      const Half half(shape, halves, step / CHUNKS);
      const unsigned char* const words = half.weight.words + half.at(expert, first) * ROW_BYTES;
      barrier_wait(stages.empty(), stages.phase ^ 1);
      const int bytes = min(CHUNK_BYTES, ROW_BYTES - chunk * CHUNK_BYTES);
      if (lane == 0) barrier_expect(stages.full(), rows * bytes);
      __syncwarp();
      if (WORDS_PITCH == ROW_BYTES) {
        if (lane == 0) copy_bytes(stages.words(), words, rows * ROW_BYTES, stages.full());
      } else {
        for (int i = lane; i < rows; i += 32) {
          const unsigned char* const from = words + i * static_cast<long long>(ROW_BYTES) + chunk * CHUNK_BYTES;
          copy_bytes(stages.words() + i * WORDS_PITCH, from, bytes, stages.full());
        }
      }
      stages.advance();
    }
  }
}

// Fills it with scales and biases, by another warp. Lanes of neighbouring rows would read the same banks of them; where
// rows are whole pieces of 16 bytes, they are copied to rows with a pitch. Else a stage has all scales of its rows, as
// they lie in memory.
__device__ __forceinline__ void fill_scales(const FewShape& shape, Stages stages, const Halves& halves, int expert) {
  const int lane = threadIdx.x % 32;
  for (int first = blockIdx.x * STAGE_ROWS; first < shape.rows; first += gridDim.x * STAGE_ROWS) {
    const int rows = min(STAGE_ROWS, shape.rows - first);
    for (int step = 0; step < halves_of(shape) * CHUNKS; ++step) {
      const int chunk = step % CHUNKS;
      const Half half(shape, halves, step / CHUNKS);
      const long long start = half.at(expert, first) * ROW_SCALES;
      const unsigned char* const tensors[2] = {half.weight.scales + start, half.weight.biases + start};
      barrier_wait(stages.empty(), stages.phase ^ 1);
      int expected = 0;
#pragma unroll
      for (int t = 0; t < TENSORS; ++t) {
        const unsigned to = stages.scales() + t * SCALES_OF_STAGE;
        if (SLICED) {
          constexpr int pieces = SLICED ? CHUNK * STEP_SCALES / 16 : 1;
          const unsigned char* const from = tensors[t] + chunk * pieces * 16;
          const int left = ROW_SCALES / 16 - chunk * pieces;
#pragma unroll 8
          for (int i = lane; i < rows * pieces; i += 32) {
            const int row = i / pieces, piece = i % pieces;
            if (piece < left) copy_sixteen(to + row * SCALES_PITCH + piece * 16, from + row * ROW_SCALES + piece * 16);
          }
        } else {
          const int bytes = rows * ROW_SCALES;
          if (((reinterpret_cast<unsigned long long>(tensors[t]) | bytes) & 15) == 0) {
            if (lane == 0) copy_bytes(to, tensors[t], bytes, stages.full());
            expected += bytes;
          } else {
            copy_by_lanes(to, tensors[t], bytes);
          }
        }
      }
      if (SLICED) {
        arrive_after_copies(stages.full());
      } else {
        __syncwarp();
        if (lane == 0) barrier_expect(stages.full(), expected);
      }
      stages.advance();
    }
  }
}

// Where in a stage the scale is of the part that a lane has of step `step` of chunk `chunk`, in row `row` of the stage.
__device__ __forceinline__ int scale_at(int row, int chunk, int step, int lane) {
  int group = (chunk * CHUNK + step) * PARTS + lane % 4 * PARTS / 4;
  // The last step can be half of one.
  if (COLUMNS % SPAN != 0) group = min(group, COLUMNS / GROUP - 1);
  return row * SCALES_PITCH + (group - (SLICED ? chunk * CHUNK * PARTS : 0)) * SCALE_BYTES;
}
