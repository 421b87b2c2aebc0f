// Depthwise convolution: a channel at a time, in blocks of rows copied with their borders, so that no tap
// asks where it is.
#include "phases.h"

namespace MIRL_ISA {
namespace {

class Depthwise {
  static constexpr int64_t FIRST_LEVEL = 4096;  // floats of a block that leaves room for what is written

  const MirlDepthwise& a;
  const MirlRows rows = a.weight->view();
  const MirlTap* const tap = a.weight->tap();
  const Phases x{a.x, a.size, a.stride_y, a.stride_x};
  const int64_t phases = x.phases();
  const Reach reach = reach_of(tap, rows.columns);
  // A row of a block: a margin on the left, pixels 0 .. last of the image, zeros.
  const int64_t margin = round_up(reach.left, 16), last = std::min(a.width + reach.right, x.width());
  const int64_t pitch = margin + round_up(std::max(a.width + reach.right, last), L) + L;
  const int64_t more = reach.above + reach.below;  // rows that a block has beside those of the result
  const int64_t fitting = std::max(std::max<int64_t>(2 * more, 1), FIRST_LEVEL / pitch / phases - more);
  const int64_t blocks = (a.height + fitting - 1) / fitting, height = (a.height + blocks - 1) / blocks;
  const int64_t plane = (height + more) * pitch;
  const int64_t row_vectors = (a.width + L - 1) / L;
  const std::vector<Place> across = places(1, last), computed = places(height, a.width);
  std::vector<int64_t> offset;  // of each tap in a block
  std::vector<bool> read;       // whether any tap reads the phase

 public:
  explicit Depthwise(const MirlDepthwise& a) : a(a), read(phases, false) {
    for (int64_t k = 0; k < rows.columns; ++k) {
      offset.push_back(tap[k].channel * plane + (tap[k].dy + reach.above) * pitch + tap[k].dx + margin);
      read[tap[k].channel] = true;
    }
  }

  void run() const {
    auto task = [&](int64_t t) {
      const int64_t b = t / (rows.rows * blocks), o = t / blocks % rows.rows;
      const int64_t top = t % blocks * height, bottom = std::min(top + height, a.height);
      float* block = mirl::scratch(phases * plane + L);
      if (rows.start[o] < rows.start[o + 1]) copy(b, o / a.multiplier, top, bottom, block);
      convolve(b, o, top, bottom, block);
    };
    mirl::parallel(a.size.batch * rows.rows * blocks, a.threads, task);
  }

 private:
  // Rows top .. bottom of channel c of item b into a block, with their borders, phase by phase.
  void copy(int64_t b, int64_t c, int64_t top, int64_t bottom, float* block) const {
    for (int64_t phase = 0; phase < phases; ++phase) {
      if (!read[phase]) continue;
      for (int64_t i = 0; i < bottom - top + more; ++i)
        copy_row(b, c, phase, top - reach.above + i, block + phase * plane + i * pitch);
    }
  }

  void copy_row(int64_t b, int64_t c, int64_t phase, int64_t y, float* row) const {
    if (y < 0 || y >= x.height()) {
      std::memset(row, 0, sizeof(float) * pitch);
      return;
    }
    std::memset(row, 0, sizeof(float) * margin);
    if (phases == 1) std::memcpy(row + margin, a.x.at(b, c, y, 0), sizeof(float) * last);
    else
      for (const Place& at : across)
        store(row + margin + at.column, x.at(b, c * phases + phase, y, at.column, at.valid));
    std::memset(row + margin + last, 0, sizeof(float) * (pitch - margin - last));
  }

  // Rows top .. bottom of channel o of item b of the result, from the block.
  void convolve(int64_t b, int64_t o, int64_t top, int64_t bottom, const float* block) const {
    const Vec bias = all(rows.bias ? rows.bias[o] : 0.0f);
    const MirlEntry *const begin = rows.entry + rows.start[o], *const end = rows.entry + rows.start[o + 1];
    grouped((bottom - top) * row_vectors, [&](int64_t first, int64_t n) {
      const float* in[WIDE];
      for (int64_t v = 0; v < n; ++v)
        in[v] = block + computed[first + v].row * pitch + computed[first + v].column;
      with_vectors(n, [&](auto wide) {
        Vec sums[wide];
        for (int v = 0; v < wide; ++v) sums[v] = bias;
        for (const MirlEntry* k = begin; k < end; ++k) {
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
  }
};

}  // namespace

void depthwise(MirlDepthwise& a) { Depthwise(a).run(); }

}  // namespace MIRL_ISA
