  // Two consumers share the unit. Each multiplies half of every 64 columns of Q and K, they add up
  // their scores, and each multiplies half of the columns of V. So each holds only half of the output,
  // and no product is computed twice.
  auto multiply_scores = [&](int q_slot) {
    const unsigned long long q = descriptor(shared.q(q_slot, 0) + consumer * 64, 16, 1024);
    const unsigned long long k = descriptor(shared.slot(slot.index) + consumer * 64, 16, 1024);
#pragma unroll
    for (int t = 0; t < D_STEPS / 2; ++t)
      mma_scores(s, q + (t / 2 * 64 * 128 + t % 2 * 32) / 16,
                 k + (t / 2 * K_TILE * 128 + t % 2 * 32) / 16, t > 0);
    mma_commit();
  };
  // Adds the other consumer's part of the scores, which is passed through the slot of the keys.
  auto add_scores = [&](unsigned place) {
    synchronize(ORDER_AT, 256);
    const unsigned mine = place + (consumer * K_TILE / 8 * 128 + threadIdx.x % 128) * 16;
    const unsigned other = mine + (1 - 2 * consumer) * K_TILE / 8 * 128 * 16;
#pragma unroll
    for (int i = 0; i < K_TILE / 8; ++i) {
      unsigned x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) x[j] = __float_as_uint(s[4 * i + j]);
      store_shared(mine + i * 128 * 16, x);
    }
    synchronize(ORDER_AT, 256);
#pragma unroll
    for (int i = 0; i < K_TILE / 8; ++i) {
      unsigned x[4];
      load_shared(x, other + i * 128 * 16);
#pragma unroll
      for (int j = 0; j < 4; ++j) s[4 * i + j] += __uint_as_float(x[j]);
    }
    // TMA overwrites the slot next.
    fence_copies();
  };
  auto multiply_values = [&](int v_slot, bool accumulate) {
    const unsigned columns = consumer * (O_COLUMNS / 64) * K_TILE * 128;
    const unsigned long long v = descriptor(shared.slot(v_slot) + columns, K_TILE * 128, 1024);
#pragma unroll
    for (int t = 0; t < K_TILE / 16; ++t)
      mma_values(o, p[4 * t], p[4 * t + 1], p[4 * t + 2], p[4 * t + 3], v + t * 16 * 128 / 16,
                 t > 0 || accumulate);
    mma_commit();
  };
