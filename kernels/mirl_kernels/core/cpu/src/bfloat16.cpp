// What bfloat16.h declares.
#include "bfloat16.h"

#include "rows.h"

namespace MIRL_ISA {
namespace {

// As AMX computes them: a tile's columns of even number and those of odd number are summed up apart.
void rows_in_float(const TileSide& left, const TileSide& right, int64_t steps, int64_t n, float* sums) {
  for (int64_t r = 0; r < TILE_ROWS; ++r)
    for (int64_t v = 0; v < n; ++v) {
      Vec total{};
      for (int64_t step = 0; step < steps; ++step) {
        const int32_t* a = left.words + r * left.row + step * TILE_WORDS;
        const int32_t* b = right.words + step * TILE_WORDS * right.row + v * L;
        Vec even{}, odd{};
        for (int64_t k = 0; k < TILE_WORDS; ++k) {
          const Int x = (Int)load(reinterpret_cast<const float*>(b + k * right.row)), w = a[k] - Int{};
          even += (Vec)(w << 16) * (Vec)(x << 16);
          odd += (Vec)(w & int32_t(0xffff0000)) * (Vec)(x & int32_t(0xffff0000));
        }
        total += even + odd;
      }
      store(sums + r * PANEL + v * L, total);
    }
}

#if MIRL_LANES == 16 && defined(MIRL_BFLOAT16_UNITS)
template <int N>
__attribute__((target("avx512bf16"))) void rows_by_vector(const TileSide& left, const TileSide& right,
                                                          int64_t steps, float* sums) {
  for (int64_t r = 0; r < TILE_ROWS; r += 4) {
    __m512 total[4 * N];
#pragma GCC unroll 16
    for (int i = 0; i < 4 * N; ++i) total[i] = _mm512_setzero_ps();
    const int32_t *a = left.words + r * left.row, *b = right.words;
    for (int64_t k = 0; k < steps * TILE_WORDS; ++k) {
      __m512bh x[N];
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) x[v] = (__m512bh)_mm512_loadu_si512(b + k * right.row + v * L);
#pragma GCC unroll 16
      for (int i = 0; i < 4 * N; ++i)
        total[i] = _mm512_dpbf16_ps(total[i], (__m512bh)_mm512_set1_epi32(a[i / N * left.row + k]), x[i % N]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4 * N; ++i) _mm512_storeu_ps(sums + (r + i / N) * PANEL + i % N * L, total[i]);
  }
}

template <int N>
__attribute__((target("amx-tile,amx-bf16"))) void rows_by_tiles(const TileSide& left, const TileSide& right,
                                                                int64_t steps, float* sums) {
  const int64_t left_bytes = 4 * left.row, right_bytes = 4 * right.row, sums_bytes = 4 * PANEL;
  _tile_zero(0);
  if constexpr (N > 1) _tile_zero(1);
  if constexpr (N > 2) _tile_zero(2);
  if constexpr (N > 3) _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step) {
    const int32_t* b = right.words + step * TILE_WORDS * right.row;
    _tile_loadd(4, left.words + step * TILE_WORDS, left_bytes);
    _tile_loadd(5, b, right_bytes);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (N > 1) {
      _tile_loadd(6, b + L, right_bytes);
      _tile_dpbf16ps(1, 4, 6);
    }
    if constexpr (N > 2) {
      _tile_loadd(7, b + 2 * L, right_bytes);
      _tile_dpbf16ps(2, 4, 7);
    }
    if constexpr (N > 3) {
      _tile_loadd(5, b + 3 * L, right_bytes);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  _tile_stored(0, sums, sums_bytes);
  if constexpr (N > 1) _tile_stored(1, sums + L, sums_bytes);
  if constexpr (N > 2) _tile_stored(2, sums + 2 * L, sums_bytes);
  if constexpr (N > 3) _tile_stored(3, sums + 3 * L, sums_bytes);
}
#endif

}  // namespace

void round_row(const float* from, int64_t count, int32_t* to) {
  typedef uint16_t Halves __attribute__((vector_size(2 * MIRL_LANES)));
  for (int64_t i = 0; i < count; i += L) {
    const Halves halves = __builtin_convertvector(rounded(load(from + i)) >> 16, Halves);
    std::memcpy(reinterpret_cast<char*>(to) + 2 * i, &halves, sizeof halves);
  }
}

PairedPanel::PairedPanel(const float* in, int64_t stride, int64_t channels, int64_t n) {
  const int64_t pairs = round_up(channels, TILE_COLUMNS) / 2;
  words = mirl::word_scratch(pairs * PANEL);
  for (int64_t k = 0; k < pairs; ++k)
    for (int64_t v = 0; v < n; ++v) {
      const float* p = in + 2 * k * stride + v * L;
      const Int low = rounded(2 * k < channels ? load(p) : Vec{}),
                high = rounded(2 * k + 1 < channels ? load(p + stride) : Vec{});
      store(reinterpret_cast<float*>(words + k * PANEL + v * L), (Vec)(((low >> 16) & 0xffff) | high));
    }
}

void tile_rows(const TileSide& left, const TileSide& right, int64_t steps, int64_t n, float* sums) {
#if MIRL_LANES == 16 && defined(MIRL_BFLOAT16_UNITS)
  const Bfloat16Unit unit = mirl::bfloat16_unit();
  if (unit != Bfloat16Unit::none)
    return with_vectors(n, [&](auto v) {
      if (unit == Bfloat16Unit::tiles) rows_by_tiles<v>(left, right, steps, sums);
      else rows_by_vector<v>(left, right, steps, sums);
    });
#endif
  rows_in_float(left, right, steps, n, sums);
}

}  // namespace MIRL_ISA
