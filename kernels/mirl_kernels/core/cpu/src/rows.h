// The product at the heart of every op: a sparse matrix, by rows of (column, value) pairs, times a panel of
// pixels that stays in the first-level cache. A panel has up to WIDE vectors of pixels per channel, its
// channels PANEL floats apart.
#pragma once
#include <type_traits>

#include "abi.h"
#include "bfloat16.h"
#include "phase_times.h"
#include "shared_rules.h"
#include "threads.h"
#include "vector.h"

namespace MIRL_ISA {

using mirl::enter;
using mirl::padded;
using mirl::Phase;
using mirl::round_up;
using mirl::transposed_columns;

constexpr int WIDE = mirl::panel_vectors(L);
constexpr int64_t PANEL = MIRL_PANEL;
static_assert(WIDE * L <= PANEL, "a panel is too narrow for its vectors");
constexpr int TILE = L == 16 ? 4 : 2;  // vectors of a register tile that has four rows

template <int V>
using Vectors = std::integral_constant<int, V>;

// f(Vectors<n>) for a number that is known at run time.
template <class F>
inline void with_vectors(int64_t n, F&& f) {
  switch (n) {
    case 1: return f(Vectors<1>{});
    case 2: return f(Vectors<2>{});
    case 3: return f(Vectors<3>{});
#if MIRL_LANES == 16
    default: return f(Vectors<4>{});
#else
    case 4: return f(Vectors<4>{});
    case 5: return f(Vectors<5>{});
    case 6: return f(Vectors<6>{});
    case 7: return f(Vectors<7>{});
    default: return f(Vectors<8>{});
#endif
  }
}

// In what follows emit(row, first, Vectors<N>, sums) takes N vectors of a row of the product, from vector
// `first` on.
template <int V, class Emit>
inline void sparse_panel(const MirlRows& m, const float* in, Emit&& emit) {
  for (int64_t r = 0; r < m.rows; ++r) {
    Vec sums[V];
    const Vec bias = all(m.bias ? m.bias[r] : 0.0f);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[v] = bias;
    for (const MirlEntry *k = m.entry + m.start[r], *end = m.entry + m.start[r + 1]; k < end; ++k) {
      const float* p = reinterpret_cast<const float*>(reinterpret_cast<const char*>(in) + k->offset);
      const Vec w = all(k->value);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[v] += w * load(p + v * L);
    }
    emit(r, 0, Vectors<V>{}, sums);
  }
}

// The same by pairs of rows, in their order.
template <int V, class Emit>
inline void row_pair_panel(const MirlRows& m, const float* in, Emit&& emit) {
  auto at = [&](int32_t offset) {
    return reinterpret_cast<const float*>(reinterpret_cast<const char*>(in) + offset);
  };
  auto value = [](int32_t word) {
    float x;
    std::memcpy(&x, &word, sizeof x);
    return all(x);
  };
  auto bias = [&](int64_t row) { return all(m.bias && row >= 0 ? m.bias[row] : 0.0f); };
  const MirlRowPair* pair = m.row_pairs;
  for (int64_t left = m.rows; left > 0; left -= 2) {
    const int64_t row = pair->row[0], other = pair->row[1];
    Vec sums[V], others[V];
    const Vec begin = bias(row), other_begin = bias(other);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[v] = begin, others[v] = other_begin;
    const int32_t* word = pair->columns();
    for (const int32_t* end = word + 3 * pair->shared; word < end; word += 3) {
      const float* p = at(word[0]);
      const Vec a = value(word[1]), b = value(word[2]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const Vec x = load(p + v * L);
        sums[v] += a * x, others[v] += b * x;
      }
    }
    for (const int32_t* end = word + 4 * pair->single; word < end; word += 4) {
      const float *p = at(word[0]), *q = at(word[1]);
      const Vec a = value(word[2]), b = value(word[3]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[v] += a * load(p + v * L), others[v] += b * load(q + v * L);
    }
    emit(row, 0, Vectors<V>{}, sums);
    if (other >= 0) emit(other, 0, Vectors<V>{}, others);
    pair = reinterpret_cast<const MirlRowPair*>(word);
  }
}

// Four rows by N vectors, added to `begin`, which has `begin_vectors` of them for each row: N, or one for
// all. `weight` holds the rows' values four by four.
template <int N, class Emit>
__attribute__((always_inline)) inline void dense_tile(const float* weight, int64_t columns, const float* in,
                                                      int64_t stride, const Vec* begin, int begin_vectors,
                                                      Emit&& emit) {
  Vec sums[4 * N];  // in registers: loops that the compiler did not unroll at once would leave them in memory
#pragma GCC unroll 16
  for (int i = 0; i < 4 * N; ++i) sums[i] = begin[i / N * begin_vectors + i % N % begin_vectors];
  for (int64_t c = 0; c < columns; ++c) {
    Vec x[N];
#pragma GCC unroll 16
    for (int v = 0; v < N; ++v) x[v] = load(in + c * stride + v * L);
#pragma GCC unroll 16
    for (int i = 0; i < 4 * N; ++i) sums[i] += weight[c * 4 + i / N] * x[i % N];
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) emit(i, sums + i * N);
}

// f(first, Vectors<N>) for the tiles that n vectors make.
template <class F>
__attribute__((always_inline)) inline void tiles(int64_t n, F&& f) {
  int64_t first = 0;
  for (; first + TILE <= n; first += TILE) f(first, Vectors<TILE>{});
  if constexpr (TILE > 2) {
    if (n - first == 3) return f(first, Vectors<3>{});
    if (n - first == 2) return f(first, Vectors<2>{});
  }
  if (n > first) f(first, Vectors<1>{});
}

// For more columns than a panel in the first-level cache has: goes through them block by block, for as many
// rows as have room there for their sums.
constexpr int64_t MOST_COLUMNS = 96;
template <class Emit>
__attribute__((noinline)) void dense_column_blocks(const MirlRows& m, const float* in, int64_t stride,
                                                   int64_t vectors, Emit&& emit) {
  constexpr int64_t ROWS = 32;
  const int64_t blocks = (m.columns + MOST_COLUMNS - 1) / MOST_COLUMNS,
                columns = (m.columns + blocks - 1) / blocks;
  Vec partial[ROWS * WIDE];
  for (int64_t top = 0; top < m.rows; top += ROWS)
    for (int64_t first = 0; first < m.columns; first += columns)
      for (int64_t r = top; r < std::min(top + ROWS, m.rows); r += 4) {
        const int64_t n = std::min(columns, m.columns - first), count = std::min<int64_t>(4, m.rows - r);
        const float* weight = m.dense + r * m.columns + 4 * first;
        for (int64_t i = 0; i < 4 * n; i += 16)
          __builtin_prefetch(weight + 4 * m.columns + i);  // does not follow in memory
        tiles(vectors, [&](int64_t at, auto wide) {
          constexpr int N = wide;
          Vec* tile = partial + (r - top) * vectors + 4 * at;
          if (first == 0)
            for (int i = 0; i < 4 * N; ++i) tile[i] = all(m.bias && i / N < count ? m.bias[r + i / N] : 0.0f);
          dense_tile<N>(weight, n, in + first * stride + at * L, stride, tile, N,
                        [&](int64_t i, const Vec* sums) {
                          for (int v = 0; v < N; ++v) tile[i * N + v] = sums[v];
                        });
          if (first + n < m.columns) return;
          for (int64_t i = 0; i < count; ++i) emit(r + i, at, wide, tile + i * N);
        });
      }
}

// A matrix in tiles times n vectors of pixels, whose channels are `stride` floats apart.
template <class Emit>
inline void tile_panel(const MirlRows& m, const float* in, int64_t stride, int64_t n, Emit&& emit) {
  const PairedPanel panel(in, stride, m.columns, n);
  const int64_t steps = (m.columns + TILE_COLUMNS - 1) / TILE_COLUMNS, row = steps * TILE_WORDS;
  alignas(64) float sums[TILE_ROWS * PANEL];
  with_vectors(n, [&](auto v) {
    for (int64_t top = 0; top < m.rows; top += TILE_ROWS) {
      tile_rows({m.tiles + top * row, row}, panel.side(), steps, n, sums);
      for (int64_t r = top; r < std::min(top + TILE_ROWS, m.rows); ++r) {
        const Vec bias = all(m.bias ? m.bias[r] : 0.0f);
        Vec values[v];
        for (int i = 0; i < v; ++i) values[i] = bias + load(sums + (r - top) * PANEL + i * L);
        emit(r, 0, v, values);
      }
    }
  });
}

// A matrix that is kept whole or in tiles, times such vectors.
template <class Emit>
inline void dense_panel(const MirlRows& m, const float* in, int64_t stride, int64_t n, Emit&& emit) {
  if (m.tiles) return tile_panel(m, in, stride, n, emit);
  if (m.columns > MOST_COLUMNS) return dense_column_blocks(m, in, stride, n, emit);
  for (int64_t r = 0; r < m.rows; r += 4) {
    const int64_t count = std::min<int64_t>(4, m.rows - r);
    Vec bias[4] = {};
    if (m.bias)
      for (int64_t i = 0; i < count; ++i) bias[i] = all(m.bias[r + i]);
    tiles(n, [&](int64_t first, auto wide) {
      dense_tile<wide>(m.dense + r * m.columns, m.columns, in + first * L, stride, bias, 1,
                       [&](int64_t i, const Vec* sums) {
                         if (i < count) emit(r + i, first, wide, sums);
                       });
    });
  }
}

// m times n vectors of pixels.
template <class Emit>
inline void product(const MirlRows& m, const float* panel, int64_t n, Emit&& emit) {
  if constexpr (mirl::row_pairs_are_fast(L))
    if (m.row_pairs) return with_vectors(n, [&](auto v) { row_pair_panel<v>(m, panel, emit); });
  if (m.dense || m.tiles) return dense_panel(m, panel, PANEL, n, emit);
  with_vectors(n, [&](auto v) { sparse_panel<v>(m, panel, emit); });
}

inline Vec activated(Vec x, const MirlActivation& a) {
  if (a.gelu || a.slope == 1) return a.gelu ? gelu(x) : x;
  const Vec below = a.slope == 0 ? Vec{} : x * float(a.slope);  // no 0 * infinity
  return x < 0.0f ? below : x;
}

}  // namespace MIRL_ISA
