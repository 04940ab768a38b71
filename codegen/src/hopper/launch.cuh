// ---- The run-time scalars ----

struct alignas(16) Band { int lo, hi, first, end; };

struct Launch {
  int q_len, kv_len, q_offset, kv_heads;
  unsigned blocks, index;
  float scale;
  // In elements; those of q, k and v are in their tensor maps.
  unsigned o_batch, o_head, o_token;
  // Sequences.
  int batch;@score_fields@table
};

// By value, so that reading them waits for no memory.
struct alignas(8) Parameters { unsigned words[PARAMETERS]; };

__device__ __forceinline__ Launch read_launch(const Parameters& parameters) {
  const unsigned(&params)[PARAMETERS] = parameters.words;
  Launch launch;
  launch.q_len = params[0];
  launch.kv_len = params[1];
  launch.q_offset = params[2];
  launch.kv_heads = params[3];
  launch.blocks = params[4];
  launch.index = params[5];
  launch.scale = __uint_as_float(params[6]);
  launch.o_batch = params[16];
  launch.o_head = params[17];
  launch.o_token = params[18];
  launch.batch = params[19];@score_read
  return launch;
}
@score
