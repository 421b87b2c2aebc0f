// The gradients of GDFN. Pass one goes through the forward computation again, strip by strip, to the
// gradients of the gate's halves, and stores these; pass two takes them back through the taps, the 1x1 layer
// and the norm.
#include "gradients.h"

namespace MIRL_ISA {

void gdfn_backward(MirlGdfnBackward& a) {
  const MirlGdfn& g = a.gdfn;
  const MirlRows project_in = g.project_in->view(), dwconv = g.dwconv->view(),
                 project_out = g.project_out->view();
  const MirlRows out_transposed = a.project_out_transposed->view();
  const MirlSize size = flattened(g.size);
  const int64_t channels = size.channels, hidden = project_in.rows, pairs = hidden / 2;
  const Strips s(size, hidden, TRAINING_TASKS);
  Beginning beginning{s,          g.x,
                      a.dy,       a.dx,
                      project_in, a.project_in_transposed->view(),
                      dwconv,     a.dwconv_flipped->view(),
                      g.gain,     g.offset,
                      a.threads};
  const MatrixGradient outer(project_out, s, 2);

  const Taps taps(dwconv, s);
  const FillNormalised fill{s, g.x, project_in, true, 1e-5f, g.gain, g.offset};
  beginning.run([&](const Items& items) {
    run_strips(
        s, items, channels * PANEL,
        beginning.reserved + (channels + 2 * pairs) * PANEL + correlate_floats(project_out), a.threads, fill,
        [&](const Step& step) {
          float *dy = step.extra + beginning.reserved, *gate_gradient = dy + channels * PANEL,
                *gated = gate_gradient + pairs * PANEL;
          const Rows back = beginning.back(step);
          beginning.prepare(step);
          outer.begin(step);
          grouped(step.count, step.x1 - step.x0, [&](const Place* at, int64_t count) {
            const Tapped from(s, step, at, count);
            with_vectors(count, [&](auto n) {
              gather<n>(a.dy, step.b, channels, step.y, step.x0, at, dy);
              product_panel(out_transposed, dy, n, gate_gradient);
              TapSums left_taps = beginning.tap_sums(step), right_taps = beginning.tap_sums(step);
              const TapGradient<n> gradient(s, taps, from, step, at, back);
              for (int64_t j = 0; j < pairs; ++j) {
                Vec d[2][n];
                runs<std::min<int>(TAPPED, n)>(at, n, [&](int64_t v, auto few) {
                  Vec left[few], right[few];
                  taps.pair<few>(j, pairs, from, v, left, right);
                  for (int i = 0; i < few; ++i) {
                    Vec value, slope;
                    gelu_derivative(left[i], &value, &slope);
                    const Vec g =
                        load(gate_gradient + j * PANEL + (v + i) * L);  // zero where there is no pixel
                    store(gated + j * PANEL + (v + i) * L,
                          at[v + i].valid == L ? value * right[i] : only(value * right[i], at[v + i].valid));
                    d[0][v + i] = g * right[i] * slope;
                    d[1][v + i] = g * value;
                  }
                });
                gradient(j, d[0], left_taps);
                gradient(pairs + j, d[1], right_taps);
              }
              outer.add(step.task, dy, gated, n, gated + pairs * PANEL);
            });
          });
          beginning.follow(step);
        });
  });
  outer.finish(a.threads, beginning.finish(a.gradient, a.d_gain, a.d_offset));
}

}  // namespace MIRL_ISA
