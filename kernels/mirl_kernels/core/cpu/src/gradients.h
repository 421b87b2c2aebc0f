// What the backward kernels share: products of two panels summed over their pixels (the gradients of a
// matrix), the derivatives of GELU and of the layer norm, and sums that come out the same on any number of
// threads.
#pragma once
#include <utility>

#include "gram.h"
#include "strips.h"

namespace MIRL_ISA {

// e^x for x from -87 to 0: 2^n e^f, |f| <= ln(2) / 2, by a polynomial of ours (weighted least squares,
// weights refined until the relative error levels, at 3e-09). ln(2) is taken off in two parts, so that no
// digits of f are lost.
inline Vec exponential(Vec x) {
  const Vec magic =
      all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number, which its last bits then hold
  const Vec shifted = x * 1.44269504f + magic, whole = shifted - magic;
  const Vec f = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vec p = all(1.381459879e-03f);
  p = p * f + 8.368716575e-03f;
  p = p * f + 4.166838899e-02f;
  p = p * f + 1.666652113e-01f;
  p = p * f + 4.999999404e-01f;
  p = p * f * f + f + 1.0f;
  Int bits, exponent;
  std::memcpy(&bits, &p, sizeof bits);
  std::memcpy(&exponent, &shifted, sizeof exponent);
  bits += exponent << 23;
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

// GELU(x) and its derivative Phi(x) + x phi(x).
inline void gelu_derivative(Vec x, Vec* value, Vec* slope) {
  const Vec c = vmax(vmin(x, all(12.0f)), all(-12.0f));
  const Vec cumulative = normal_cumulative(x);
  *value = x * cumulative;
  *slope = cumulative + c * exponential(c * c * -0.5f) * 0.3989422804f;
}

// Adds the sums of vectors' lanes to floats that lie together: takes the vectors one after the other, and
// adds up L at once.
class Sums {
  Vec block[L];
  int64_t n = 0;
  float* to;

 public:
  explicit Sums(float* to) : to(to) {}
  __attribute__((always_inline)) void add(Vec v) {
    block[n++] = v;
    if (n < L) return;
    store(to, load(to) + sums(block));
    to += L, n = 0;
  }
  // What is added next belongs there.
  void go_to(float* next) {
    if (to + n != next) flush(), to = next;
  }
  ~Sums() { flush(); }

 private:
  void flush() {
    if (!n) return;
    const Place at{0, 0, n};
    for (; n < L; ++n) block[n] = Vec{};
    store(to, load(to, at) + sums(block), at);
    n = 0;
  }
};

// How many floats the gradient of a matrix takes, and what `correlate` needs.
inline int64_t gradient_floats(const MirlRows& m) {
  return m.dense ? m.rows * transposed_columns(m.columns) : m.start[m.rows];
}
inline int64_t correlate_floats(const MirlRows& m) {
  return m.dense ? transposed_stride(m.columns) * PANEL : 0;
}

// Back through a centred norm, in place: from the gradient of its result, with gain and offset, and from what
// its gain was applied to, whose `deviation` are the reciprocals. Adds up the gradients of gain and offset.
template <int V>
inline void layer_norm_gradient(int64_t channels, const float* normal, const Vec* deviation,
                                const float* gain, float* gradient, float* d_gain, float* d_offset) {
  Vec mean[V] = {}, along[V] = {};
  Sums gains(d_gain), offsets(d_offset);
  for (int64_t c = 0; c < channels; ++c) {
    Vec products{}, plain{};
    for (int v = 0; v < V; ++v) {
      float* at = gradient + c * PANEL + v * L;
      const Vec g = load(at), product = g * load(normal + c * PANEL + v * L);
      plain += g, products += product;
      mean[v] += g * gain[c], along[v] += product * gain[c];
      store(at, g * gain[c]);
    }
    gains.add(products), offsets.add(plain);
  }
  for (int v = 0; v < V; ++v) mean[v] = mean[v] / float(channels), along[v] = along[v] / float(channels);
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) {
      float* to = gradient + c * PANEL + v * L;
      store(to, (load(to) - mean[v] - load(normal + c * PANEL + v * L) * along[v]) * deviation[v]);
    }
}

// Adds the sums of a panel's rows over n vectors of pixels to floats that lie together.
void add_row_sums(const float* panel, int64_t rows, int64_t n, float* to);

// The gradient of a matrix by n vectors of pixels: of its entries, in their order, += the sum of left[row] *
// right[column]; where it is kept whole, of all, rows transposed_columns(columns) apart. Lanes that are no
// pixels must be zero in `left`. Two panels at once, `apart` floats from each other, halve the work of adding
// up lanes.
void correlate(const MirlRows& m, const float* left, const float* right, int64_t n, float* gradient,
               float* scratch, int64_t panels = 1, int64_t apart = 0);

// A product's rows as a panel.
void product_panel(const MirlRows& m, const float* in, int64_t n, float* out);

// What the taps of the first `rows` channels give, as a panel, zero where there is no pixel.
void taps_panel(const Taps& taps, int64_t rows, const Tapped& from, const Place* at, int64_t n, float* out);

// Adds up the gradients of taps: of channels that have all nine (`Taps::complete`) in a whole vector for each
// channel, as a masked store takes long and holds up the next channel's load; of others one after the other.
struct TapSums {
  float *taps, *full;
  Sums single{taps};

