// The gradient of a convolution's weights. (That of its input is a convolution, by the same kernel.)
#include "conv.h"
#include "gradients.h"

namespace MIRL_ISA {

void conv_backward(MirlConvBackward& a) {
  Columns columns(*a.weight);
  const Phases x{a.x, a.size, 1, 1};
  const Strips s = columns.strips(a.size, x, TRAINING_TASKS);
  const int64_t rows = a.weight->rows;
  int64_t total = 0, most = 0;
  for (const MirlRows& chunk : columns.chunks)
    total += gradient_floats(chunk), most = std::max(most, correlate_floats(chunk));
  const Partial partial(s.tasks(), total);
  auto fill = [&](const Filling& f) { columns.fill(s, x, f); };
  run_strips(s, 0, (columns.widest + rows) * PANEL + most, a.threads, fill, [&](const Step& step) {
    float *dy = step.extra, *panel = dy + rows * PANEL, *const d_weight = partial.of(step);
    grouped(step.count, step.x1 - step.x0, [&](const Place* at, int64_t count) {
      with_vectors(count, [&](auto n) {
        gather<n>(a.dy, step.b, rows, step.y, step.x0, at, dy);
        float* gradient = d_weight;
        int64_t column = 0;
        for (const MirlRows& chunk : columns.chunks) {
          columns.gather(s, step, at, n, column, chunk.columns, panel);
          correlate(chunk, dy, panel, n, gradient, panel + columns.widest * PANEL);
          column += chunk.columns, gradient += gradient_floats(chunk);
        }
      });
    });
  });
  add_up(partial.of(0), s.tasks(), total, total, a.threads, a.gradient);
}

}  // namespace MIRL_ISA
