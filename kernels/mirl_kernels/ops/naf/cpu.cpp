// NAFNet's block in two passes. Its channel attention needs the means over the image of what the first gate
// gives: pass one computes and sums that in strips, and stores what conv3 reads of it. No taps come after, so
// pass two takes groups of pixels through the rest of the block without leaving the second-level cache.
#include "naf.h"

namespace MIRL_ISA {
namespace {

// The sums over the pixels of the gated channels, item by item. Those that `gated` has room for are stored
// there.
std::vector<double> pass_one(const MirlNaf& a, const MirlSize& size, const MirlImage& gated) {
  const MirlRows conv1 = a.conv1->view();
  const int64_t pairs = conv1.rows / 2, stored = a.conv3->columns;
  const Strips s(size, conv1.rows, a.sums ? training_tasks(size.batch) : a.threads);
  const Taps taps(a.conv2->view(), s);
  std::vector<double> partial(s.tasks() * pairs, 0.0);
  const int64_t lanes = round_up(pairs, L) * L;  // a step's sums
  const FillNormalised fill{s, a.x, conv1, true, float(a.eps1), a.gain1, a.offset1};
  run_strips(s, a.size.channels * PANEL, lanes, a.threads, fill, [&](const Step& step) {
    std::memset(step.extra, 0, sizeof(float) * lanes);
    grouped(step.count, step.x1 - step.x0, [&](const Place* at, int64_t n) {
      const Tapped from(s, step, at, n);
      Fetch to_write(gated, step.b, stored, step.y, step.x0, at, n, pairs);
      for (int64_t j = 0; j < pairs; ++j) {
        to_write.share<1>();
        Vec total = load(step.extra + j * L);
        runs<TAPPED>(at, n, [&](int64_t v, auto width) {
          Vec left[width], right[width];
          taps.pair<width>(j, pairs, from, v, left, right);
          for (int i = 0; i < width; ++i) {
            Vec value = left[i] * right[i];
            if (at[v + i].valid < L) value = only(value, at[v + i].valid);
            total += value;
            if (j < stored)
              store(gated.at(step.b, j, step.y + at[v + i].row, step.x0 + at[v + i].column), value,
                    at[v + i]);
          }
        });
        store(step.extra + j * L, total);
      }
    });
    for (int64_t j = 0; j < pairs; j += L) {
      Vec block[L];
      std::memcpy(block, step.extra + j * L, sizeof block);
      const Vec sum = sums(block);
      for (int64_t i = 0; i < std::min(L, pairs - j); ++i) partial[step.task * pairs + j + i] += sum[i];
    }
  });
  const int64_t tasks = s.tasks() / a.size.batch;  // of one item, added up in order
  std::vector<double> total(a.size.batch * pairs, 0.0);
  for (int64_t t = 0; t < s.tasks(); ++t)
    for (int64_t j = 0; j < pairs; ++j) total[t / tasks * pairs + j] += partial[t * pairs + j];
  return total;
}

}  // namespace

void naf(MirlNaf& a) {
  const MirlRows conv3 = a.conv3->view(), conv4 = a.conv4->view(), conv5 = a.conv5->view();
  const MirlSize size = flattened(a.size);
  const bool joined = are_joined(size, {&a.x, &a.y});
  const MirlImage gated = gated_image(a, size, joined);
  const std::vector<double> sums = pass_one(a, size, gated);
  if (a.sums) std::copy(sums.begin(), sums.end(), a.sums);
  const std::vector<float> scale = channel_attention(a, sums.data());
  const int64_t channels = size.channels, stored = conv3.columns;
  const Pixels pixels(size, joined, 4 * a.threads);
  auto task = [&](int64_t t) {
    const int64_t b = pixels.item(t);
    float *y = mirl::scratch((2 * channels + stored + conv5.columns) * PANEL), *normal = y + channels * PANEL;
    float *scaled = normal + channels * PANEL, *hidden = scaled + stored * PANEL;
    const std::vector<Place> all = pixels.places(t);
    grouped(all.size(), [&](int64_t first, int64_t n) {
      const Place* at = all.data() + first;
      const int64_t following = std::min<int64_t>(n, all.size() - first - n);
      Fetch next(a.x, b, channels, 0, 0, at + n, following, channels);
      Fetch next_gated(gated, b, stored, 0, 0, at + n, following, channels);
      for (int64_t j = 0; j < stored; ++j)
        for (int64_t v = 0; v < n; ++v)
          store(scaled + j * PANEL + v * L,
                load(gated.at(b, j, at[v].row, at[v].column)) * scale[b * stored + j]);
      product(conv3, scaled, n, [&](int64_t c, int64_t begin, auto wide, const Vec* sums) {
        if (begin == 0) next.template share<0>(), next_gated.template share<0>();
        const float beta = a.beta ? a.beta[c] : 1.0f;
        for (int64_t v = begin; v < begin + wide; ++v) {
          const Vec value = sums[v - begin] * beta + load(a.x.at(b, c, at[v].row, at[v].column), at[v]);
          store(y + c * PANEL + v * L, value);
          store(normal + c * PANEL + v * L, value);
        }
      });
      with_vectors(n, [&](auto v) {
        normalise<v>(channels, true, normal, float(a.eps2));
        if (a.gain2) scale_and_shift<v>(channels, normal, a.gain2, a.offset2, normal);
      });
      // The two halves of a pair follow each other.
      product(conv4, normal, n, [&](int64_t r, int64_t begin, auto wide, const Vec* sums) {
        float* to = hidden + r / 2 * PANEL + begin * L;
        for (int v = 0; v < wide; ++v) store(to + v * L, r % 2 ? load(to + v * L) * sums[v] : sums[v]);
      });
      product(conv5, hidden, n, [&](int64_t c, int64_t begin, auto wide, const Vec* sums) {
        const float gamma = a.gamma ? a.gamma[c] : 1.0f;
        for (int64_t v = begin; v < begin + wide; ++v)
          store(a.y.at(b, c, at[v].row, at[v].column), sums[v - begin] * gamma + load(y + c * PANEL + v * L),
                at[v]);
      });
    });
  };
  mirl::parallel(pixels.tasks(), a.threads, task);
}

}  // namespace MIRL_ISA
