// Images as convolutions with strides read them: taken apart into phases (MirlTap of abi.h says which).
#pragma once
#include "strips.h"

namespace MIRL_ISA {

// How far a matrix's taps reach.
inline Reach reach_of(const MirlTap* tap, int64_t count) {
  Reach r{0, 0, 0, 0};
  for (const MirlTap* t = tap; t < tap + count; ++t) {
    r.above = std::max<int64_t>(r.above, -t->dy), r.below = std::max<int64_t>(r.below, t->dy);
    r.left = std::max<int64_t>(r.left, -t->dx), r.right = std::max<int64_t>(r.right, t->dx);
  }
  return r;
}

// The phases of an image: zero outside of it.
struct Phases {
  MirlImage x;
  MirlSize size;
  int64_t stride_y, stride_x;

  int64_t height() const { return (size.height + stride_y - 1) / stride_y; }
  int64_t width() const { return (size.width + stride_x - 1) / stride_x; }
  int64_t phases() const { return stride_y * stride_x; }

  // A vector of the phase image `channel`, from (y, x) inside of it on.
  Vec at(int64_t b, int64_t channel, int64_t y, int64_t x, int64_t valid) const {
    const int64_t phase = channel % phases();
    const int64_t row = y * stride_y + phase / stride_x, column = x * stride_x + phase % stride_x;
    if (row >= size.height || column >= size.width) return Vec{};
    const float* from = this->x.at(b, channel / phases(), row, column);
    valid = std::min(valid, (size.width - column + stride_x - 1) / stride_x);
    if (stride_x == 1) return load(from, Place{0, 0, valid});
    if (stride_x == 2 && valid == L && column + 2 * L <= size.width)
      return MIRL_SHUFFLE(load(from), load(from + L), MIRL_EVEN);
    Vec v{};
    for (int64_t i = 0; i < valid; ++i) v[i] = from[i * stride_x];
    return v;
  }
};

}  // namespace MIRL_ISA
