// Vectors of MIRL_LANES floats through the compiler's own vector types, and what is computed on them.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace MIRL_ISA {

constexpr int64_t L = MIRL_LANES;
typedef float Vec __attribute__((vector_size(4 * MIRL_LANES)));
typedef int32_t Int __attribute__((vector_size(4 * MIRL_LANES)));
typedef float Loose __attribute__((vector_size(4 * MIRL_LANES), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Loose*>(p) = v; }
inline Vec all(float x) { return x - Vec{}; }
inline Vec vmin(Vec a, Vec b) { return a < b ? a : b; }
inline Vec vmax(Vec a, Vec b) { return a > b ? a : b; }

inline float sum(Vec v) {
  float lanes[L], total = 0;
  std::memcpy(lanes, &v, sizeof v);
  for (int64_t width = L / 2; width; width /= 2)
    for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return total + lanes[0];
}

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Exact GELU, x * Phi(x).
#include "gelu.h"

}  // namespace MIRL_ISA
