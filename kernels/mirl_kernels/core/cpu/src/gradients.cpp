// What gradients.h declares: the gradients of matrices, and of the layers with which MDTA and GDFN begin.
#include "gradients.h"

namespace MIRL_ISA {

void correlate(const MirlRows& m, const float* left, const float* right, int64_t n, float* gradient,
               float* scratch, int64_t panels, int64_t apart) {
  if (m.dense) {
    for (int64_t i = 0; i < panels; ++i) {
      transpose_panel(right + i * apart, m.columns, n, scratch);
      add_gram(left + i * apart, m.rows, scratch, transposed_columns(m.columns), n * L, gradient);
    }
    return;
  }
  auto entries = [&](auto vectors, auto twice) {
    constexpr int V = vectors, P = twice;
    Sums to(gradient);
    for (int64_t r = 0; r < m.rows; ++r) {
      Vec row[P][V];
      for (int i = 0; i < P; ++i)
        for (int v = 0; v < V; ++v) row[i][v] = load(left + i * apart + r * PANEL + v * L);
      for (int64_t k = m.start[r], end = m.start[r + 1]; k < end; ++k) {
        const float* p =
            reinterpret_cast<const float*>(reinterpret_cast<const char*>(right) + m.entry[k].offset);
        Vec sum{};
        for (int i = 0; i < P; ++i)
          for (int v = 0; v < V; ++v) sum += row[i][v] * load(p + i * apart + v * L);
        to.add(sum);
      }
    }
  };
  with_vectors(n, [&](auto vectors) {
    panels == 2 ? entries(vectors, Vectors<2>{}) : entries(vectors, Vectors<1>{});
  });
}

void add_row_sums(const float* panel, int64_t rows, int64_t n, float* to) {
  with_vectors(n, [&](auto vectors) {
    Sums sums(to);
    for (int64_t r = 0; r < rows; ++r) {
      Vec sum{};
      for (int v = 0; v < vectors; ++v) sum += load(panel + r * PANEL + v * L);
      sums.add(sum);
    }
  });
}

void product_panel(const MirlRows& m, const float* in, int64_t n, float* out) {
  product(m, in, n, [&](int64_t r, int64_t begin, auto width, const Vec* sums) {
    for (int v = 0; v < width; ++v) store(out + r * PANEL + (begin + v) * L, sums[v]);
  });
}

void taps_panel(const Taps& taps, int64_t rows, const Tapped& from, const Place* at, int64_t n, float* out) {
  for (int64_t r = 0; r < rows; ++r)
    runs<4>(at, n, [&](int64_t v, auto width) {
      Vec sums[width];
      taps.panel<width>(r, from, v, sums);
      for (int i = 0; i < width; ++i)
        store(out + r * PANEL + (v + i) * L, at[v + i].valid == L ? sums[i] : only(sums[i], at[v + i].valid));
    });
}

void add_up(const float* partial, int64_t tasks, int64_t stride, int64_t count, int64_t threads,
            float* gradient) {
  constexpr int64_t SHARE = 2048;
  auto task = [&](int64_t t) {
    const int64_t first = t * SHARE, n = std::min(SHARE, count - first);
    double total[SHARE] = {};
    for (int64_t at = 0; at < tasks; ++at)
      for (int64_t i = 0; i < n; ++i) total[i] += partial[at * stride + first + i];
    for (int64_t i = 0; i < n; ++i) gradient[first + i] = float(total[i]);
  };
  mirl::parallel((count + SHARE - 1) / SHARE, threads, task);
}

MatrixGradient::Panels* MatrixGradient::of_tasks(int64_t tasks, int which) {
  static thread_local std::vector<Panels> memory[3];
  if (int64_t(memory[which].size()) < tasks) memory[which].resize(tasks);
  for (int64_t t = 0; t < tasks; ++t) memory[which][t].vectors.clear();
  return memory[which].data();
}

MatrixGradient::MatrixGradient(const MirlRows& m, const Strips& s, int which)
    : m(m), tasks(s.tasks()),
      later(m.dense && s.size.batch * ((s.size.height * s.size.width + PANEL - 1) / PANEL) * panel <
                           tasks * gradient_floats(m)),
      panels(of_tasks(later ? tasks : 0, which)), partial(tasks, later ? 0 : gradient_floats(m), which) {}

void MatrixGradient::add(int64_t task, const float* left, const float* right, int64_t n, float* scratch,
                         int64_t count, int64_t apart) const {
  if (!later) return correlate(m, left, right, n, partial.of(task), scratch, count, apart);
  Panels& stored = panels[task];
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = stored.vectors.size() * panel;
    if (int64_t(stored.floats.size()) < at + panel) stored.floats.resize(at + panel);
    std::memcpy(&stored.floats[at], left + i * apart, sizeof(float) * left_floats);
    transpose_panel(right + i * apart, m.columns, n, &stored.floats[at + left_floats]);
    stored.vectors.push_back(n);
  }
}

