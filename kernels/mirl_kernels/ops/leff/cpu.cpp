// LeFF in strips, as GDFN: the hidden channels never leave the second-level cache.
#include "pixels.h"

namespace MIRL_ISA {
namespace {

// The numbers of a vector of pixels.
struct Numbers {
  int64_t pixel[L];

  Numbers(const MirlSize& size, int64_t b, int64_t y, int64_t x, const Place& at) {
    const int64_t first = (b * size.height + y + at.row) * size.width + x + at.column;
    for (int64_t i = 0; i < L; ++i) pixel[i] = first + i;
  }
};

}  // namespace

void leff(MirlLeff& a) {
  const MirlRows linear1 = a.linear1->view(), linear2 = a.linear2->view();
  const Strips s(flattened(a.size), linear1.rows, a.threads);
  const Taps taps(a.dwconv->view(), s);
  const int64_t channels = s.size.channels, hidden = linear1.rows;
  auto fill = [&](const Filling& f) {
    enter(Phase::norm);
    for (int64_t v = 0; v < f.n; ++v)
      read_pixels(a.x, channels, Numbers(s.size, f.b, f.y, f.x, f.at[v]).pixel, f.at[v].valid,
                  [&](int64_t c, Vec values) { store(f.panel + c * PANEL + v * L, values); });
    with_vectors(f.n, [&](auto n) { normalise<n>(channels, true, f.panel, float(a.eps)); });
    enter(Phase::expand);
    product(linear1, f.panel, f.n, [&](int64_t h, int64_t begin, auto width, const Vec* sums) {
      Vec activated[width];
      for (int v = 0; v < width; ++v) activated[v] = gelu(sums[v]);
      f.store_hidden(h, s.hidden_stride, begin, width, activated);
    });
    enter(Phase::other);
  };
  auto consume = [&](const Step& step) {
    float *tapped = step.extra, *y = tapped + hidden * PANEL;
    grouped(step.count, step.x1 - step.x0, [&](const Place* at, int64_t n) {
      const Tapped from(s, step, at, n);
      enter(Phase::gate);
      for (int64_t h = 0; h < hidden; ++h)
        runs<TAPPED>(at, n, [&](int64_t v, auto width) {
          Vec sums[width];
          taps.panel<width>(h, from, v, sums);
          for (int i = 0; i < width; ++i) store(tapped + h * PANEL + (v + i) * L, gelu(sums[i]));
        });
      enter(Phase::project);
      product(linear2, tapped, n, [&](int64_t c, int64_t begin, auto width, const Vec* sums) {
        for (int v = 0; v < width; ++v) store(y + c * PANEL + (begin + v) * L, sums[v]);
      });
      for (int64_t v = 0; v < n; ++v) {
        const Numbers at_v(s.size, step.b, step.y, step.x0, at[v]);
        read_pixels(a.x, channels, at_v.pixel, at[v].valid, [&](int64_t c, Vec x) {
          float* to = y + c * PANEL + v * L;
          store(to, load(to) + x);
        });
        write_pixels(a.y, channels, at_v.pixel, at[v].valid,
                     [&](int64_t c) { return load(y + c * PANEL + v * L); });
      }
      enter(Phase::other);
    });
  };
  run_strips(s, channels * PANEL, (hidden + channels) * PANEL, a.threads, fill, consume);
}

}  // namespace MIRL_ISA
