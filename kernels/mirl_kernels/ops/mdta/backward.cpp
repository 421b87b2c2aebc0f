// The gradients of MDTA. The forward call leaves v, the Gram matrices and the norms, which give the attention
// again. Every pixel of an item goes through the same matrix, project_out composed with the attention, so
// that the gradients of both follow from one more Gram matrix, of dy and v. As the first ones couple all
// pixels, there are three passes: that Gram matrix; then q and k again, and the gradients of q, k and v; then
// these go back through the taps, the 1x1 layer and the norm.
#include "gradients.h"
#include "mdta.h"

namespace MIRL_ISA {
namespace {

// How gradients go back through an item's attention: dv = from_dy dy, and head by head dq = from_k k -
// q_scale q, dk = from_q q - k_scale k.
struct Item {
  std::vector<Dense> attention, from_k, from_q;
  Dense from_dy{0, 0};
  std::vector<float> scale;  // of each live q, then k
};

// The passes of one call, in the order in which they run.
class Backward {
  MirlMdtaBackward& a;
  const MirlMdta m;  // of images that are worked on as one where their rows are short
  const Layout layout;
  const MirlRows qkv, dwconv, project_out, out_transposed;
  const MirlImage v_image;
  const int64_t channels, per_head, batch, qk, hidden;
  const int64_t wide, gram;     // channels of dy, padded; floats of a Gram matrix of v by dy
  const int64_t shares, share;  // parts of an item's rows that each have a Gram matrix; rows of each
  float* const grams;           // those of all shares
  std::vector<Item> items;
  std::vector<double> temperature;  // gradients, of each item and head

  static MirlMdta with_flat_size(MirlMdta m) {
    m.size = flattened(m.size);
    return m;
  }
  static float* thread_memory(int64_t floats) {
    static thread_local std::vector<float> memory;
    memory.resize(floats);
    return memory.data();
  }

  // Where the gradient of one head's attention goes.
  struct Head {
    int64_t index, b;
    const double *sums, *norm;
    const std::vector<double>& reciprocals;
    std::vector<double>& along;  // of each live q, then k: the gradient along its direction
    Dense &from_k, &from_q;
  };

 public:
  explicit Backward(MirlMdtaBackward& a)
      : a(a), m(with_flat_size(a.mdta)), layout(m), qkv(m.qkv->view()), dwconv(m.dwconv->view()),
        project_out(m.project_out->view()), out_transposed(a.project_out_transposed->view()),
        v_image(v_in_scratch(m)), channels(m.size.channels), per_head(layout.per_head), batch(m.size.batch),
        qk(m.q_count + m.k_count), hidden(qk + m.v_count), wide(transposed_columns(channels)),
        gram(m.v_count * wide), shares(std::max<int64_t>(1, std::min(m.size.height, TRAINING_TASKS / batch))),
        share((m.size.height + shares - 1) / shares), grams(thread_memory(batch * shares * gram)),
        items(batch), temperature(batch * m.heads, 0.0) {}

  void run() {
    correlate();
    auto each_item = [&](int64_t b) { soften(b); };
    mirl::parallel(batch, a.threads, each_item);
    for (int64_t h = 0; h < m.heads; ++h) {
      double sum = 0;
      for (int64_t b = 0; b < batch; ++b) sum += temperature[b * m.heads + h];
      a.d_temperature[h] = float(sum);
    }
    project(differentiate());
  }

 private:
  // Gram matrices of v by dy, the latter's channels padded.
  void correlate() {
    const int64_t height = m.size.height;
    auto correlate_v = [&](int64_t t) {
      const int64_t b = t / shares, top = t % shares * share;
      float *dy = mirl::scratch((channels + m.v_count + transposed_stride(channels)) * PANEL),
            *v = dy + channels * PANEL, *transposed = v + m.v_count * PANEL;
      std::memset(grams + t * gram, 0, sizeof(float) * gram);
      grouped(std::max<int64_t>(0, std::min(share, height - top)), m.size.width,
              [&](const Place* at, int64_t count) {
                with_vectors(count, [&](auto n) {
                  gather<n>(a.dy, b, channels, top, 0, at, dy);
                  gather<n>(v_image, b, m.v_count, top, 0, at, v);
                });
                transpose_panel(dy, channels, count, transposed);
                add_gram(v, m.v_count, transposed, wide, count * L, grams + t * gram);
              });
    };
    mirl::parallel(batch * shares, a.threads, correlate_v);
  }

