// Products of all rows of two panels, summed over their pixels: MDTA's Gram matrix, and the gradients of a
// matrix that is kept whole. One of the panels is transposed first, so that a register holds sums of sixteen
// products, not parts of one.
#pragma once
#include "rows.h"

namespace MIRL_ISA {

// How far apart a transposed panel's pixels lie: an odd number of cache lines, so that a column of them meets
// in no set.
inline int64_t transposed_stride(int64_t channels) { return transposed_columns(channels) | 16; }

// Transposes n vectors of a panel: to[p * transposed_stride(channels) + c] = panel[c * PANEL + p], zero
// behind the channels.
inline void transpose_panel(const float* panel, int64_t channels, int64_t n, float* to) {
  const int64_t wide = transposed_columns(channels), apart = transposed_stride(channels);
  for (int64_t c = 0; c < wide; c += L)
    for (int64_t v = 0; v < n; ++v) {
      Vec block[L] = {};
      for (int64_t i = c; i < std::min(c + L, channels); ++i) block[i - c] = load(panel + i * PANEL + v * L);
      transpose(block);
      for (int64_t p = 0; p < L; ++p) store(to + (v * L + p) * apart + c, block[p]);
    }
}

// gram[i * stride + j] += sum_p q[i * PANEL + p] * k[p * apart + j]: M rows of q, N vectors of transposed k,
// n pixels.
template <int M, int N>
void gram_tile(const float* q, const float* k, int64_t apart, int64_t n, float* gram, int64_t stride) {
  Vec sums[M * N];  // in registers: loops that the compiler did not unroll at once would leave them in memory
#pragma GCC unroll 16
  for (int i = 0; i < M * N; ++i) sums[i] = load(gram + i / N * stride + i % N * L);
  for (int64_t p = 0; p < n; ++p) {
    Vec right[N];
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) right[j] = load(k + p * apart + j * L);
#pragma GCC unroll 16
    for (int i = 0; i < M * N; ++i) sums[i] += q[i / N * PANEL + p] * right[i % N];
  }
#pragma GCC unroll 16
  for (int i = 0; i < M * N; ++i) store(gram + i / N * stride + i % N * L, sums[i]);
}

// The same for rows i to `rows` of q, M at a time and then ever fewer.
template <int M, int N>
void gram_rows(int64_t i, const float* q, int64_t rows, const float* k, int64_t apart, int64_t n, float* gram,
               int64_t stride) {
  for (; i + M <= rows; i += M) gram_tile<M, N>(q + i * PANEL, k, apart, n, gram + i * stride, stride);
  if constexpr (M > 1) gram_rows<(M > 4 ? 4 : M / 2), N>(i, q, rows, k, apart, n, gram, stride);
}

// The same for all rows of q by all of k's columns (`transposed_columns`): ROWS rows at a time, whose sums
// stay in the second-level cache, and their part of the page table in the cache for it.
inline void add_gram(const float* q, int64_t rows, const float* k, int64_t columns, int64_t n, float* gram) {
  constexpr int64_t ROWS = 48;
  const int64_t apart = transposed_stride(columns);
  for (int64_t first = 0; first < rows; first += ROWS) {
    const int64_t count = std::min(ROWS, rows - first);
    const float* from = q + first * PANEL;
    float* to = gram + first * columns;
    int64_t j = 0;
    if constexpr (TILE == 4)
      for (; j + 4 * L <= columns; j += 4 * L)
        gram_rows<4, 4>(0, from, count, k + j, apart, n, to + j, columns);
    for (; j + 2 * L <= columns; j += 2 * L)
      gram_rows < L<16 ? 6 : 8, 2>(0, from, count, k + j, apart, n, to + j, columns);
    for (; j < columns; j += L) gram_rows<8, 1>(0, from, count, k + j, apart, n, to + j, columns);
  }
}

// The same by tiles of bfloat16 numbers, for k as a panel: gram[i * transposed_columns(columns) + j] += sum_p
// q[i * PANEL + p] * k[j * PANEL + p] over n vectors.
inline void add_gram_by_tiles(const float* q, int64_t rows, const float* k, int64_t columns, int64_t n,
                              float* gram) {
  constexpr int64_t ROW = PANEL / 2;  // words of a channel's pixels
  const int64_t pixels = n * L, steps = (pixels + TILE_COLUMNS - 1) / TILE_COLUMNS;
  const int64_t wide = transposed_columns(columns), left_rows = round_up(rows, TILE_ROWS);
  int32_t *left = mirl::word_scratch((left_rows + 2 * wide) * ROW), *right = left + left_rows * ROW,
          *rounded_k = right + wide * ROW;
  auto round_rows = [&](const float* from, int64_t count, int32_t* to) {
    for (int64_t c = 0; c < count; ++c) {
      if (pixels % TILE_COLUMNS) std::memset(to + c * ROW, 0, sizeof(int32_t) * steps * TILE_WORDS);
      round_row(from + c * PANEL, pixels, to + c * ROW);
    }
  };
  round_rows(q, rows, left);
  round_rows(k, columns, rounded_k);
  for (int64_t c = 0; c < wide; c += L)
    for (int64_t w = 0; w < steps * TILE_WORDS; w += L) {
      Vec block[L] = {};
      for (int64_t i = c; i < std::min(c + L, columns); ++i)
        block[i - c] = load(reinterpret_cast<const float*>(rounded_k + i * ROW + w));
      transpose(block);
      for (int64_t i = 0; i < L; ++i) store(reinterpret_cast<float*>(right + (w + i) * wide + c), block[i]);
    }
  alignas(64) float sums[TILE_ROWS * PANEL];
  for (int64_t r = 0; r < rows; r += TILE_ROWS)
    for (int64_t c = 0; c < wide; c += WIDE * L) {
      const int64_t vectors = std::min<int64_t>(WIDE, (wide - c) / L);
      tile_rows({left + r * ROW, ROW}, {right + c, wide}, steps, vectors, sums);
      for (int64_t i = r; i < std::min(r + TILE_ROWS, rows); ++i)
        for (int64_t v = 0; v < vectors; ++v) {
          float* to = gram + i * wide + c + v * L;
          store(to, load(to) + load(sums + (i - r) * PANEL + v * L));
        }
    }
}

}  // namespace MIRL_ISA
