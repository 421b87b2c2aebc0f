// How a photo that does not fit into memory as a whole is cut into overlapping tiles.
#pragma once
#include <vector>

#include "plan.h"

namespace mirl {

// One axis of the tiles of an image: all of one length, evenly spread. Where two overlap, the result fades
// from one to the other.
struct Axis {
  int64_t length, tile;
  std::vector<int64_t> starts;

  Axis(int64_t length, int64_t tile, int64_t multiple);
  // Share of tile i in the result at its position `at`, 0 to 1. Those of all tiles add up to 1.
  float share(size_t i, int64_t at) const;

 private:
  double weight(size_t i, int64_t at) const;
};

}  // namespace mirl
