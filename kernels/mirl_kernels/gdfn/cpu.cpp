// GDFN in strips: the hidden channels never leave the second-level cache, the gate never the first.
#include "strips.h"

namespace MIRL_ISA {
namespace {

constexpr int FEW = L == 16 ? 4 : 2;  // vectors whose taps and GELU fit the registers

}  // namespace

void gdfn(MirlGdfn& a) {
  const MirlRows project_in = a.project_in->view(), project_out = a.project_out->view();
  const int64_t pairs = project_in.rows / 2, channels = a.size.channels;
  const Strips s(a.size, 2 * pairs, a.threads);
  const Taps taps(a.dwconv->view(), s);
  run_strips(s, channels * PANEL, pairs * PANEL, a.threads, fill_normalised(s, a.x, project_in, a.centred), [&](const Step& step) {
    float* gate = step.extra;
    const std::vector<Place> all = places(step.count, step.x1 - step.x0);
    grouped(all.size(), [&](int64_t first, int64_t n) {
      const Place* at = all.data() + first;
      Fetch to_write(a.y, step.b, channels, step.y, step.x0, at, n, pairs);
      for (int64_t j = 0; j < pairs; ++j) {
        to_write.share<1>();
        const float* hidden = step.hidden + j * s.hidden_stride;
        auto gated = [&](int64_t v, auto few) {
          const int64_t slot = (step.slot + at[v].row) % s.slots;
          const float* in = hidden + at[v].column;
          Vec left[few], right[few];
          taps.panel<few>(j, slot, in, left);
          taps.panel<few>(pairs + j, slot, in + pairs * s.hidden_stride, right);
          for (int i = 0; i < few; ++i) store(gate + j * PANEL + (v + i) * L, gelu(left[i]) * right[i]);
        };
        for (int64_t v = 0; v < n;) {
          if (v + FEW <= n && at[v].row == at[v + FEW - 1].row) gated(v, Vectors<FEW>{}), v += FEW;
          else if (v + 2 <= n && at[v].row == at[v + 1].row) gated(v, Vectors<2>{}), v += 2;
          else gated(v, Vectors<1>{}), v += 1;
        }
      }
      const Residual add(a.x, a.y, step.b, step.y, step.x0, at, n);
      product(project_out, gate, n, add);
    });
  });
}

}  // namespace MIRL_ISA
