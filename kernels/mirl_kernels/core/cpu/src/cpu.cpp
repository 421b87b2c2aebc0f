// What is no op, but serves several: images whose channels lie side by side, into planes; weights into packed
// matrices and their gradients back.
#include "gram.h"
#include "strips.h"

namespace MIRL_ISA {

void transpose(MirlTranspose& a) {
  constexpr int64_t ROWS = PANEL;
  const int64_t panels = (a.rows + ROWS - 1) / ROWS;
  auto task = [&](int64_t t) {
    const int64_t b = t / panels, first = t % panels * ROWS, rows = std::min(ROWS, a.rows - first);
    const float* x = a.x + b * a.x_batch + first * a.x_row;
    float* y = a.y + b * a.rows * a.columns + first;
    for (int64_t c = 0; c < a.columns; c += L) {
      for (int64_t i = 0; i < rows; i += L)
        transpose_tile(x + i * a.x_row + c, a.x_row, y + c * a.rows + i, a.rows, std::min(L, rows - i),
                       std::min(L, a.columns - c));
    }
  };
  mirl::parallel(a.batch * panels, a.threads, task);
}

namespace {

// A range of rows of a chunk of a weight.
struct Share {
  const MirlWeight& weight;
  MirlRows rows;
  const int32_t* source;
  const float* gradient;
  int64_t first, last;

  template <class F>
  void each_pruned(F&& f) const {
    const int32_t *count = source + rows.rows + rows.columns,
                  *end = count + 1 + *count;  // what follows is in order
    auto place = [&](int64_t row) { return std::lower_bound(count + 1, end, int32_t(row * rows.columns)); };
    const int32_t *from = place(first), *to = place(last);
    for (int64_t r = first; from < to; ++r)
      for (; from < to && *from < (r + 1) * rows.columns; ++from) f(r, *from - r * rows.columns);
  }
};

// f(Share) for shares of all chunks of all weights.
template <class F>
void shared(const MirlWeights& a, F&& f) {
  std::vector<Share> shares;
  for (const MirlWeight* w = a.weights; w < a.weights + a.count; ++w) {
    const int32_t* source = w->source;
    const float* gradient = w->gradient;
    for (int64_t i = 0; i < w->packed->chunks; ++i) {
      const MirlRows m = w->packed->view(i);
      const int64_t values = m.dense ? m.rows * m.columns : m.start[m.rows];
      const int64_t share = std::max<int64_t>(4, m.rows * 4096 / std::max<int64_t>(1, values));
      for (int64_t r = 0; r < m.rows; r += share)
        shares.push_back({*w, m, source, gradient, r, std::min(r + share, m.rows)});
      if (m.dense)
        source += m.rows + m.columns, source += 1 + *source,
            gradient += m.rows * transposed_columns(m.columns);
      else source += values, gradient += values;
    }
  }
  auto task = [&](int64_t i) { f(shares[i]); };
  mirl::parallel(shares.size(), a.threads, task);
}

}  // namespace

void fill(MirlWeights& a) {
  shared(a, [](const Share& share) {
    const MirlRows& m = share.rows;
    const float* from = share.weight.weight;
    auto* entry = const_cast<MirlEntry*>(m.entry);
    if (!m.dense) {
      for (int64_t k = m.start[share.first]; k < m.start[share.last]; ++k)
        entry[k].value = from[share.source[k]];
      return;
    }
    const int32_t *row = share.source, *column = row + m.rows;
    auto at = [&](int64_t r, int64_t c) -> float& {
      return const_cast<float*>(m.dense)[(r / 4 * m.columns + c) * 4 + r % 4];
    };
    for (int64_t r = share.first; r < share.last;) {
      if (r % 4 || r + 4 > share.last) {
        for (int64_t c = 0; c < m.columns; ++c) at(r, c) = from[row[r] + column[c]];
        ++r;
        continue;
      }
      const float* rows[4] = {from + row[r], from + row[r + 1], from + row[r + 2], from + row[r + 3]};
      float* to = &at(r, 0);
      for (int64_t c = 0; c < m.columns; ++c)
        for (int i = 0; i < 4; ++i) to[4 * c + i] = rows[i][column[c]];
      r += 4;
    }
    share.each_pruned([&](int64_t r, int64_t c) { at(r, c) = 0; });
    if (!m.start) return;  // the chunk has no entries beside it
    for (int64_t r = share.first; r < share.last; ++r)
      for (int64_t k = m.start[r]; k < m.start[r + 1]; ++k) entry[k].value = at(r, entry[k].column());
  });
}

void spread(MirlWeights& a) {
  for (int64_t i = 0; i < a.count; ++i)
    std::memset(a.weights[i].weight, 0, sizeof(float) * a.weights[i].clear);
  shared(a, [](const Share& share) {
    const MirlRows& m = share.rows;
    float* to = share.weight.weight;
    if (!m.dense) {
      for (int64_t k = m.start[share.first]; k < m.start[share.last]; ++k)
        to[share.source[k]] = share.gradient[k];
      return;
    }
    const int32_t *row = share.source, *column = row + m.rows;
    for (int64_t r = share.first; r < share.last; ++r)
      for (int64_t c = 0; c < m.columns; ++c)
        to[row[r] + column[c]] = share.gradient[r * transposed_columns(m.columns) + c];
    share.each_pruned([&](int64_t r, int64_t c) { to[row[r] + column[c]] = 0; });
  });
}

}  // namespace MIRL_ISA
