// ---- Shared memory: Q, slots of K and V, and the results of teams ----

// Offsets are bytes from `address`. Q, K and V are stored in swizzled boxes of 64 columns.
struct Shared {
  unsigned char* bytes;
  unsigned address;
  __device__ __forceinline__ unsigned q() const { return address; }
  __device__ __forceinline__ unsigned k(int team, int slot) const {
    return address + SLOTS_AT + (team * SLOTS + slot) * SLOT_BYTES;
  }
  __device__ __forceinline__ unsigned v(int team, int slot) const {
    return k(team, slot) + D_BOXES * K_TILE * 128;
  }
  __device__ __forceinline__ unsigned q_full() const { return address + BARRIERS_AT; }
  __device__ __forceinline__ unsigned k_full(int team, int slot) const {
    return q_full() + 8 + (team * SLOTS + slot) * 16;
  }
  __device__ __forceinline__ unsigned v_full(int team, int slot) const { return k_full(team, slot) + 8; }
  // A team's result for a row: the base-2 logit that its weights are relative to, and their sum.
  __device__ __forceinline__ float2& of_team(int team, int row) const {
    return reinterpret_cast<float2*>(bytes + TEAMS_AT)[team * ROWS + row];
  }
  // The same for all teams together.
  __device__ __forceinline__ float2& of_row(int row) const {
    return reinterpret_cast<float2*>(bytes + ROWS_AT)[row];
  }
  // A team's output before the division by the sum overwrites the team's slots. This is the place of an
  // element there, in floats. Columns that are 8 apart lie side by side, because a thread holds them.
  __device__ __forceinline__ static unsigned at_output(unsigned row, unsigned column) {
    return row * O_PITCH + column % 8 * COLUMN_PITCH + column / 8;
  }
  __device__ __forceinline__ float& output(unsigned team, unsigned row, unsigned column) const {
    return reinterpret_cast<float*>(bytes + SLOTS_AT + team * SLOTS * SLOT_BYTES)[at_output(row, column)];
  }
};

// The swizzled offset of the first (`half` 0) or second 16 bytes of a row of a box.
__device__ __forceinline__ unsigned piece_of(int row, int half) {
  return row * 128 + ((half ^ row % 8) << 4);
}

// The same for the 32 bytes of the 16 columns from `16 * step` on, in boxes of BOX_ROWS rows.
template <int BOX_ROWS>
__device__ __forceinline__ unsigned at_step(unsigned piece, int step) {
  return step / 4 * (BOX_ROWS * 128) + (piece ^ step % 4 << 5);
}
