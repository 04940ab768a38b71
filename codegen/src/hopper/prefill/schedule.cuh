// ---- Schedule: which items this cluster computes, in which order ----
//
// An item is a kv head, a block row, and one of its units for each consumer of the cluster, or for each
// of its thread blocks where consumers share a unit. A unit is 64 rows of scores: UNIT_TOKENS queries
// of UNIT_HEADS q heads. Items of late rows, which tend to be long, come first; rounds alternate in
// direction, so that every cluster gets about the same share.

struct Item { int token, chunk, kv_head, batch; };

__device__ __forceinline__ int item_count(const Launch& launch) {
  const int first = launch.q_offset / BLOCK;
  const int last = (launch.q_offset + launch.q_len + BLOCK - 1) / BLOCK;
  return (last - first) * ITEMS_PER_ROW * launch.kv_heads * launch.batch;
}

__device__ __forceinline__ int item_index(int round) {
  const int at = blockIdx.x / CLUSTER;
  const int width = gridDim.x / CLUSTER;
  return round * width + ((round & 1) ? width - 1 - at : at);
}

// The remainder of `index` by `by`; what is left in `index` is the quotient.
__device__ __forceinline__ int divided(int& index, int by) {
  const int remainder = index % by;
  index /= by;
  return remainder;
}

@head_of__device__ __forceinline__ Item item_at(const Launch& launch, int index) {
  Item item;
  item.chunk = divided(index, ITEMS_PER_ROW);
  item.kv_head = @head;
  item.batch = divided(index, launch.batch);
  const int last = (launch.q_offset + launch.q_len + BLOCK - 1) / BLOCK;
  item.token = (last - 1 - index) * BLOCK;
  return item;
}

// A unit of an item, numbered across the cluster. A number beyond the last unit repeats that unit, and
// its output is not stored.
struct Unit { int token, head; bool idle; };

__device__ __forceinline__ Unit unit_of(const Item& item, int unit) {
  const int index = item.chunk * CLUSTER * UNITS + unit;
  const int at = min(index, UNITS_PER_ROW - 1);
  return {item.token + at / HEAD_UNITS * UNIT_TOKENS, at % HEAD_UNITS * UNIT_HEADS,
          index >= UNITS_PER_ROW};
}

// Positions of an item's first and last query; if the first comes after the last, there is none.
__device__ __forceinline__ int first_query(const Launch& launch, const Item& item) {
  return max(unit_of(item, 0).token, launch.q_offset);
}

__device__ __forceinline__ int last_query(const Launch& launch, const Item& item) {
  return min(unit_of(item, CLUSTER * UNITS - 1).token + UNIT_TOKENS,
             launch.q_offset + launch.q_len) - 1;
}

// The `batch` of the item that marks the end.
constexpr int NO_BATCH = -1;

// Finds this cluster's first item with queries from round `round` on; false if there is none.
__device__ __forceinline__ bool next_item(const Launch& launch, int& round, Item& item) {
  const int items = item_count(launch);
  for (; round * static_cast<int>(gridDim.x / CLUSTER) < items; ++round) {
    const int index = item_index(round);
    if (index >= items) continue;
    item = item_at(launch, index);
    if (first_query(launch, item) <= last_query(launch, item)) return true;
  }
  return false;
}
