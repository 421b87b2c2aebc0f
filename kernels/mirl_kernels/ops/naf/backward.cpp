// The gradients of NAFNet's block, in two passes as the block itself. Pass one goes through the second half
// again and back, pixel by pixel, and leaves the gradient of what lies between the halves in dx. Those of the
// channel attention follow from the gradient of conv3, item by item. Pass two takes the first half back.
#include "gradients.h"
#include "naf.h"

namespace MIRL_ISA {
namespace {

// f(row, column, value, i) for the values of a matrix; i is the place of each in its gradient.
template <class F>
void each_value(const MirlRows& m, F&& f) {
  for (int64_t r = 0; r < m.rows; ++r)
    if (m.dense)
      for (int64_t c = 0; c < m.columns; ++c)
        f(r, c, m.dense[(r / 4 * m.columns + c) * 4 + r % 4], r * transposed_columns(m.columns) + c);
    else
      for (int64_t k = m.start[r]; k < m.start[r + 1]; ++k) f(r, m.entry[k].column(), m.entry[k].value, k);
}

class Backward {
  MirlNafBackward& a;
  const MirlNaf& n = a.naf;
  const MirlRows conv1 = n.conv1->view(), conv2 = n.conv2->view(), sca = n.sca->view(),
                 conv3 = n.conv3->view(), conv4 = n.conv4->view(), conv5 = n.conv5->view();
  const MirlRows conv3_transposed = a.conv3_transposed->view(), conv4_transposed = a.conv4_transposed->view(),
                 conv5_transposed = a.conv5_transposed->view();
  const MirlSize size = flattened(n.size);
  const int64_t channels = size.channels, pairs = conv1.rows / 2, stored = conv3.columns,
                inner = conv5.columns, batch = size.batch, threads = a.threads;
  const bool joined = are_joined(size, {&n.x, &n.y});
  const MirlImage gated = gated_image(n, size, joined);
  const std::vector<float> scale = channel_attention(n, n.sums);
  std::vector<float> mean_gradient = std::vector<float>(batch * pairs);  // what it adds to that of each pixel

  // Pass one.
  const int64_t parts = (training_tasks(batch) + batch - 1) / batch;  // of an item
  const Pixels pixels{size, joined && a.dy.row == size.width, parts};
  // A task's gradients.
  const int64_t of_conv4 = gradient_floats(conv5), of_conv3 = of_conv4 + gradient_floats(conv4),
                biases = of_conv3 + gradient_floats(conv3),  // of conv5, conv4 and conv3
      gain = biases + 2 * channels + 2 * inner, stride = round_up(gain + 2 * channels, 16);
  const Partial partial{pixels.tasks(), stride, 2};
  // Panels that gradients are made of, twice where the cache has room.
  const int64_t of_hidden = channels, of_activated = of_hidden + 2 * inner, of_normal = of_activated + inner,
                of_middle = of_normal + channels, of_gated = of_middle + channels,
                apart = (of_gated + stored) * PANEL;
  const int64_t most = 4 * apart < mirl::second_level_floats() ? 2 : 1;

  // Pass two.
  const Strips s{size, conv1.rows, training_tasks(batch)};
  const Taps taps{conv2, s};
  NormalisedLayerGradient layer{s, first_layer()};

  NormalisedLayer first_layer() const {
    NormalisedLayer first{};
    first.x = n.x, first.dy = first.dx = n.y;
    first.pointwise = conv1, first.pointwise_transposed = a.conv1_transposed->view();
    first.taps = conv2, first.taps_flipped = a.conv2_flipped->view();
    first.gain = n.gain1, first.offset = n.offset1, first.eps = float(n.eps1);
    first.threads = threads;
    return first;
  }

 public:
  explicit Backward(MirlNafBackward& a) : a(a) {}