  __attribute__((always_inline)) void add(int64_t channel, const Vec* sum) const {
    if constexpr (L > 9) {
      Vec block[L] = {};
      for (int i = 0; i < 9; ++i) block[i] = sum[i];
      float* to = full + channel * L;
      store(to, load(to) + sums(block));
    }
  }
};

// Stores the gradients of what the taps of ring channels gave, V vectors of them, zero where there is no
// pixel, with a zero on both sides of the image, and adds up the gradients of these taps.
template <int V>
class TapGradient {
  const Taps& taps;
  const Tapped& from;
  const Place* at;
  float* pixel[V];
  int64_t channel;
  bool first[V], last[V], one_row;  // in its row

 public:
  TapGradient(const Strips& s, const Taps& taps, const Tapped& from, const Step& step, const Place* at,
              const Rows& back)
      : taps(taps), from(from), at(at), channel(back.image.channel), one_row(at[0].row == at[V - 1].row) {
    for (int v = 0; v < V; ++v) {
      const int64_t x = step.x0 + at[v].column;
      pixel[v] = back.at(step.b, step.y + at[v].row, x);
      first[v] = x == 0, last[v] = x + at[v].valid == s.size.width;
    }
  }

  __attribute__((always_inline)) void operator()(int64_t c, const Vec* d, TapSums& to) const {
    const float* in[V];
    for (int v = 0; v < V; ++v) {
      float* p = pixel[v] + c * channel;
      in[v] = from.first[v] + c * from.stride;
      if (last[v]) store(p, d[v]);
      else store(p, d[v], at[v]);
      if (last[v] && at[v].valid == L) p[L] = 0;
      if (first[v]) p[-1] = 0;
    }
    taps.with_flat([&](auto FLAT) {
      if (one_row && Taps::complete(taps.rows, c)) {
        Vec sums[9] = {};
        taps.full_3x3<V, FLAT>(c, from.slot[0], in[0], [&](int tap, int v, Vec x) { sums[tap] += d[v] * x; });
        return to.add(c, sums);
      }
      to.single.go_to(to.taps + taps.rows.start[c]);
      for (int64_t k = taps.rows.start[c], end = taps.rows.start[c + 1]; k < end; ++k) {
        Vec sum{};
        for (int v = 0; v < V; ++v)
          sum += d[v] * taps.pixels<FLAT>(k, in[v] + taps.offset[from.slot[v] * taps.count + k]);
        to.single.add(sum);
      }
    });
  }
};

// The tasks' gradients, each `stride` floats, in memory that this thread keeps. Every task clears its part
// when it begins.
class Partial {
  const int64_t stride;
  float* memory;

 public:
  Partial(int64_t tasks, int64_t stride, int which = 0) : stride(stride) {
    static thread_local std::vector<float> buffers[3];
    if (int64_t(buffers[which].size()) < tasks * stride) buffers[which].resize(tasks * stride);
    memory = buffers[which].data();
  }
  float* of(int64_t task) const { return memory + task * stride; }
  float* cleared(int64_t task) const {
    std::memset(of(task), 0, sizeof(float) * stride);
    return of(task);
  }
  float* of(const Step& step) const { return step.first ? cleared(step.task) : of(step.task); }
};

// The first `count` of every task's gradients, added up in order.
void add_up(const float* partial, int64_t tasks, int64_t stride, int64_t count, int64_t threads,
            float* gradient);

// The gradient of a matrix by the pixels of all tasks, which each add up a gradient. Where all panels
// together take less memory than these gradients, the panels are stored instead and multiplied at the end:
// every row of the gradient by one thread.
class MatrixGradient {
  struct Panels {
    std::vector<float> floats;  // of the left side, then of the right one, transposed
    std::vector<int64_t> vectors;
  };
  static Panels* of_tasks(int64_t tasks, int which);

  const MirlRows m;
  const int64_t tasks, left_floats = m.rows * PANEL,
                       panel = left_floats + PANEL * transposed_stride(m.columns);
  const bool later;
  Panels* const panels;
  const Partial partial;

