// What NAFNet's block and its gradients share: what lies between their passes, and the pixels of a pass that
// has no taps.
#pragma once
#include "strips.h"

namespace MIRL_ISA {

// The pixels of all items, in tasks that each take a range of an item's vectors. Where rows follow each other
// in memory, those of an item are worked on as one, so that they fill vectors.
class Pixels {
  int64_t per_row, vectors, share, shares;

 public:
  const MirlSize size;

  // `parts`: into how many tasks an item is cut.
  Pixels(const MirlSize& s, bool joined, int64_t parts)
      : size(joined ? MirlSize{s.batch, s.channels, 1, s.height * s.width, 0} : s) {
    per_row = (size.width + L - 1) / L, vectors = size.height * per_row;
    share = round_up((vectors + parts - 1) / parts, WIDE), shares = (vectors + share - 1) / share;
  }
  int64_t tasks() const { return size.batch * shares; }
  int64_t item(int64_t task) const { return task / shares; }
  std::vector<Place> places(int64_t task) const {
    std::vector<Place> all;
    const int64_t first = task % shares * share;
    for (int64_t i = first; i < std::min(first + share, vectors); ++i) {
      const int64_t column = i % per_row * L;
      all.push_back({i / per_row, column, std::min(L, size.width - column)});
    }
    return all;
  }
};

// Into how many tasks training cuts a batch, whatever the number of threads: a few items are cut, and the
// rows of others stay in the cache.
inline int64_t training_tasks(int64_t batch) { return batch < 4 ? TRAINING_TASKS : batch; }

// Whether the rows of all images follow each other. Only rows that do not fill vectors need that.
inline bool are_joined(const MirlSize& s, std::initializer_list<const MirlImage*> images) {
  return s.width % L && std::all_of(images.begin(), images.end(),
                                    [&](const MirlImage* image) { return image->row == s.width; });
}

// Where the first gate's channels lie that conv3 reads: those of an image row together, or each by itself.
inline MirlImage gated_image(const MirlNaf& a, const MirlSize& size, bool joined) {
  const int64_t stored = a.conv3->columns;
  if (joined) {
    const int64_t channel = padded(size.height * size.width);
    return {a.scratch, stored * channel, channel, size.width};
  }
  const int64_t channel = padded(size.width), row = stored * channel;
  return {a.scratch, size.height * row, channel, row};
}

// What the stored channels of every item are multiplied by, from the sums over its pixels of all pairs.
inline std::vector<float> channel_attention(const MirlNaf& a, const double* sums) {
  const MirlRows sca = a.sca->view();
  std::vector<float> scale;
  for (int64_t b = 0; b < a.size.batch; ++b)
    for (int64_t r = 0; r < sca.rows; ++r) {
      double sum = 0;
      for (int32_t k = sca.start[r]; k < sca.start[r + 1]; ++k)
        sum += sca.entry[k].value * sums[b * sca.columns + sca.entry[k].column()];
      scale.push_back(float(sum / double(a.size.height * a.size.width)) + (sca.bias ? sca.bias[r] : 0.0f));
    }
  return scale;
}

}  // namespace MIRL_ISA
