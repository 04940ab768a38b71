  auto multiply_scores = [&](int q_slot) {
    const unsigned long long q = descriptor(shared.q(q_slot, consumer), 16, 1024);
    const unsigned long long k = descriptor(shared.slot(slot.index), 16, 1024);
#pragma unroll
    for (int t = 0; t < D_STEPS; ++t)
      mma_scores(s, q + (t / 4 * 64 * 128 + t % 4 * 32) / 16,
                 k + (t / 4 * K_TILE * 128 + t % 4 * 32) / 16, t > 0);
    mma_commit();
  };
  // Nothing to add: this consumer has multiplied all columns of Q and K.
  auto add_scores = [](unsigned) {};
  auto multiply_values = [&](int v_slot, bool accumulate) {
    const unsigned long long v = descriptor(shared.slot(v_slot), K_TILE * 128, 1024);
#pragma unroll
    for (int t = 0; t < K_TILE / 16; ++t)
      mma_values(o, p[4 * t], p[4 * t + 1], p[4 * t + 2], p[4 * t + 3], v + t * 16 * 128 / 16,
                 t > 0 || accumulate);
    mma_commit();
  };
