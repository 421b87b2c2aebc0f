// Depthwise convolution: a channel at a time, in blocks of rows copied with their borders, so that no tap
// asks where it is.
#include "phases.h"

namespace MIRL_ISA {

void depthwise(MirlDepthwise& a) {
  constexpr int64_t FIRST_LEVEL = 4096;  // floats of a block that leaves room for what is written
  const MirlRows rows = a.weight->view();
  const MirlTap* tap = a.weight->tap();
  const Phases x{a.x, a.size, a.stride_y, a.stride_x};
  const int64_t phases = x.phases(), outputs = rows.rows;
  const Reach reach = reach_of(tap, rows.columns);
  const int64_t margin = round_up(reach.left, 16), last = std::min(a.width + reach.right, x.width());
  const int64_t pitch = margin + round_up(std::max(a.width + reach.right, last), L) + L;
  const int64_t more = reach.above + reach.below;
  const int64_t fitting = std::max(std::max<int64_t>(2 * more, 1), FIRST_LEVEL / pitch / phases - more);
  const int64_t blocks = (a.height + fitting - 1) / fitting, height = (a.height + blocks - 1) / blocks;
  const int64_t plane = (height + more) * pitch;
  std::vector<int64_t> offset;
  for (int64_t k = 0; k < rows.columns; ++k)
    offset.push_back(tap[k].channel * plane + (tap[k].dy + reach.above) * pitch + tap[k].dx + margin);
  std::vector<bool> read(phases, false);
  for (int64_t k = 0; k < rows.columns; ++k) read[tap[k].channel] = true;
  const int64_t per_row = (a.width + L - 1) / L;
  const std::vector<Place> across = places(1, last), computed = places(height, a.width);

  auto task = [&](int64_t t) {
    const int64_t b = t / (outputs * blocks), o = t / blocks % outputs, c = o / a.multiplier;
    const int64_t top = t % blocks * height, bottom = std::min(top + height, a.height);
    float* block = mirl::scratch(phases * plane + L);
    if (rows.start[o] < rows.start[o + 1])
      for (int64_t phase = 0; phase < phases; ++phase) {
        if (!read[phase]) continue;
        for (int64_t i = 0; i < bottom - top + more; ++i) {
          float* row = block + phase * plane + i * pitch;
          const int64_t y = top - reach.above + i;
          if (y < 0 || y >= x.height()) {
            std::memset(row, 0, sizeof(float) * pitch);
            continue;
          }
          std::memset(row, 0, sizeof(float) * margin);
          if (phases == 1) std::memcpy(row + margin, a.x.at(b, c, y, 0), sizeof(float) * last);
          else
            for (const Place& at : across)
              store(row + margin + at.column, x.at(b, c * phases + phase, y, at.column, at.valid));
          std::memset(row + margin + last, 0, sizeof(float) * (pitch - margin - last));
        }
      }
    const Vec bias = all(rows.bias ? rows.bias[o] : 0.0f);
    grouped((bottom - top) * per_row, [&](int64_t first, int64_t n) {
      const float* in[WIDE];
      for (int64_t v = 0; v < n; ++v)
        in[v] = block + computed[first + v].row * pitch + computed[first + v].column;
      with_vectors(n, [&](auto wide) {
        Vec sums[wide];
        for (int v = 0; v < wide; ++v) sums[v] = bias;
        for (const MirlEntry *k = rows.entry + rows.start[o], *end = rows.entry + rows.start[o + 1]; k < end;
             ++k) {
          const int64_t at = offset[k->column()];
          const Vec w = all(k->value);
          for (int v = 0; v < wide; ++v) sums[v] += w * load(in[v] + at);
        }
        for (int v = 0; v < wide; ++v) {
          const Place& at = computed[first + v];
          store(a.y.at(b, o, top + at.row, at.column), activated(sums[v], a.activation), at);
        }
      });
    });
  };
  mirl::parallel(a.size.batch * outputs * blocks, a.threads, task);
}

}  // namespace MIRL_ISA
