// Rules that the kernels and their Python side both need. registry.cpp exports them, so that each is written
// once. (`static`: each instruction set's build must keep its copy.)
#pragma once
#include <cstdint>

namespace mirl {

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// A padded channel stride: whole vectors, never a multiple of 4 KiB, where all channels would meet in one
// cache set.
static inline int64_t padded(int64_t floats) {
  const int64_t stride = round_up(floats, 16) + 16;
  return stride % 1024 ? stride : stride + 16;
}

// How many columns so many channels have, transposed: whole vectors, on any instruction set.
static inline int64_t transposed_columns(int64_t channels) { return round_up(channels, 16); }

// How many vectors of pixels, each of so many lanes, a panel has at most.
constexpr int panel_vectors(int64_t lanes) { return lanes == 16 ? 4 : 8; }

// Whether a product by pairs of rows is the fastest with vectors of so many lanes: short vectors spend the
// time that it saves on going through the rows more often.
constexpr bool row_pairs_are_fast(int64_t lanes) { return lanes == 16; }

// Whether the rows of a convolution's chunk read their pixels where they lie in the ring, and not from a
// panel that its columns are copied into first: where few entries share a column. (Vectors that do not begin
// where cache lines do take longer to load.)
static inline bool conv_reads_ring(int64_t lanes, int64_t entries, int64_t columns) {
  return 2 * entries < (lanes == 8 ? 8 : 5) * columns;
}

// Whether MDTA's pass two is one matrix, project_out composed with the attention, and not a matrix for each
// head and then project_out: where that is less work for all pixels. (A sparse product takes nearly twice as
// long as a dense one.) `entries` are those of project_out, `dense` says whether it is kept whole.
static inline bool mdta_is_composed(int64_t channels, int64_t heads, int64_t live_v, int64_t entries,
                                    bool dense, int64_t pixels) {
  const int64_t by_head = channels / heads * live_v, after = dense ? channels * channels : entries * 2;
  return channels * live_v + entries * live_v / heads / pixels <= by_head + after;
}

}  // namespace mirl
