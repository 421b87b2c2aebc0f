// Pointwise convolution in panels of pixels, gathered first: the input may have any strides.
#include "strips.h"

namespace MIRL_ISA {

void pointwise(MirlPointwise& a) {
  const MirlRows weight = a.weight->view();
  const int64_t channels = a.size.channels;
  int64_t height = a.size.height, width = a.size.width;
  if (a.x.row == width && a.y.row == width) width *= height, height = 1;  // planes without gaps
  const int64_t vectors = (width + L - 1) / L, groups = (vectors + WIDE - 1) / WIDE,
                total = a.size.batch * height * groups;
  const int64_t share = std::max<int64_t>(1, std::min<int64_t>(16, total / (4 * a.threads)));
  auto task = [&](int64_t t) {
    float* panel = mirl::scratch(channels * PANEL);
    for (int64_t i = t * share; i < std::min(total, (t + 1) * share); ++i) {
      const int64_t b = i / (height * groups), y = i / groups % height, group = i % groups;
      const int64_t first = group * vectors / groups, n = (group + 1) * vectors / groups - first;
      Place at[WIDE];
      for (int64_t v = 0; v < n; ++v) at[v] = {0, (first + v) * L, std::min(L, width - (first + v) * L)};
      const float* from = a.x.at(b, 0, y, first * L);
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t v = 0; v < n; ++v)
          store(panel + c * PANEL + v * L, load(from + c * a.x.channel + v * L, at[v]));
      const bool more = group + 1 < groups;
      Fetch next(a.x, b, channels, more ? y : std::min(y + 1, height - 1), 0, at, n, weight.rows);
      if (more) next.skip(n * L);
      else next.skip(-first * L);
      float* to = a.y.at(b, 0, y, first * L);
      product(weight, panel, n, [&](int64_t r, int64_t begin, auto wide, const Vec* sums) {
        if (begin == 0) next.template share<0>();
        for (int64_t v = begin; v < begin + wide; ++v)
          store(to + r * a.y.channel + v * L, activated(sums[v - begin], a.activation), at[v]);
      });
    }
  };
  mirl::parallel((total + share - 1) / share, a.threads, task);
}

}  // namespace MIRL_ISA