  void run() {
    auto task = [&](int64_t t) { second_half(t); };
    mirl::parallel(pixels.tasks(), threads, task);
    float* to = a.gradient + gradient_floats(conv1) + gradient_floats(conv2);
    attention(to, to + gradient_floats(sca));
    to += gradient_floats(sca) + gradient_floats(conv3);
    sum(of_conv4, gradient_floats(conv4), to);
    sum(0, gradient_floats(conv5), to + gradient_floats(conv4));
    scaled(conv5, n.gamma, a.vectors.gamma, a.vectors.conv5, to + gradient_floats(conv4));
    first_half();
  }

 private:
  void sum(int64_t first, int64_t count, float* to) const {
    add_up(partial.of(0) + first, pixels.tasks(), stride, count, threads, to);
  }

  // A task's pixels: the second half once more, its gradients, and that of what it was given.
  void second_half(int64_t task) const {
    const int64_t b = pixels.item(task);
    const int64_t widest = std::max(channels, stored);
    float *panels = mirl::scratch(most * apart + (channels + widest) * PANEL + most_correlated()),
          *normal = panels + most * apart, *scaled = normal + channels * PANEL,
          *transposed = scaled + widest * PANEL;
    float* const gradient = partial.cleared(task);
    const std::vector<Place> all = pixels.places(task);
    int64_t held = 0, held_vectors = 0;  // panels that wait for their part in the gradients
    auto flush = [&] {
      if (held) correlate_panels(panels, held_vectors, held, gradient, transposed);
      held = 0;
    };
    grouped(all.size(), [&](int64_t first, int64_t count) {
      if (count != held_vectors) flush();
      held_vectors = count;
      with_vectors(count, [&](auto vectors) {
        through_second_half<vectors>(b, all.data() + first, panels + held * apart, normal, scaled, gradient);
      });
      if (++held == most) flush();
    });
    flush();
  }

  int64_t most_correlated() const {
    return std::max({correlate_floats(conv3), correlate_floats(conv4), correlate_floats(conv5)});
  }

  void correlate_panels(const float* panels, int64_t vectors, int64_t count, float* gradient,
                        float* transposed) const {
    auto side = [&](int64_t row) { return panels + row * PANEL; };
    correlate(conv5, panels, side(of_activated), vectors, gradient, transposed, count, apart);
    correlate(conv4, side(of_hidden), side(of_normal), vectors, gradient + of_conv4, transposed, count,
              apart);
    correlate(conv3, side(of_middle), side(of_gated), vectors, gradient + of_conv3, transposed, count, apart);
    for (int64_t i = 0; i < count; ++i) {
      float* to = gradient + biases;
      add_row_sums(side(0) + i * apart, channels, vectors, to);
      add_row_sums(side(of_hidden) + i * apart, conv4.bias ? 2 * inner : 0, vectors, to + channels);
      add_row_sums(side(of_middle) + i * apart, conv3.bias ? channels : 0, vectors,
                   to + channels + 2 * inner);
    }
  }

