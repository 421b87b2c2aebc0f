// The gradients of MDTA. The forward call kept v, the Gram matrices and the norms, which give the attention again. The Gram
// matrix couples all pixels, so there are three passes: without taps, the gradients of project_out and of the attention;
// then q and k again, and the gradients of q, k and v; then these go back through the taps, the 1x1 layer and the norm.
#include "gradients.h"
#include "mdta.h"

namespace MIRL_ISA {
namespace {

// An item's attention of one head (its rows, by live v), and how gradients go back through it:
// dq = from_k k - q_scale q, dk = from_q q - k_scale k, dv = from_out d(attention v).
struct Head {
  Dense attention, from_out, from_k, from_q;

  Head(const Layout& layout, int64_t h)
      : attention(layout.per_head, layout.v[h].size()), from_out(layout.v[h].size(), layout.per_head),
        from_k(layout.q[h].size(), layout.k[h].size()), from_q(layout.k[h].size(), layout.q[h].size()) {}
};
struct Item {
  std::vector<Head> heads;
  std::vector<std::vector<double>> softmax;  // of each channel, over all k of its head
  std::vector<float> scale;                  // of each live q, then k
};

}  // namespace

void mdta_backward(MirlMdtaBackward& a) {
  MirlMdta m = a.mdta;
  m.size = flattened(m.size);
  const Layout layout(m);
  const MirlRows qkv = m.qkv->view(), dwconv = m.dwconv->view(), project_out = m.project_out->view();
  const MirlRows out_transposed = a.project_out_transposed->view();
  const int64_t channels = m.size.channels, per_head = layout.per_head, batch = m.size.batch, height = m.size.height;
  const int64_t qk = m.q_count + m.k_count, hidden = qk + m.v_count;
  const MirlImage v_image = v_in_scratch(m);
  std::vector<Item> items(batch);
  auto attend = [&](int64_t b) {
    Item& item = items[b];
    item.scale.resize(qk);
    for (int64_t h = 0; h < m.heads; ++h) item.heads.emplace_back(layout, h);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t h = c / per_head;
      item.softmax.push_back(softmax_row(m, layout, m.sums + b * layout.sums(), c));
      for (int64_t v = 0; v < layout.v[h].size(); ++v) {
        const float weight = float(item.softmax[c][m.v_index[layout.v[h].first + v] - h * per_head]);
        item.heads[h].attention.at(c % per_head, v) = item.heads[h].from_out.at(v, c % per_head) = weight;
      }
    }
  };
  mirl::parallel(batch, a.threads, attend);

  // The gradients of project_out, then of every head's attention, its columns padded.
  int64_t widest = 0, stride = gradient_floats(project_out);
  std::vector<int64_t> attention;  // where each head's is
  for (const Span& v : layout.v) {
    attention.push_back(stride);
    stride += per_head * turned(v.size()), widest = std::max(widest, turned(v.size()));
  }
  const int64_t shares = std::max<int64_t>(1, std::min(height, TRAINING_TASKS / batch)), share = (height + shares - 1) / shares;
  std::vector<float>& outer = zeroed(batch * shares, stride, 1);
  const int64_t turn_floats = std::max(widest * PANEL, correlate_floats(project_out));
  auto without_taps = [&](int64_t t) {
    const int64_t b = t / shares, top = t % shares * share;
    float *dy = mirl::scratch((3 * channels + m.v_count) * PANEL + turn_floats), *d = dy + channels * PANEL, *mixed = d + channels * PANEL;
    float *v_panel = mixed + channels * PANEL, *turn = v_panel + m.v_count * PANEL, *gradient = outer.data() + t * stride;
    const std::vector<Place> all = places(std::max<int64_t>(0, std::min(share, height - top)), m.size.width);
    grouped(all.size(), [&](int64_t first, int64_t n) {
      const Place* at = all.data() + first;
      with_vectors(n, [&](auto n) {
        gather<n>(a.dy, b, channels, top, 0, at, dy);
        gather<n>(v_image, b, m.v_count, top, 0, at, v_panel);
      });
      product_panel(out_transposed, dy, n, d);
      for (int64_t h = 0; h < m.heads; ++h) {
        const Span& live = layout.v[h];
        const float* v = v_panel + live.first * PANEL;
        product_panel(items[b].heads[h].attention.rows(nullptr), v, n, mixed + h * per_head * PANEL);
        turn_panel(v, live.size(), n, turn);
        add_gram(d + h * per_head * PANEL, per_head, turn, turned(live.size()), n * L, gradient + attention[h]);
      }
      correlate(project_out, dy, mixed, n, gradient, turn);
    });
  };
  mirl::parallel(batch * shares, a.threads, without_taps);

