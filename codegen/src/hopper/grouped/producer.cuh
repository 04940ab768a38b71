// ---- Producers: warpgroups that gather rows of x, and unpack rows of the weight ----

// Loads 16 bytes that no other workgroup is likely to need soon.
__device__ __forceinline__ uint4 load_words(const unsigned char* from) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from));
  return x;
}

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

// Fills the ring. The next step's rows of x are on their way to their slot, and its part of the weight is on its way to
// registers, while a step is unpacked. (More steps ahead would wait for slots that consumers still read.)
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

  int index = blockIdx.x, k = 0;
  if (!tile_at(shape, lists, index, tile)) return;
  Raw raw;
  find_rows();
  copy_rows(ring, 0);
  load(raw, 0);
  for (bool more = true; more;) {
    const Ring now = ring;
    const Raw own = raw;
    ring.advance();
    k += K_TILE;
    if (k >= COLUMNS) {
      k = 0;
      index += gridDim.x;
      more = tile_at(shape, lists, index, tile);
      if (more) find_rows();
    }
    if (more) {
      load(raw, k);
      copy_rows(ring, k);
    }
    unpack(now, own);
    // The copies of this step, but not those of the next one, which were started after them.
    if (more) wait_copies<1>();
    else wait_copies<0>();
    fence_copies();
    barrier_arrive(now.full());
  }
}
