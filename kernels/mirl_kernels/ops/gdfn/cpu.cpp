#include "gdfn.h"

namespace MIRL_ISA {

void gdfn(MirlGdfn& a) {
  const MirlRows project_in = a.project_in->view(), project_out = a.project_out->view();
  const Strips s(flattened(a.size), project_in.rows, a.threads);
  const Taps taps(a.dwconv->view(), s);
  const int64_t panel = a.size.channels * PANEL, gated = project_out.columns * PANEL;
  run_strips(
      s, panel, gated, a.threads, FillNormalised{s, a.x, project_in, a.centred != 0, 1e-5f, a.gain, a.offset},
      [&](const Step& step) {
        gate(s, taps, project_out, a.y, step,
             [&](const Place* at, int64_t n) { return Residual(a.x, a.y, step.b, step.y, step.x0, at, n); });
      });
}

}  // namespace MIRL_ISA