  template <int V>
  void through_second_half(int64_t b, const Place* at, float* panels, float* normal, float* scaled,
                           float* gradient) const {
    float *dy = panels, *hidden = panels + of_hidden * PANEL, *activated = panels + of_activated * PANEL,
          *layer_input = panels + of_normal * PANEL, *middle = panels + of_middle * PANEL,
          *read = panels + of_gated * PANEL;
    Vec deviation[V];
    gather<V>(gated, b, stored, 0, 0, at, read);
    for (int64_t j = 0; j < stored; ++j)
      for (int v = 0; v < V; ++v)
        store(scaled + j * PANEL + v * L, load(read + j * PANEL + v * L) * scale[b * stored + j]);
    gather<V>(n.x, b, channels, 0, 0, at, normal);
    product(conv3, scaled, V, [&](int64_t c, int64_t begin, auto width, const Vec* sums) {
      for (int v = 0; v < width; ++v) {
        float* to = normal + c * PANEL + (begin + v) * L;
        store(to, sums[v] * n.beta[c] + load(to));
      }
    });
    normalise<V>(channels, true, normal, float(n.eps2), deviation);
    scale_and_shift<V>(channels, normal, n.gain2, n.offset2, layer_input);
    product_panel(conv4, layer_input, V, hidden);
    gather<V>(a.dy, b, channels, 0, 0, at, dy);
    for (int64_t c = 0; c < channels; ++c)
      for (int v = 0; v < V; ++v)
        store(scaled + c * PANEL + v * L, load(dy + c * PANEL + v * L) * n.gamma[c]);
    product(conv5_transposed, scaled, V, [&](int64_t j, int64_t begin, auto width, const Vec* sums) {
      for (int v = 0; v < width; ++v) {
        float *left = hidden + 2 * j * PANEL + (begin + v) * L, *right = left + PANEL;
        const Vec x = load(left), y = load(right);
        store(activated + j * PANEL + (begin + v) * L, x * y);
        store(left, sums[v] * y), store(right, sums[v] * x);
      }
    });
    product_panel(conv4_transposed, hidden, V, middle);
    layer_norm_gradient<V>(channels, normal, deviation, n.gain2, middle, gradient + gain,
                           gradient + gain + channels);
    const MirlImage& dx = n.y;
    for (int64_t c = 0; c < channels; ++c)
      for (int v = 0; v < V; ++v) {
        float* from = middle + c * PANEL + v * L;
        const Vec value = load(from) + load(dy + c * PANEL + v * L);
        store(from, value);
        store(dx.at(b, c, at[v].row, at[v].column), value, at[v]);
      }
  }

  // What follows from the gradients that pass one added up: those of the channel attention and of the vectors
  // of the second half.
  void attention(float* d_sca, float* d_conv3) {
    const int64_t count = gradient_floats(conv3), tasks = pixels.tasks() / batch;
    std::vector<float> by_item(count);
    std::vector<double> d_conv3_sum(count, 0.0), d_bias(stored, 0.0), d_values(gradient_floats(sca), 0.0);
    for (int64_t b = 0; b < batch; ++b) {
      add_up(partial.of(b * tasks) + of_conv3, tasks, stride, count, threads, by_item.data());
      std::vector<double> d_scale(stored, 0.0), d_mean(pairs, 0.0);
      each_value(conv3, [&](int64_t c, int64_t j, float value, int64_t i) {
        d_scale[j] += double(by_item[i]) * value * n.beta[c];
        d_conv3_sum[i] += double(by_item[i]) * scale[b * stored + j];
      });
      const double pixel = 1.0 / double(size.height * size.width);
      each_value(sca, [&](int64_t r, int64_t j, float value, int64_t i) {
        d_values[i] += d_scale[r] * n.sums[b * pairs + j] * pixel;
        d_mean[j] += d_scale[r] * value;
      });
      for (int64_t j = 0; j < stored; ++j) d_bias[j] += d_scale[j];
      for (int64_t j = 0; j < pairs; ++j) mean_gradient[b * pairs + j] = float(d_mean[j] * pixel);
    }
    std::copy(d_values.begin(), d_values.end(), d_sca);
    std::copy(d_conv3_sum.begin(), d_conv3_sum.end(), d_conv3);
    const MirlNafVectors& to = a.vectors;
    if (sca.bias) std::copy(d_bias.begin(), d_bias.end(), to.sca);
    sum(biases, channels, to.conv5);
    sum(biases + channels, 2 * inner, to.conv4);
    sum(biases + channels + 2 * inner, channels, to.conv3);
    sum(gain, channels, to.gain2);
    sum(gain + channels, channels, to.offset2);
    scaled(conv3, n.beta, to.beta, to.conv3, d_conv3);
  }

