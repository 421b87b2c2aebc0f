// The gradients of GDFN. Pass one goes through the forward computation again, strip by strip, to the gradients of the
// gate's halves, and stores these; pass two takes them back through the taps, the 1x1 layer and the norm.
#include "../_cpu/gradients.h"

namespace MIRL_ISA {
namespace {

// Where the gradients of each matrix are, among those of a task.
struct Parts {
  int64_t out, taps, in, offset, count;

  Parts(const MirlRows& project_in, const MirlRows& dwconv, const MirlRows& project_out)
      : out(0), taps(out + gradient_floats(project_out)), in(taps + dwconv.start[dwconv.rows]), offset(in + gradient_floats(project_in)),
        count(offset + project_in.rows) {}
};

}  // namespace

void gdfn_backward(MirlGdfnBackward& a) {
  const MirlRows project_in = a.project_in->view(), dwconv = a.dwconv->view(), project_out = a.project_out->view();
  const MirlRows in_transposed = a.project_in_transposed->view(), out_transposed = a.project_out_transposed->view();
  const MirlRows flipped = a.dwconv_flipped->view();
  const int64_t channels = a.size.channels, hidden = project_in.rows, pairs = hidden / 2;
  const Parts parts(project_in, dwconv, project_out);
  const Strips s(a.size, hidden, GRADIENT_TASKS);
  std::vector<float>& partial = zeroed(s.tasks(), parts.count);
  const int64_t pitch = padded(a.size.width);
  const MirlImage back{a.scratch, a.size.height * hidden * pitch, pitch, hidden * pitch};  // gradients of both halves

  const Taps taps(dwconv, s);
  run_strips(s, channels * PANEL, (channels + 2 * pairs) * PANEL, a.threads, fill_normalised(s, a.x, project_in, true), [&](const Step& step) {
    float *dy = step.extra, *gate_gradient = dy + channels * PANEL, *gated = gate_gradient + pairs * PANEL;
    float* gradient = partial.data() + step.task * parts.count;
    const std::vector<Place> all = places(step.count, step.x1 - step.x0);
    grouped(all.size(), [&](int64_t first, int64_t count) {
      const Place* at = all.data() + first;
      with_vectors(count, [&](auto n) {
        gather<n>(a.dy, step.b, channels, step.y, step.x0, at, dy);
        product_panel(out_transposed, dy, n, gate_gradient);
        for (int64_t j = 0; j < pairs; ++j) {
          Vec d[2][n];
          runs<TAPPED>(at, n, [&](int64_t v, auto few) {
            Vec left[few], right[few];
            taps.pair<few>(j, pairs, step, at[v], left, right);
            for (int i = 0; i < few; ++i) {
              Vec value, slope;
              gelu_derivative(left[i], &value, &slope);
              const Vec g = load(gate_gradient + j * PANEL + (v + i) * L);  // zero where there is no pixel
              store(gated + j * PANEL + (v + i) * L, at[v + i].valid == L ? value * right[i] : only(value * right[i], at[v + i].valid));
              d[0][v + i] = g * right[i] * slope;
              d[1][v + i] = g * value;
            }
          });
          for (int half = 0; half < 2; ++half) {
            const int64_t c = half * pairs + j;
            tap_gradient<n>(s, taps, c, step, at, d[half], back, gradient + parts.taps);
          }
        }
        correlate<n>(project_out, dy, gated, gradient + parts.out);
      });
    });
  });

  through_the_norm(s, a.x, a.dy, a.dx, back, flipped, project_in, in_transposed, a.threads,
                   [&](int64_t task) { return partial.data() + task * parts.count + parts.in; });
  add_up(partial, parts.count, parts.count, a.threads, a.gradient);
}

}  // namespace MIRL_ISA