  // Back through the softmax and the norms of q and k, which are at least 1e-12: where one is zero, so is all that it
  // scales, and its gradient.
  std::vector<double> temperature(batch * m.heads, 0.0);
  auto soften = [&](int64_t b) {
    const double *sums = m.sums + b * layout.sums(), *norm = sums + layout.gram;
    std::vector<double> along(qk, 0.0);
    auto length = [&](int64_t i) { return std::max(std::sqrt(norm[i]), 1e-12); };
    for (int64_t h = 0; h < m.heads; ++h) {
      const Span &q = layout.q[h], &k = layout.k[h], &v = layout.v[h];
      for (int64_t c = 0; c < per_head; ++c) {
        const int64_t i = layout.place[h * per_head + c];
        if (i < 0) continue;
        const std::vector<double>& weight = items[b].softmax[h * per_head + c];
        std::vector<double> gradient(per_head, 0.0);
        double mean = 0;
        for (int64_t j = 0; j < v.size(); ++j) {
          double sum = 0;
          for (int64_t t = b * shares; t < (b + 1) * shares; ++t) sum += outer[t * stride + attention[h] + c * turned(v.size()) + j];
          const int64_t to = m.v_index[v.first + j] - h * per_head;
          gradient[to] = sum, mean += sum * weight[to];
        }
        for (int64_t j = k.first; j < k.last; ++j) {
          const int64_t column = m.k_index[j] - h * per_head;
          const double lengths = length(i) * length(m.q_count + j);
          const double cosine = sums[layout.start[h] + (i - q.first) * layout.wide[h] + j - k.first] / lengths;
          const double logit = weight[column] * (gradient[column] - mean), d = logit * m.temperature[h];
          temperature[b * m.heads + h] += logit * cosine;
          along[i] += d * cosine, along[m.q_count + j] += d * cosine;
          const float scaled = norm[i] > 0 && norm[m.q_count + j] > 0 ? float(d / lengths) : 0.0f;
          items[b].heads[h].from_k.at(i - q.first, j - k.first) = items[b].heads[h].from_q.at(j - k.first, i - q.first) = scaled;
        }
      }
    }
    for (int64_t i = 0; i < qk; ++i) items[b].scale[i] = norm[i] > 0 ? float(along[i] / norm[i]) : 0.0f;
  };
  mirl::parallel(batch, a.threads, soften);
  for (int64_t h = 0; h < m.heads; ++h) {
    double sum = 0;
    for (int64_t b = 0; b < batch; ++b) sum += temperature[b * m.heads + h];
    a.d_temperature[h] = float(sum);
  }

  const Strips s(m.size, hidden, TRAINING_TASKS);
  const Taps taps(dwconv, s);
  const auto fill = fill_normalised(s, m.x, qkv, true, 1e-5f, m.gain, m.offset);
  Beginning beginning{s, m.x, a.dy, a.dx, qkv, a.qkv_transposed->view(), dwconv, a.dwconv_flipped->view(), m.gain, m.offset, a.threads};
  beginning.run([&](const Items& some, const MirlImage& back) {
    run_strips(s, some, channels * PANEL, (2 * channels + qk + hidden) * PANEL, a.threads, fill, [&](const Step& step) {
      float *dy = step.extra, *d_out = dy + channels * PANEL, *q = d_out + channels * PANEL, *d = q + qk * PANEL;
      const float* k = q + m.q_count * PANEL;
      const Item& item = items[step.b];
      const std::vector<Place> all = places(step.count, step.x1 - step.x0);
      grouped(all.size(), [&](int64_t first, int64_t count) {
        const Place* at = all.data() + first;
        with_vectors(count, [&](auto n) {
          gather<n>(a.dy, step.b, channels, step.y, step.x0, at, dy);
          product_panel(out_transposed, dy, n, d_out);
          taps_panel(taps, qk, at, n, q, [&](int64_t channel, const Place& p) {
            return std::pair<int64_t, const float*>((step.slot + p.row) % s.slots, step.hidden + channel * s.hidden_stride + p.column);
          });
          for (int64_t h = 0; h < m.heads; ++h) {
            const Span &live_q = layout.q[h], &live_k = layout.k[h], &live_v = layout.v[h];
            product_panel(item.heads[h].from_k.rows(nullptr), k + live_k.first * PANEL, n, d + live_q.first * PANEL);
            product_panel(item.heads[h].from_q.rows(nullptr), q + live_q.first * PANEL, n, d + (m.q_count + live_k.first) * PANEL);
            product_panel(item.heads[h].from_out.rows(nullptr), d_out + h * per_head * PANEL, n, d + (qk + live_v.first) * PANEL);
          }
          TapSums tap_sums = beginning.tap_sums(step);
          for (int64_t j = 0; j < hidden; ++j) {
            Vec own[n];
            for (int v = 0; v < n; ++v) {
              own[v] = load(d + j * PANEL + v * L);
              if (j < qk) own[v] -= item.scale[j] * load(q + j * PANEL + v * L);
            }
            tap_gradient<n>(s, taps, j, step, at, own, back, tap_sums);
          }
        });
      });
    });
  });
  float* rest = beginning.finish(a.gradient, a.d_gain, a.d_offset);
  add_up(outer.data(), batch * shares, stride, gradient_floats(project_out), a.threads, rest);
}

}  // namespace MIRL_ISA
