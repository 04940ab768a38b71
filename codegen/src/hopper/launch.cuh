// Flags of a tile: the last one of an item, seen by all queries, the end of all;
// masked by all bands rather than by the one whose number stands above bit BAND.
constexpr int LAST = 1, FULL = 2, END = 4, MANY = 8, BAND = 8;

// ---- The run-time scalars ----

struct Launch {
  int q_len, kv_len, q_offset, kv_heads;
  unsigned blocks, index;
  float scale;
  unsigned o_batch, o_head, o_token;
  int batch;
};

__device__ __forceinline__ Launch read_launch(const unsigned* params) {
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
  launch.batch = params[19];
  return launch;
}