void MatrixGradient::finish(int64_t threads, float* gradient) const {
  if (!later) return add_up(partial.of(0), tasks, gradient_floats(m), gradient_floats(m), threads, gradient);
  constexpr int64_t SHARE = 48;
  const int64_t wide = transposed_columns(m.columns);
  auto rows = [&](int64_t i) {
    const int64_t first = i * SHARE, count = std::min(SHARE, m.rows - first);
    float* to = gradient + first * wide;
    std::memset(to, 0, sizeof(float) * count * wide);
    for (const Panels* stored = panels; stored < panels + tasks; ++stored)
      for (size_t p = 0; p < stored->vectors.size(); ++p) {
        const float* left = &stored->floats[p * panel];
        add_gram(left + first * PANEL, count, left + left_floats, wide, stored->vectors[p] * L, to);
      }
  };
  mirl::parallel((m.rows + SHARE - 1) / SHARE, threads, rows);
}

static void clear(float* begin, float* end) { std::memset(begin, 0, sizeof(float) * (end - begin)); }
// Zeros around the rows of an item that begins there.
void NormalisedLayerGradient::surround(float* item) const {
  if (flat)
    for (int64_t c = 0; c <= hidden; ++c) clear(item + c * pitch - margin, item + c * pitch);
  else clear(item - row - 1, item), clear(item + s.size.height * row - 1, item + (s.size.height + 1) * row);
}

NormalisedLayerGradient::NormalisedLayerGradient(const Strips& s, const NormalisedLayer& layer)
    : s(s), x(layer.x), dy(layer.dy), dx(layer.dx), pointwise(layer.pointwise),
      transposed(layer.pointwise_transposed), taps(layer.taps), flipped(layer.taps_flipped), gain(layer.gain),
      offset(layer.offset), threads(layer.threads), eps(layer.eps) {
  back_taps.emplace_back(flipped, Rows{{nullptr, 0, pitch, row}, slots}, flat);
}

void NormalisedLayerGradient::run(FunctionRef<Items> first_pass) {
  const int64_t batch = s.size.batch;
  if (together) return first_pass(Items{0, batch});
  static thread_local std::vector<float> memory;
  const int64_t fitting =
      std::min(batch, std::max(threads, (int64_t{1} << 21) / std::max<int64_t>(1, item) / threads * threads));
  if (int64_t(memory.size()) < fitting * item + 2 * ahead) memory.resize(fitting * item + 2 * ahead);
  float* const first = memory.data() + ahead + (flat ? 0 : row);
  for (int64_t i = 0; i < fitting; ++i) surround(first + i * item);
  for (int64_t b = 0; b < batch; b += fitting) {
    const Items items{b, std::min(fitting, batch - b)};
    shared = {{first - b * item, item, pitch, row}, 0};
    first_pass(items);
    const int64_t per_item = s.tasks() / batch;
    auto task = [&](int64_t i) {
      const Part p = s.part(items.first * per_item + i);
      propagate_rows(p.task, p.b, p.x0, p.x1, p.top, p.bottom, shared, mirl::scratch(panel_floats));
    };
    mirl::parallel(items.count * per_item, threads, task);
  }
}

Rows NormalisedLayerGradient::back(const Step& step) const {
  if (!together) return shared;
  return {{step.extra + panel_floats + ahead + margin, 0, pitch, row}, slots};
}

