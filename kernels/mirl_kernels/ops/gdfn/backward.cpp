// The gradients of GDFN. Pass one goes through the forward computation again, strip by strip, to the
// gradients of the gate's halves, and stores these; pass two takes them back through the taps, the 1x1 layer
// and the norm.
#include "gradients.h"

namespace MIRL_ISA {
namespace {

class Backward {
  MirlGdfnBackward& a;
  const MirlRows project_in = a.gdfn.project_in->view(), dwconv = a.gdfn.dwconv->view(),
                 project_out = a.gdfn.project_out->view(), out_transposed = a.project_out_transposed->view();
  const MirlSize size = flattened(a.gdfn.size);
  const int64_t channels = size.channels, pairs = project_in.rows / 2;
  const Strips s{size, project_in.rows, TRAINING_TASKS};
  const Taps taps{dwconv, s};
  NormalisedLayerGradient layer{s, first_layer()};
  const MatrixGradient outer{project_out, s, 2};

  NormalisedLayer first_layer() const {
    NormalisedLayer first{};
    first.x = a.gdfn.x, first.dy = a.dy, first.dx = a.dx;
    first.pointwise = project_in, first.pointwise_transposed = a.project_in_transposed->view();
    first.taps = dwconv, first.taps_flipped = a.dwconv_flipped->view();
    first.gain = a.gdfn.gain, first.offset = a.gdfn.offset;
    first.threads = a.threads;
    return first;
  }

 public:
  explicit Backward(MirlGdfnBackward& a) : a(a) {}

  void run() {
    const MirlGdfn& g = a.gdfn;
    const FillNormalised fill{s, g.x, project_in, true, 1e-5f, g.gain, g.offset};
    const int64_t extra = layer.reserved + (channels + 2 * pairs) * PANEL + correlate_floats(project_out);
    layer.run([&](const Items& items) {
      run_strips(s, items, channels * PANEL, extra, a.threads, fill,
                 [&](const Step& step) { differentiate(step); });
    });
    outer.finish(a.threads, layer.finish(a.gradient, a.d_gain, a.d_offset));
  }

 private:
  void differentiate(const Step& step) const {
    float *dy = step.extra + layer.reserved, *gate_gradient = dy + channels * PANEL,
          *gated = gate_gradient + pairs * PANEL;
    const Rows back = layer.back(step);
    layer.prepare(step);
    outer.begin(step);
    grouped(step.count, step.x1 - step.x0, [&](const Place* at, int64_t count) {
      const Tapped from(s, step, at, count);
      with_vectors(count, [&](auto n) {
        gather<n>(a.dy, step.b, channels, step.y, step.x0, at, dy);
        product_panel(out_transposed, dy, n, gate_gradient);
        TapSums left_taps = layer.tap_sums(step), right_taps = layer.tap_sums(step);
        const TapGradient<n> gradient(s, taps, from, step, at, back);
        for (int64_t j = 0; j < pairs; ++j) {
          Vec d[2][n];
          differentiate_gate<n>(j, from, at, gate_gradient + j * PANEL, gated + j * PANEL, d[0], d[1]);
          gradient(j, d[0], left_taps);
          gradient(pairs + j, d[1], right_taps);
        }
        outer.add(step.task, dy, gated, n, gated + pairs * PANEL);
      });
    });
    layer.propagate(step);
  }

  // Pair j of the gate again, and the gradients of its halves, by those of what it gave, which are zero where
  // there is no pixel.
  template <int N>
  __attribute__((always_inline)) void differentiate_gate(int64_t j, const Tapped& from, const Place* at,
                                                         const float* gate_gradient, float* gated,
                                                         Vec* d_left, Vec* d_right) const {
    runs<std::min<int>(TAPPED, N)>(at, N, [&](int64_t v, auto width) {
      Vec left[width], right[width];
      taps.pair<width>(j, pairs, from, v, left, right);
      for (int i = 0; i < width; ++i) {
        Vec value, slope;
        gelu_derivative(left[i], &value, &slope);
        const Vec g = load(gate_gradient + (v + i) * L);
        store(gated + (v + i) * L,
              at[v + i].valid == L ? value * right[i] : only(value * right[i], at[v + i].valid));
        d_left[v + i] = g * right[i] * slope;
        d_right[v + i] = g * value;
      }
    });
  }
};

}  // namespace

void gdfn_backward(MirlGdfnBackward& a) { Backward(a).run(); }

}  // namespace MIRL_ISA