  // The gradient of an item's attention, then back through the softmax and the norms of q and k.
  void soften(int64_t b) {
    Item& item = items[b];
    const double *sums = m.sums + b * layout.sums(), *norm = sums + layout.gram;
    const std::vector<double> reciprocals = reciprocal_norms(layout, sums);
    float* by_v = grams + b * shares * gram;
    for (int64_t i = gram; i < shares * gram; ++i) by_v[i % gram] += by_v[i];
    const int64_t stride = round_up(m.v_count, L) + L;  // what lies behind a head's v is read, too
    std::vector<float> by_dy(channels * stride), gradients(per_head * stride);
    Weights weights(layout, channels);
    for (int64_t v = 0; v < m.v_count; v += L)
      for (int64_t c = 0; c < channels; c += L)
        transpose_tile(by_v + v * wide + c, wide, by_dy.data() + c * stride + v, stride,
                       std::min(L, m.v_count - v), std::min(L, channels - c));
    std::vector<double> along(qk, 0.0), weight;
    for (int64_t h = 0; h < m.heads; ++h) {
      const Span &q = layout.q[h], &k = layout.k[h], &v = layout.v[h];
      Dense& attention = item.attention.emplace_back(per_head, v.size());
      Dense &from_k = item.from_k.emplace_back(q.size(), k.size()),
            &from_q = item.from_q.emplace_back(k.size(), q.size());
      const int64_t begin = h * per_head;
      times(out_transposed, begin, begin + per_head, 0, channels, by_dy.data() + v.first, stride, v.size(),
            [&](int64_t c, int64_t j, Vec sum) { store(&gradients[(c - begin) * stride + j], sum); });
      for (int64_t c = begin; c < begin + per_head; ++c) {
        const float* gradient = &gradients[(c - begin) * stride];
        softmax_row(m, layout, sums, reciprocals.data(), c, weight);
        weights.set(m, layout, c, weight);
        for (int64_t j = 0; j < v.size(); ++j) attention.at(c - begin, j) = weights.row(c)[j];
        if (layout.place[c] >= 0)
          soften_row({h, b, sums, norm, reciprocals, along, from_k, from_q}, c, gradient, weight);
      }
    }
    item.scale.resize(qk);
    for (int64_t i = 0; i < qk; ++i) item.scale[i] = norm[i] > 0 ? float(along[i] / norm[i]) : 0.0f;
    item.from_dy = Dense(m.v_count, channels);
    weights.compose(layout, project_out, 0, channels,
                    [&](int64_t c, int64_t v, Vec sum) { store(&by_dy[c * stride + v], sum); });
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t v = 0; v < m.v_count; v += 4)  // behind the last row are zeros
        std::memcpy(&item.from_dy.at(v, c), &by_dy[c * stride + v], 4 * sizeof(float));
  }

  // The same of row c: `gradient` that of its attention, `weight` its softmax. The norms are at least 1e-12:
  // where one is zero, so is all that it scales, and its gradient.
  void soften_row(const Head& head, int64_t c, const float* gradient, const std::vector<double>& weight) {
    const Span &q = layout.q[head.index], &k = layout.k[head.index], &v = layout.v[head.index];
    const int64_t begin = head.index * per_head, i = layout.place[c];
    std::vector<double> by_k(per_head, 0.0);
    double mean = 0;
    for (int64_t j = 0; j < v.size(); ++j) {
      const int64_t to = m.v_index[v.first + j] - begin;
      by_k[to] = gradient[j], mean += gradient[j] * weight[to];
    }
    for (int64_t j = k.first; j < k.last; ++j) {
      const int64_t column = m.k_index[j] - begin;
      const double scale = head.reciprocals[i] * head.reciprocals[m.q_count + j];
      const double cosine =
          head.sums[layout.start[head.index] + (i - q.first) * layout.wide[head.index] + j - k.first] * scale;
      const double logit = weight[column] * (by_k[column] - mean), d = logit * m.temperature[head.index];
      temperature[head.b * m.heads + head.index] += logit * cosine;
      head.along[i] += d * cosine, head.along[m.q_count + j] += d * cosine;
      const float scaled = head.norm[i] > 0 && head.norm[m.q_count + j] > 0 ? float(d * scale) : 0.0f;
      head.from_k.at(i - q.first, j - k.first) = head.from_q.at(j - k.first, i - q.first) = scaled;
    }
  }

