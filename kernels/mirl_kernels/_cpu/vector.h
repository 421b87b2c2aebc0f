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

inline Vec vsqrt(Vec a) {
  Vec r;
  for (int64_t i = 0; i < L; ++i) r[i] = std::sqrt(a[i]);
  return r;
}

inline float sum(Vec v) {
  float lanes[L], total = 0;
  std::memcpy(lanes, &v, sizeof v);
  for (int64_t width = L / 2; width; width /= 2)
    for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return total + lanes[0];
}

// Lane i of the result is the sum of v[i]'s lanes; v (L vectors) is overwritten.
#if MIRL_LANES == 16
#define MIRL_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define MIRL_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif MIRL_LANES == 8
#define MIRL_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define MIRL_ODD 1, 3, 5, 7, 9, 11, 13, 15
#else
#define MIRL_EVEN 0, 2, 4, 6
#define MIRL_ODD 1, 3, 5, 7
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define MIRL_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MIRL_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Int){__VA_ARGS__})
#endif
inline Vec sums(Vec* v) {
  for (int64_t n = L / 2; n; n /= 2)
    for (int64_t i = 0; i < n; ++i)
      v[i] = MIRL_SHUFFLE(v[2 * i], v[2 * i + 1], MIRL_EVEN) + MIRL_SHUFFLE(v[2 * i], v[2 * i + 1], MIRL_ODD);
  return v[0];
}

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Exact GELU, x * Phi(x).
#include "gelu.h"

}  // namespace MIRL_ISA