  // From the gradients of a matrix and its bias whose rows were scaled afterwards, as if they had not been,
  // to theirs and those of the scale.
  static void scaled(const MirlRows& m, const float* scale, float* d_scale, float* d_bias, float* gradient) {
    std::vector<double> sums(m.rows, 0.0);
    each_value(m, [&](int64_t r, int64_t, float value, int64_t i) {
      sums[r] += double(gradient[i]) * value;
      gradient[i] *= scale[r];
    });
    for (int64_t r = 0; r < m.rows; ++r) {
      if (m.bias) sums[r] += double(d_bias[r]) * m.bias[r], d_bias[r] *= scale[r];
      d_scale[r] = float(sums[r]);
    }
  }

  void first_half() {
    const FillNormalised fill{s, n.x, conv1, true, float(n.eps1), n.gain1, n.offset1};
    const int64_t extra = layer.reserved + (channels + stored) * PANEL;
    layer.run([&](const Items& items) {
      run_strips(s, items, channels * PANEL, extra, threads, fill,
                 [&](const Step& step) { differentiate(step); });
    });
    layer.finish(a.gradient, a.vectors.gain1, a.vectors.offset1);
    layer.finish_biases(a.vectors.conv1, a.vectors.conv2);
  }

  void differentiate(const Step& step) const {
    float *dy = step.extra + layer.reserved, *d_read = dy + channels * PANEL;
    const Rows back = layer.back(step);
    layer.prepare(step);
    grouped(step.count, step.x1 - step.x0, [&](const Place* at, int64_t count) {
      const Tapped from(s, step, at, count);
      with_vectors(count, [&](auto vectors) {
        gather<vectors>(n.y, step.b, channels, step.y, step.x0, at, dy);
        for (int64_t c = 0; c < channels; ++c)
          for (int v = 0; v < vectors; ++v)
            store(dy + c * PANEL + v * L, load(dy + c * PANEL + v * L) * n.beta[c]);
        product_panel(conv3_transposed, dy, vectors, d_read);
        TapSums left_taps = layer.tap_sums(step), right_taps = layer.tap_sums(step);
        float* const d_bias = layer.tap_bias_sums(step);
        Sums left_bias(d_bias), right_bias(d_bias + pairs);
        const TapGradient<vectors> gradient(s, taps, from, step, at, back);
        for (int64_t j = 0; j < pairs; ++j) {
          Vec d[2][vectors];
          differentiate_gate<vectors>(step.b, j, from, at, d_read + j * PANEL, d[0], d[1]);
          gradient(j, d[0], left_taps);
          gradient(pairs + j, d[1], right_taps);
          if (taps.rows.bias) left_bias.add(total<vectors>(d[0])), right_bias.add(total<vectors>(d[1]));
        }
      });
    });
    layer.propagate(step);
  }

  template <int V>
  static Vec total(const Vec* v) {
    Vec sum = v[0];
    for (int i = 1; i < V; ++i) sum += v[i];
    return sum;
  }

  // The gradients of the halves of pair j of the first gate, by those of what conv3 reads; zero where there
  // is no pixel.
  template <int V>
  __attribute__((always_inline)) void differentiate_gate(int64_t b, int64_t j, const Tapped& from,
                                                         const Place* at, const float* d_read, Vec* d_left,
                                                         Vec* d_right) const {
    const float by_mean = mean_gradient[b * pairs + j], by_pixel = j < stored ? scale[b * stored + j] : 0.0f;
    runs<std::min<int>(TAPPED, V)>(at, V, [&](int64_t v, auto width) {
      Vec left[width], right[width];
      taps.pair<width>(j, pairs, from, v, left, right);
      for (int i = 0; i < width; ++i) {
        Vec gradient = all(by_mean);
        if (j < stored) gradient += load(d_read + (v + i) * L) * by_pixel;
        if (at[v + i].valid < L) gradient = only(gradient, at[v + i].valid);
        d_left[v + i] = gradient * right[i], d_right[v + i] = gradient * left[i];
      }
    });
  }
};

}  // namespace

void naf_backward(MirlNafBackward& a) { Backward(a).run(); }

}  // namespace MIRL_ISA
