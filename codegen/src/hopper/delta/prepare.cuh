// ---- Convolution, silu and norms of all tokens; the gates ----

extern "C" __global__ void __launch_bounds__(128)
    butterfly_delta_prepare(const Element* __restrict__ rows, const float* __restrict__ convolution,
                            const float* __restrict__ decays, const float* __restrict__ biases,
                            const Element* __restrict__ last, Element* __restrict__ mixed,
                            Element* __restrict__ kept, float* __restrict__ gates,
                            const __grid_constant__ Shape shape) {
  const int first = blockIdx.x * PREPARE_TOKENS, batch = blockIdx.z;
  const Element* const own = rows + static_cast<long long>(batch) * shape.row_batch;
  if (blockIdx.y == gridDim.y - 1) {
    // The gates, with tokens side by side.
    for (int i = threadIdx.x; i < PREPARE_TOKENS * V_HEADS; i += 128) {
      const int token = first + i % PREPARE_TOKENS, head = i / PREPARE_TOKENS;
      if (token >= shape.tokens) continue;
      const Element* const of = own + static_cast<long long>(token) * shape.row_token + CHANNELS + V_HEADS * DIM + head;
      const float b = low(of[0]), a = low(of[V_HEADS]) + biases[head];
      const float step = a < 20.0f ? log1pf(__expf(a)) : a;
      const long long at = (static_cast<long long>(batch) * V_HEADS + head) * shape.tokens + token;
      // 2^-150 is 0 in f32; less would only cost the sums of a chunk their last digits.
      const float g = decays[head] * step * 1.44269504f;
      gates[at] = g < -150.0f ? -150.0f : g;
      gates[at + static_cast<long long>(gridDim.z) * V_HEADS * shape.tokens] = reciprocal_fast(1.0f + __expf(-b));
    }
    return;
  }
  const int channel = (blockIdx.y * 128 + threadIdx.x) * 8;
  if (channel >= CHANNELS) return;
  const Element* const before = last + static_cast<long long>(batch) * (TAPS - 1) * CHANNELS + channel;
  // The pieces of a token's row; those before the first token are kept from earlier calls.
  auto piece = [&](int token) {
    return token < 0 ? before + (token + TAPS - 1) * CHANNELS
                     : own + static_cast<long long>(token) * shape.row_token + channel;
  };
  unsigned x[PREPARE_TOKENS + TAPS - 1][4];
#pragma unroll
  for (int i = 0; i < PREPARE_TOKENS + TAPS - 1; ++i) load_pieces(x[i], piece(min(first + i - (TAPS - 1), shape.tokens - 1)));
  float weights[TAPS][8];
#pragma unroll
  for (int tap = 0; tap < TAPS; ++tap)
#pragma unroll
    for (int i = 0; i < 8; ++i) weights[tap][i] = convolution[tap * CHANNELS + channel + i];
  const bool is_q = channel < K_HEADS * DIM, is_v = channel >= 2 * K_HEADS * DIM;
#pragma unroll
  for (int t = 0; t < PREPARE_TOKENS; ++t) {
    float y[8];
    float square = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float sum = 0.0f;
#pragma unroll
      for (int tap = 0; tap < TAPS; ++tap) {
        const unsigned two = x[t + tap][i / 2];
        sum = fmaf(weights[tap][i], i % 2 ? high(two) : low(two), sum);
      }
      y[i] = silu(sum);
      square = fmaf(y[i], y[i], square);
    }
    // A head of k is shared by DIM / 8 lanes.
#pragma unroll
    for (int step = 1; step < DIM / 8; step *= 2) square += __shfl_xor_sync(~0u, square, step);
    float factor = is_v ? 1.0f : rsqrtf(square + LENGTH_EPSILON);
    if (is_q) factor *= Q_SCALE;
    unsigned packed[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) packed[i] = pack(y[2 * i] * factor, y[2 * i + 1] * factor);
    const int token = first + t;
    if (token < shape.tokens)
      store_pieces(mixed + (static_cast<long long>(batch) * shape.tokens + token) * CHANNELS + channel, packed);
  }
  if (first == 0)
#pragma unroll
    for (int row = 0; row < TAPS - 1; ++row) {
      unsigned last_row[4];
      load_pieces(last_row, piece(shape.tokens + row - (TAPS - 1)));
      store_pieces(kept + (static_cast<long long>(batch) * (TAPS - 1) + row) * CHANNELS + channel, last_row);
    }
}