void NormalisedLayerGradient::prepare(const Step& step) const {
  partial.of(step), matrix.begin(step);
  if (!together || !step.first) return;
  const Rows ring = back(step);
  if (flat) surround(ring.image.data);
  else clear(ring.at(0, -1, 0) - 1, ring.at(0, -1, 0) + row);
}

void NormalisedLayerGradient::propagate(const Step& step) const {
  const int64_t number = step.y / s.step;
  if (!together || (number % 2 == 0 && !step.last)) return;
  const Rows ring = back(step);
  const int64_t before = number % 2 ? number - 1 : number,
                height = s.size.height;  // steps whose rows went on already
  if (step.last && !flat) clear(ring.at(0, height, 0) - 1, ring.at(0, height, 0) + row);
  const int64_t top = before ? before * s.step - 1 : 0, bottom = step.last ? height : step.y + step.count - 1;
  propagate_rows(step.task, step.b, step.x0, step.x1, top, bottom, ring, step.extra);
}

void NormalisedLayerGradient::propagate_rows(int64_t task, int64_t b, int64_t x0, int64_t x1, int64_t top,
                                             int64_t bottom, const Rows& back, float* panels) const {
  float *normal = panels + most * apart, *d = normal + channels * PANEL,
        *transposed_panel = d + channels * PANEL;
  float* gradient = partial.of(task);
  int64_t held = 0, held_vectors = 0;  // panels that wait for their part in the gradient
  auto flush = [&] {
    if (held) matrix.add(task, panels, panels + hidden * PANEL, held_vectors, transposed_panel, held, apart);
    held = 0;
  };
  for (int64_t y = top; y < bottom; y += s.step) {
    grouped(std::min(s.step, bottom - y), x1 - x0, [&](const Place* at, int64_t count) {
      if (count != held_vectors) flush();
      float *dh = panels + held * apart, *scaled = dh + hidden * PANEL;
      held_vectors = count;
      with_vectors(count, [&](auto n) {
        taps_panel(back_taps[0], hidden, Tapped(back, b, y, x0, at, n), at, n, dh);
        Vec deviation[n];
        gather<n>(x, b, channels, y, x0, at, normal);
        normalise<n>(channels, true, normal, eps, deviation);
        scale_and_shift<n>(channels, normal, gain, offset, scaled);
        product_panel(transposed, dh, n, d);
        if (pointwise.bias) add_row_sums(dh, hidden, n, gradient + biases);
        layer_norm_gradient<n>(channels, normal, deviation, gain, d, gradient + gains, gradient + offsets);
        const Residual out(dy, dx, b, y, x0, at, n);
        for (int64_t c = 0; c < channels; ++c) {
          Vec sums[n];
          for (int v = 0; v < n; ++v) sums[v] = load(d + c * PANEL + v * L);
          out(c, 0, n, sums);
        }
      });
      if (++held == most) flush();
    });
  }
  flush();
}

float* NormalisedLayerGradient::finish(float* weights, float* d_gain, float* d_offset) const {
  matrix.finish(threads, weights);
  weights += gradient_floats(pointwise);
  add_up(partial.of(0), s.tasks(), stride, gains, threads, weights);
  add_up(partial.of(0) + gains, s.tasks(), stride, channels, threads, d_gain);
  add_up(partial.of(0) + offsets, s.tasks(), stride, channels, threads, d_offset);
  for (int64_t c = 0; c < hidden; ++c)
    for (int64_t i = 0; i < 9 && Taps::complete(taps, c); ++i) {
      double sum = 0;
      for (int64_t t = 0; t < s.tasks(); ++t) sum += partial.of(t)[full + c * L + i];
      weights[taps.start[c] + i] += float(sum);
    }
  return weights + gains;
}

void NormalisedLayerGradient::finish_biases(float* d_pointwise, float* d_taps) const {
  if (pointwise.bias) add_up(partial.of(0) + biases, s.tasks(), stride, hidden, threads, d_pointwise);
  if (taps.bias) add_up(partial.of(0) + tap_biases, s.tasks(), stride, hidden, threads, d_taps);
}

}  // namespace MIRL_ISA
