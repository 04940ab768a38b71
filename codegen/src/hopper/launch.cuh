// ---- The run-time scalars ----

struct alignas(16) Band { int lo, hi, first, end; };

struct Launch {
  int q_len, kv_len, q_offset, kv_heads;
  unsigned blocks, index, prompt, head_rows, sequence_rows, first_row;
  float scale;
  // Strides in elements; those of q, k and v are in their tensor maps.
  unsigned o_batch, o_head, o_token;
  // Number of sequences.
  int batch;@score_fields@table
};

// Passed by value, so that reading them does not wait for memory.
struct alignas(8) Parameters { unsigned words[PARAMETERS]; };

__device__ __forceinline__ Launch read_launch(const Parameters& parameters) {
  const unsigned(&params)[PARAMETERS] = parameters.words;
  Launch launch;
  launch.q_len = params[@Q_LEN];
  launch.kv_len = params[@KV_LEN];
  launch.q_offset = params[@Q_OFFSET];
  launch.kv_heads = params[@KV_HEADS];
  launch.blocks = params[@BLOCKS];
  launch.index = params[@INDEX];
  launch.prompt = params[@PROMPT];
  launch.head_rows = params[@HEAD_ROWS];
  launch.sequence_rows = params[@SEQUENCE_ROWS];
  launch.first_row = params[@FIRST_ROW];
  launch.scale = __uint_as_float(params[@SCALE]);
  launch.o_batch = params[@O_BATCH];
  launch.o_head = params[@O_HEAD];
  launch.o_token = params[@O_TOKEN];
  launch.batch = params[@BATCH];@score_read
  return launch;
}
@score
