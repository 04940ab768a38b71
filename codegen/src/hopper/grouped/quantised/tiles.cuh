// ---- What there is to do: tiles of pairs of one expert, each times some rows of its weight ----

// Products of a pair with the weight of an expert; experts, or 0 if all pairs have the one weight; pairs, and the most
// tiles that there can be; where the first product goes in rows of y, and the elements of such a row; whether there are
// gates; and whether rows of y are those that the order names, or in order.
struct alignas(8) Shape { int rows, experts, pairs, tiles, column, width, gates, scattered; };
// The first half of an expert's rows gates the second; or those of the first weight gate those of the second.
constexpr int TOGETHER = 1, APART = 2;

// Pairs of an expert, from place `first_pair` of the order on, and the first row of the weight.
struct Tile { int expert, first_pair, pairs, first_row; };

// Pairs sorted by expert, where those of each expert begin, and for each tile its expert and its number among those of
// the expert.
struct Lists {
  const unsigned* order;
  const unsigned* offsets;
  const unsigned* tiles;
};

// Columns of y in a tile. With gates, half of a tile's rows of the weight are gates.
__device__ __forceinline__ int width_of(const Shape& shape) { return shape.gates ? N_TILE / 2 : N_TILE; }

// Finds job `index`; false beyond the last one. Tiles that do not exist come last, and have no expert.
__device__ __forceinline__ bool tile_at(const Shape& shape, const Lists& lists, int index, Tile& tile) {
  const int width = width_of(shape);
  const int across = (shape.rows + width - 1) / width;
  if (shape.experts > 0) {
    // Jobs of the same pairs follow each other, so that workgroups read these rows of x at about the same time.
    const int number = index / across;
    if (number >= shape.tiles) return false;
    const unsigned expert = lists.tiles[2 * number];
    if (expert == ~0u) return false;
    const int start = lists.offsets[expert] + lists.tiles[2 * number + 1] * M_TILE;
    tile.expert = expert;
    tile.first_pair = start;
    tile.pairs = min(static_cast<int>(lists.offsets[expert + 1]) - start, M_TILE);
    tile.first_row = index % across * width;
    return true;
  }
  // Bands of some tiles of x, whose rows stay in L2 while the weight passes.
  if (index >= shape.tiles * across) return false;
  const int band = index / (TILES_IN_A_BAND * across);
  const int first = band * TILES_IN_A_BAND;
  const int height = min(TILES_IN_A_BAND, shape.tiles - first);
  const int within = index - first * across;
  tile.expert = 0;
  tile.first_pair = (first + within % height) * M_TILE;
  tile.pairs = min(shape.pairs - tile.first_pair, M_TILE);
  tile.first_row = within / height * width;
  return true;
}
