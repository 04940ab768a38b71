// ---- Producers: warpgroups that gather rows of x, and unpack rows of the weight ----

// Starts to copy 16 bytes, or writes zeros.
__device__ __forceinline__ void copy_piece(unsigned to, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(exists ? 16 : 0) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Where 16 bytes of a row are in a slot, as swizzled rows of 128 bytes have them.
__device__ __forceinline__ unsigned place(unsigned tile, int row, int piece) {
  return tile + row * 128 + ((piece ^ row % 8) * 16);
}

// What a thread reads of one step of a packed weight: pieces of 16 bytes, of which some share scales.
struct Raw {
  uint4 pieces[PIECES];
  Scales scales[SCALES];
};

// Steps that are under way while another is unpacked: memory takes longer to answer than a step does.
constexpr int AHEAD = 2;

// Fills the ring. While a step is unpacked, rows of x of the next ones are on their way to their slots, and parts of the
// weight on their way to registers.
__device__ __forceinline__ void produce(const Shape& shape, Ring ring, const Lists& lists,
                                        const Element* __restrict__ x, const Weight& weight) {
  const int thread = threadIdx.x;
  constexpr int AT_ONCE = PRODUCERS / 8;
  constexpr int ROWS_AT_ONCE = PRODUCERS / PIECES_OF_ROW;
  // Pieces of a thread are whole multiples of eight rows apart, so that they are swizzled alike.
  const unsigned piece_of_x = place(0, thread / 8, thread % 8);
  Tile tile;
  // The rows of x of which the thread copies pieces, as many apart in the tile as are copied at once; negative where
  // there is no pair.
  int from[M_TILE / AT_ONCE];
  auto find_rows = [&] {
#pragma unroll
    for (int i = 0; i < M_TILE / AT_ONCE; ++i) {
      const int row = thread / 8 + i * AT_ONCE;
      from[i] = row < tile.pairs ? static_cast<int>(lists.order[tile.first_pair + row]) / shape.share : -1;
    }
  };
  auto copy_rows = [&](const Ring& ring, int k) {
    barrier_wait(ring.empty(), ring.phase ^ 1);
    const int column = k + thread % 8 * 8;
#pragma unroll
    for (int i = 0; i < M_TILE / AT_ONCE; ++i) {
      const Element* const row = x + static_cast<long long>(max(from[i], 0)) * COLUMNS;
      copy_piece(ring.a() + piece_of_x + i * AT_ONCE * 128, row + column, from[i] >= 0);
    }
    // Elements that are stored as they are need no way through registers.
    if (DENSE) {
      const long long first = static_cast<long long>(tile.expert) * shape.rows + tile.first_row;
#pragma unroll
      for (int i = 0; i < N_TILE / AT_ONCE; ++i) {
        const int row = thread / 8 + i * AT_ONCE;
        const bool exists = tile.first_row + row < shape.rows;
        const unsigned char* const of = weight.words + (first + (exists ? row : 0)) * ROW_BYTES;
        copy_piece(ring.b() + piece_of_x + i * AT_ONCE * 128, of + column * 2, exists);
      }
    }
    commit_copies();
  };
  // In place of rows beyond the last, the last is read again: these products are not stored.
  auto load = [&](Raw& raw, int k) {
    if (DENSE) return;
    const unsigned char* const words =
        weight.words + static_cast<long long>(tile.expert) * shape.rows * ROW_BYTES + k / K_TILE * (PIECES_OF_ROW * 16);
#pragma unroll
    for (int i = 0; i < PIECES; ++i) {
      const int row = min(tile.first_row + thread / PIECES_OF_ROW + i * ROWS_AT_ONCE, shape.rows - 1);
      raw.pieces[i] = load_words(words + static_cast<long long>(row) * ROW_BYTES + thread % PIECES_OF_ROW * 16);
      if (i % (PIECES / SCALES) == 0)
        raw.scales[i / (PIECES / SCALES)] =
            load_scales(weight, shape, tile.expert, row, k + thread % PIECES_OF_ROW * ELEMENTS);
    }
  };
  auto unpack = [&](const Ring& ring, const Raw& raw) {
    if (DENSE) return;
    const int first = thread % PIECES_OF_ROW * (ELEMENTS / 8);
#pragma unroll
    for (int i = 0; i < PIECES; ++i) {
      const unsigned words[4] = {raw.pieces[i].x, raw.pieces[i].y, raw.pieces[i].z, raw.pieces[i].w};
#pragma unroll
      for (int p = 0; p < ELEMENTS / 8; ++p) {
        unsigned eight[4];
        unpack_eight(eight, words, p, raw.scales[i / (PIECES / SCALES)]);
        store_shared(place(ring.b(), thread / PIECES_OF_ROW, first + p) + i * ROWS_AT_ONCE * 128, eight);
      }
    }
  };

  // The next step to start: its tile, its first element of rows, and its slot.
  int index = blockIdx.x, k = 0;
  Ring next = ring;
  bool more = tile_at(shape, lists, index, tile);
  if (more) find_rows();
  auto start = [&](Raw& raw) {
    load(raw, k);
    copy_rows(next, k);
    next.advance();
    k += K_TILE;
    if (k < COLUMNS) return;
    k = 0;
    index += gridDim.x;
    more = tile_at(shape, lists, index, tile);
    if (more) find_rows();
  };
  Raw raw[AHEAD];
  int started = 0;
#pragma unroll
  for (int i = 0; i < AHEAD; ++i) {
    if (!more) continue;
    start(raw[i]);
    ++started;
  }
  while (true) {
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      if (started == 0) return;
      const Raw own = raw[i];
      const bool goes_on = more;
      if (goes_on) start(raw[i]);
      else --started;
      unpack(ring, own);
      // The copies of this step, but not those of the steps that were started after it.
      if (goes_on) wait_copies<AHEAD>();
      else wait_copies<0>();
      fence_copies();
      barrier_arrive(ring.full());
      ring.advance();
    }
  }
}
