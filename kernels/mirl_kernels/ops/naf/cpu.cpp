// NAFNet's block in two passes. Its channel attention needs the means over the image of what the first gate
// gives: pass one computes and sums that in strips, and stores what conv3 reads of it. No taps come after, so
// pass two takes groups of pixels through the rest of the block without leaving the second-level cache.
#include "strips.h"

namespace MIRL_ISA {
namespace {

// The sums over the pixels of the gated channels, item by item. Those that `gated` has room for are stored
// there.
std::vector<double> pass_one(const MirlNaf& a, const MirlImage& gated, int64_t stored) {
  const MirlRows conv1 = a.conv1->view();
  const int64_t pairs = conv1.rows / 2;
  const Strips s(a.size, conv1.rows, a.threads);
  const Taps taps(a.conv2->view(), s);
  std::vector<double> partial(s.tasks() * pairs, 0.0);
  const int64_t lanes = round_up(pairs, L) * L;  // a step's sums
  run_strips(s, a.size.channels * PANEL, lanes, a.threads, FillNormalised{s, a.x, conv1, true, float(a.eps1)},
             [&](const Step& step) {
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
                 for (int64_t i = 0; i < std::min(L, pairs - j); ++i)
                   partial[step.task * pairs + j + i] += sum[i];
               }
             });
  const int64_t tasks = s.tasks() / a.size.batch;  // of one item, added up in order
  std::vector<double> total(a.size.batch * pairs, 0.0);
  for (int64_t t = 0; t < s.tasks(); ++t)
    for (int64_t j = 0; j < pairs; ++j) total[t / tasks * pairs + j] += partial[t * pairs + j];
  return total;
}

// What the stored channels are multiplied by.
std::vector<float> channel_attention(const MirlNaf& a, const std::vector<double>& total) {
  const MirlRows sca = a.sca->view();
  std::vector<float> scale;
  for (int64_t b = 0; b < a.size.batch; ++b)
    for (int64_t r = 0; r < sca.rows; ++r) {
      double sum = 0;
      for (int32_t k = sca.start[r]; k < sca.start[r + 1]; ++k)
        sum += sca.entry[k].value * total[b * sca.columns + sca.entry[k].column()];
      scale.push_back(float(sum / double(a.size.height * a.size.width)) + (sca.bias ? sca.bias[r] : 0.0f));
    }
  return scale;
}

}  // namespace

void naf(MirlNaf& a) {
  const MirlRows conv3 = a.conv3->view(), conv4 = a.conv4->view(), conv5 = a.conv5->view();
  const int64_t channels = a.size.channels, width = a.size.width, stored = conv3.columns;
  const int64_t channel = padded(width), row = stored * channel;  // the channels of an image row lie together
  const MirlImage gated{a.scratch, a.size.height * row, channel, row};
  const std::vector<float> scale = channel_attention(a, pass_one(a, gated, stored));
  const int64_t share = std::max<int64_t>(1, a.size.height / (4 * a.threads)),
                shares = (a.size.height + share - 1) / share;
  auto task = [&](int64_t t) {
    const int64_t b = t / shares, top = t % shares * share;
    float *y = mirl::scratch((2 * channels + stored + conv5.columns) * PANEL), *normal = y + channels * PANEL;
    float *scaled = normal + channels * PANEL, *hidden = scaled + stored * PANEL;
    const std::vector<Place> all = places(std::min(share, a.size.height - top), width);
    grouped(all.size(), [&](int64_t first, int64_t n) {
      const Place* at = all.data() + first;
      const int64_t following = std::min<int64_t>(n, all.size() - first - n);
      Fetch next(a.x, b, channels, top, 0, at + n, following, channels);
      Fetch next_gated(gated, b, stored, top, 0, at + n, following, channels);
      for (int64_t j = 0; j < stored; ++j)
        for (int64_t v = 0; v < n; ++v)
          store(scaled + j * PANEL + v * L,
                load(gated.at(b, j, top + at[v].row, at[v].column)) * scale[b * stored + j]);
      product(conv3, scaled, n, [&](int64_t c, int64_t begin, auto wide, const Vec* sums) {
        if (begin == 0) next.template share<0>(), next_gated.template share<0>();
        for (int64_t v = begin; v < begin + wide; ++v) {
          const Vec value = sums[v - begin] + load(a.x.at(b, c, top + at[v].row, at[v].column), at[v]);
          store(y + c * PANEL + v * L, value);
          store(normal + c * PANEL + v * L, value);
        }
      });
      with_vectors(n, [&](auto v) { normalise<v>(channels, true, normal, float(a.eps2)); });
      // The two halves of a pair follow each other.
      product(conv4, normal, n, [&](int64_t r, int64_t begin, auto wide, const Vec* sums) {
        float* to = hidden + r / 2 * PANEL + begin * L;
        for (int v = 0; v < wide; ++v) store(to + v * L, r % 2 ? load(to + v * L) * sums[v] : sums[v]);
      });
      product(conv5, hidden, n, [&](int64_t c, int64_t begin, auto wide, const Vec* sums) {
        for (int64_t v = begin; v < begin + wide; ++v)
          store(a.y.at(b, c, top + at[v].row, at[v].column), sums[v - begin] + load(y + c * PANEL + v * L),
                at[v]);
      });
    });
  };
  mirl::parallel(a.size.batch * shares, a.threads, task);
}

}  // namespace MIRL_ISA