  // q and k again, and the gradients of q, k and v; then back through the taps, the 1x1 layer and the norm.
  // Returns where the gradient of project_out goes.
  float* differentiate() {
    const Strips s(m.size, hidden, TRAINING_TASKS);
    const Taps taps(dwconv, s);
    const FillNormalised fill{s, m.x, qkv, true, 1e-5f, m.gain, m.offset};
    NormalisedLayer first{};
    first.x = m.x, first.dy = a.dy, first.dx = a.dx;
    first.pointwise = qkv, first.pointwise_transposed = a.qkv_transposed->view();
    first.taps = dwconv, first.taps_flipped = a.dwconv_flipped->view();
    first.gain = m.gain, first.offset = m.offset;
    first.threads = a.threads;
    NormalisedLayerGradient layer(s, first);
    layer.run([&](const Items& portion) {
      run_strips(s, portion, channels * PANEL, layer.reserved + (channels + qk + hidden) * PANEL, a.threads,
                 fill, [&](const Step& step) {
                   float *dy = step.extra + layer.reserved, *q = dy + channels * PANEL, *d = q + qk * PANEL;
                   const float* k = q + m.q_count * PANEL;
                   const Item& item = items[step.b];
                   const Rows back = layer.back(step);
                   layer.prepare(step);
                   grouped(step.count, step.x1 - step.x0, [&](const Place* at, int64_t count) {
                     const Tapped from(s, step, at, count);
                     with_vectors(count, [&](auto n) {
                       gather<n>(a.dy, step.b, channels, step.y, step.x0, at, dy);
                       product_panel(item.from_dy.rows(nullptr), dy, n, d + qk * PANEL);
                       taps_panel(taps, qk, from, at, n, q);
                       for (int64_t h = 0; h < m.heads; ++h) {
                         const int64_t q_at = layout.q[h].first * PANEL, k_at = layout.k[h].first * PANEL;
                         product_panel(item.from_k[h].rows(nullptr), k + k_at, n, d + q_at);
                         product_panel(item.from_q[h].rows(nullptr), q + q_at, n,
                                       d + m.q_count * PANEL + k_at);
                       }
                       TapSums tap_sums = layer.tap_sums(step);
                       const TapGradient<n> gradient(s, taps, from, step, at, back);
                       for (int64_t j = 0; j < hidden; ++j) {
                         Vec gradients[n];
                         for (int v = 0; v < n; ++v) {
                           gradients[v] = load(d + j * PANEL + v * L);
                           if (j < qk) gradients[v] -= item.scale[j] * load(q + j * PANEL + v * L);
                         }
                         gradient(j, gradients, tap_sums);
                       }
                     });
                   });
                   layer.propagate(step);
                 });
    });
    return layer.finish(a.gradient, a.d_gain, a.d_offset);
  }

  // The gradient of project_out, transposed: of each item, dy's Gram matrix times the attention.
  void project(float* rest) {
    constexpr int64_t SHARE = WIDE * L;
    const int64_t parts = (wide + SHARE - 1) / SHARE;
    std::vector<float> by_column(channels * wide, 0.0f);
    auto project = [&](int64_t t) {
      const int64_t h = t / parts, first = t % parts * SHARE;
      for (int64_t b = 0; b < batch; ++b)
        dense_panel(items[b].attention[h].rows(nullptr),
                    grams + b * shares * gram + layout.v[h].first * wide + first, wide,
                    std::min<int64_t>(WIDE, (wide - first) / L),
                    [&](int64_t r, int64_t begin, auto width, const Vec* rows) {
                      float* to = &by_column[(h * per_head + r) * wide + first + begin * L];
                      for (int i = 0; i < width; ++i) store(to + i * L, load(to + i * L) + rows[i]);
                    });
    };
    mirl::parallel(m.heads * parts, a.threads, project);
    for (int64_t r = 0; r < channels; ++r)
      if (project_out.dense)
        for (int64_t c = 0; c < channels; ++c) rest[r * wide + c] = by_column[c * wide + r];
      else
        for (int64_t e = project_out.start[r]; e < project_out.start[r + 1]; ++e)
          rest[e] = by_column[project_out.entry[e].column() * wide + r];
  }
};

}  // namespace

void mdta_backward(MirlMdtaBackward& a) { Backward(a).run(); }

}  // namespace MIRL_ISA
