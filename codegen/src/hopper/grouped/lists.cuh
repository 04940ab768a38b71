// ---- What there is to do: tiles of pairs of one expert, each times some rows of its weight ----

// Rows of an expert's weight; consecutive pairs that share a row of x; most tiles that there can be; where the first
// row's products go in rows of y, and the elements of such a row.
struct alignas(8) Shape { int rows, share, tiles, column, width; };

// Pairs of an expert, from place `first_pair` of the order on, and the first row of the weight.
struct Tile { int expert, first_pair, pairs, first_row; };

// Pairs sorted by expert, where those of each expert begin, and for each tile its expert and its number among those of
// the expert.
struct Lists {
  const unsigned* order;
  const unsigned* offsets;
  const unsigned* tiles;
};

// Finds job `index`; false beyond the last one. Jobs of the same pairs follow each other, so that workgroups read these
// rows of x at about the same time. Tiles that do not exist come last, and have no expert.
__device__ __forceinline__ bool tile_at(const Shape& shape, const Lists& lists, int index, Tile& tile) {
  const int across = (shape.rows + N_TILE - 1) / N_TILE;
  const int number = index / across;
  if (number >= shape.tiles) return false;
  const unsigned expert = lists.tiles[2 * number];
  if (expert == ~0u) return false;
  const int start = lists.offsets[expert] + lists.tiles[2 * number + 1] * M_TILE;
  tile.expert = expert;
  tile.first_pair = start;
  tile.pairs = min(static_cast<int>(lists.offsets[expert + 1]) - start, M_TILE);
  tile.first_row = index % across * N_TILE;
  return true;
}