 public:
  // `which` tells two that are in use at once apart: 1 or 2.
  MatrixGradient(const MirlRows& m, const Strips& s, int which);

  void begin(const Step& step) const { partial.of(step); }
  // As `correlate`.
  void add(int64_t task, const float* left, const float* right, int64_t n, float* scratch, int64_t count = 1,
           int64_t apart = 0) const;
  void finish(int64_t threads, float* gradient) const;
};

// The layer norm, 1x1 layer and taps with which MDTA, GDFN and NAFNet's block begin: the images and matrices
// of their gradient. dx may be dy.
struct NormalisedLayer {
  MirlImage x, dy, dx;
  MirlRows pointwise, pointwise_transposed, taps, taps_flipped;
  const float *gain, *offset;  // of the norm
  int64_t threads;
  float eps = 1e-5f;
};

// That layer, backwards. What comes before leaves the gradients of what the taps gave in `back`, step by
// step, and adds up those of the taps; `propagate` then takes them on to dx = dy + what comes through the
// norm. Where a task has an item to itself, it does so a row behind, while its rows are in the second-level
// cache; elsewhere when the steps of all tasks are done.
class NormalisedLayerGradient {
  const Strips& s;
  const MirlImage x, dy, dx;
  const MirlRows pointwise, transposed, taps, flipped;
  const float *gain, *offset;
  const int64_t threads, channels = s.size.channels, hidden = s.hidden, flat = s.size.flat;
  const float eps;
  const bool together = s.across == 1 && s.down == 1;
  const MatrixGradient matrix{pointwise, s, 1};
  // A task's other gradients: of taps, gain and offset, the biases of 1x1 layer and taps where they have
  // some, and the taps of channels that have all of them.
  const int64_t gains = taps.start[hidden], offsets = gains + channels, biases = offsets + channels,
                tap_biases = biases + (pointwise.bias ? hidden : 0);
  const int64_t full = round_up(tap_biases + (taps.bias ? hidden : 0), L), stride = full + hidden * L;
  const Partial partial{s.tasks(), stride};
  // Panels: of the gradients of the 1x1 layer and of what it read, twice where the cache has room; and of the
  // norm.
  const int64_t apart = (hidden + channels) * PANEL, most = 4 * apart < mirl::second_level_floats() ? 2 : 1;
  const int64_t panel_floats = most * apart + 2 * channels * PANEL + correlate_floats(pointwise);
  // `back`: rows of all channels, with zeros around them (flat: around each channel), above and below. Two
  // steps' rows and those next to them are as many as are needed together.
  const int64_t margin = flat ? s.margin : padded(s.size.width) - s.size.width,
                pitch = round_up(s.size.width, 16) + margin;
  const int64_t row = hidden * pitch, slots = flat || !together ? 0 : 2 * s.step + 3;
  const int64_t rows = slots ? slots : s.size.height + (flat ? 0 : 2), item = rows * row, ahead = 2 * L;
  Rows shared{};
  std::vector<Taps> back_taps;

  void surround(float* item) const;

 public:
  const int64_t reserved =
      together ? round_up(panel_floats + item + 2 * ahead + margin, 16) : 0;  // floats of `Step::extra`

  NormalisedLayerGradient(const Strips& s, const NormalisedLayer& layer);

  // What goes before, by portions of the batch where its items are not worked on one by one: for `back` to
  // stay in the caches.
  void run(FunctionRef<Items> first_pass);

  // Where the gradients of what the taps gave are to be left.
  Rows back(const Step& step) const;
  // Where a task adds up the gradients of taps.
  TapSums tap_sums(const Step& step) const {
    float* gradient = partial.of(step.task);
    return {gradient, gradient + full};
  }
  // The same for the biases of taps.
  float* tap_bias_sums(const Step& step) const { return partial.of(step.task) + tap_biases; }
  // To be called before and after a step: the latter takes rows whose gradients are complete on to dx.
  void prepare(const Step& step) const;
  void propagate(const Step& step) const;

 private:
  // Rows top .. bottom of columns x0 .. x1 of item b.
  void propagate_rows(int64_t task, int64_t b, int64_t x0, int64_t x1, int64_t top, int64_t bottom,
                      const Rows& back, float* panels) const;

 public:
  // The tasks' gradients added up: of 1x1 layer and taps, one after the other, and of the norm; returns the
  // end of the first.
  float* finish(float* weights, float* d_gain, float* d_offset) const;
  // The same of the biases, each where there are some.
  void finish_biases(float* d_pointwise, float* d_taps) const;
};

}  // namespace MIRL_ISA
