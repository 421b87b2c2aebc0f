// Products of bfloat16 numbers, summed in float, by tiles of 16 rows and 32 columns.
//
// Numbers lie in pairs, one word each, the first in the lower half. A product's left side has words of
// neighbouring columns of a row, its right side words of neighbouring rows of a column.
#pragma once
#include "abi.h"
#include "bfloat16_unit.h"
#include "vector.h"

namespace MIRL_ISA {

using mirl::Bfloat16Unit;

constexpr int64_t TILE_ROWS = 16, TILE_WORDS = 16, TILE_COLUMNS = 32;

// A side of such products: words from one row (left side) or pair of rows (right side) to the next.
struct TileSide {
  const int32_t* words;
  int64_t row;
};

// x rounded to the nearest bfloat16 number, as the upper half of a word whose lower half is zero.
inline Int rounded(Vec x) {
  const Bits bits = (Bits)x;
  const Bits nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  return x == x ? (Int)nearest : (Int{} + 0x7fc00000);  // NaN stays one
}

// Rounds `count` floats that lie side by side. Reads and writes whole vectors.
void round_row(const float* from, int64_t count, int32_t* to);

// n vectors of pixels of so many channels, `stride` floats apart, rounded, as a right side whose rows are the
// channels, padded with zeros.
class PairedPanel {
  int32_t* words;

 public:
  // In this thread's memory, until the next one is made.
  PairedPanel(const float* in, int64_t stride, int64_t channels, int64_t n);
  TileSide side() const { return {words, MIRL_PANEL}; }
};

// sums[r * MIRL_PANEL + p] = the product's row r < 16, column p < n * L. `steps` tiles of columns on the left
// side.
void tile_rows(const TileSide& left, const TileSide& right, int64_t steps, int64_t n, float* sums);

}  // namespace MIRL_ISA
