// Vectors of MIRL_LANES floats through the compiler's vector types, and what is computed on them.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if MIRL_LANES == 16
#include <immintrin.h>
#endif

namespace MIRL_ISA {

constexpr int64_t L = MIRL_LANES;
typedef float Vec __attribute__((vector_size(4 * MIRL_LANES)));
typedef int32_t Int __attribute__((vector_size(4 * MIRL_LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * MIRL_LANES)));
typedef float Loose __attribute__((vector_size(4 * MIRL_LANES), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Loose*>(p) = v; }
inline Vec all(float x) { return x - Vec{}; }

// The first n lanes (0 < n < L) of memory that may end behind them; the other lanes are zero, or left as they
// are.
#if MIRL_LANES == 16
inline Vec load(const float* p, int64_t n) { return (Vec)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p); }
inline void store(float* p, Vec v, int64_t n) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
}
// Lanes by the bits of `which`, the others zero.
inline Vec load_lanes(const float* p, uint16_t which) {
  return (Vec)_mm512_maskz_loadu_ps(__mmask16(which), p);
}
#else
inline Vec load(const float* p, int64_t n) {
  Vec v{};
  std::memcpy(&v, p, sizeof(float) * n);
  return v;
}
inline void store(float* p, Vec v, int64_t n) { std::memcpy(p, &v, sizeof(float) * n); }
inline Vec load_lanes(const float* p, uint16_t which) {
  Vec v = load(p);
  for (int64_t i = 0; i < L; ++i) v[i] = which >> i & 1 ? v[i] : 0.0f;
  return v;
}
#endif
inline Vec vmin(Vec a, Vec b) { return a < b ? a : b; }
inline Vec vmax(Vec a, Vec b) { return a > b ? a : b; }

inline Vec vsqrt(Vec a) {
  Vec r;
  for (int64_t i = 0; i < L; ++i) r[i] = std::sqrt(a[i]);
  return r;
}

// v with zeros from lane n on.
inline Vec only(Vec v, int64_t n) {
  Int lane;
  for (int32_t i = 0; i < L; ++i) lane[i] = i;
  return lane < int32_t(n) ? v : Vec{};
}

// 1 / a to the last digit or the one before, for a of usual size.
inline Vec reciprocal(Vec a) {
#if MIRL_LANES == 16  // a division takes as long as ten products
  const Vec r = (Vec)_mm512_maskz_rcp14_ps(0xffff, (__m512)a);
  return r * (2.0f - a * r);
#else
  return 1.0f / a;
#endif
}

inline float sum(Vec v) {
  float lanes[L], total = 0;
  std::memcpy(lanes, &v, sizeof v);
  for (int64_t width = L / 2; width; width /= 2)
    for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return total + lanes[0];
}

// Lane i of the result of `sums` is the sum of v[i]'s lanes.
#if MIRL_LANES == 16
#define MIRL_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define MIRL_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define MIRL_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define MIRL_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif MIRL_LANES == 8
#define MIRL_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define MIRL_ODD 1, 3, 5, 7, 9, 11, 13, 15
#define MIRL_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define MIRL_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define MIRL_EVEN 0, 2, 4, 6
#define MIRL_ODD 1, 3, 5, 7
#define MIRL_LOW 0, 4, 1, 5
#define MIRL_HIGH 2, 6, 3, 7
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define MIRL_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MIRL_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Int){__VA_ARGS__})
#endif
// The L floats that begin one before b, where a is what lies before it; and one behind a, where b follows.
#if MIRL_LANES == 16
inline Vec one_before(Vec a, Vec b) {
  return MIRL_SHUFFLE(a, b, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30);
}
inline Vec one_behind(Vec a, Vec b) {
  return MIRL_SHUFFLE(a, b, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16);
}
// The same within a vector, of the lanes by the bits of `which`, the others zero.
inline Vec one_before(Vec a, uint16_t which) {
  return (Vec)_mm512_maskz_alignr_epi32(which, (__m512i)a, (__m512i)a, 15);
}
inline Vec one_behind(Vec a, uint16_t which) {
  return (Vec)_mm512_maskz_alignr_epi32(which, (__m512i)a, (__m512i)a, 1);
}
#endif
// In registers from the first step on: loops that the compiler did not unroll would go through memory. Eight
// lanes are two halves to the processor: what stays within them takes one instruction, so that they are
// brought together once.
#if MIRL_LANES == 8
#define MIRL_FIRST_HALVES 0, 1, 2, 3, 8, 9, 10, 11
#define MIRL_SECOND_HALVES 4, 5, 6, 7, 12, 13, 14, 15
__attribute__((always_inline)) inline Vec sums(const Vec* v) {
  Vec partial[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) partial[i] = v[i];
#pragma GCC unroll 2
  for (int n = 4; n > 1; n /= 2)
#pragma GCC unroll 4
    for (int i = 0; i < n; ++i)
      partial[i] = MIRL_SHUFFLE(partial[2 * i], partial[2 * i + 1], 0, 2, 8, 10, 4, 6, 12, 14) +
                   MIRL_SHUFFLE(partial[2 * i], partial[2 * i + 1], 1, 3, 9, 11, 5, 7, 13, 15);
  return MIRL_SHUFFLE(partial[0], partial[1], MIRL_FIRST_HALVES) +
         MIRL_SHUFFLE(partial[0], partial[1], MIRL_SECOND_HALVES);
}
#else
template <int N>
__attribute__((always_inline)) inline void add_pairs(Vec* v) {
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i)
    v[i] = MIRL_SHUFFLE(v[2 * i], v[2 * i + 1], MIRL_EVEN) + MIRL_SHUFFLE(v[2 * i], v[2 * i + 1], MIRL_ODD);
  if constexpr (N > 1) add_pairs<N / 2>(v);
}
__attribute__((always_inline)) inline Vec sums(const Vec* v) {
  Vec partial[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) partial[i] = v[i];
  add_pairs<L / 2>(partial);
  return partial[0];
}
#endif

// Lane i of v[j] and lane j of v[i] change places.
#if MIRL_LANES == 8
__attribute__((always_inline)) inline void transpose(Vec* v) {
  Vec w[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    w[i] = MIRL_SHUFFLE(v[i], v[i + 4], MIRL_FIRST_HALVES);
    w[i + 4] = MIRL_SHUFFLE(v[i], v[i + 4], MIRL_SECOND_HALVES);
  }
#pragma GCC unroll 2
  for (int pass = 0; pass < 2; ++pass) {  // each four vectors as below, half by half
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vec a = w[i / 2 * 4 + i % 2], b = w[i / 2 * 4 + i % 2 + 2];
      v[i / 2 * 4 + i % 2 * 2] = MIRL_SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
      v[i / 2 * 4 + i % 2 * 2 + 1] = MIRL_SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) w[i] = v[i];
  }
}
#else
// Interleaving the halves log2(L) times is a transposition.
template <int N = 1>
__attribute__((always_inline)) inline void transpose(Vec* v) {
  Vec w[L];
#pragma GCC unroll 8
  for (int i = 0; i < L / 2; ++i) {
    w[2 * i] = MIRL_SHUFFLE(v[i], v[i + L / 2], MIRL_LOW);
    w[2 * i + 1] = MIRL_SHUFFLE(v[i], v[i + L / 2], MIRL_HIGH);
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) v[i] = w[i];
  if constexpr (N * 2 < L) transpose<N * 2>(v);
}
#endif

// Exact GELU, x * Phi(x).
#include "gelu.h"

}  // namespace MIRL_ISA
