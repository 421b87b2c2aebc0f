// The gradients of MDTA. The Gram matrix couples all pixels, so there are four passes: the forward one gives the attention
// again, and v; then, without taps, come the gradients of project_out and of the attention; then q and k again, and the
// gradients of q, k and v; then these go back through the taps, the 1x1 layer and the norm.
#include "../_cpu/gradients.h"
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
  MirlMdta& m = a.mdta;
  m.threads = a.threads;
  const Layout layout(m);
  const MirlRows qkv = m.qkv->view(), dwconv = m.dwconv->view(), project_out = m.project_out->view();
  const MirlRows out_transposed = a.project_out_transposed->view();
  const int64_t channels = m.size.channels, per_head = layout.per_head, batch = m.size.batch, height = m.size.height;
  const int64_t qk = m.q_count + m.k_count, hidden = qk + m.v_count;
  const MirlImage v_image = v_in_scratch(m);
  const std::vector<double> total = pass_one(m, layout);
  std::vector<Item> items(batch);
  for (int64_t b = 0; b < batch; ++b) {
    Item& item = items[b];
    item.scale.resize(qk);
    for (int64_t h = 0; h < m.heads; ++h) item.heads.emplace_back(layout, h);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t h = c / per_head;
      item.softmax.push_back(softmax_row(m, layout, total.data() + b * layout.sums(), c));
      for (int64_t v = 0; v < layout.v[h].size(); ++v) {
        const float weight = float(item.softmax[c][m.v_index[layout.v[h].first + v] - h * per_head]);
        item.heads[h].attention.at(c % per_head, v) = item.heads[h].from_out.at(v, c % per_head) = weight;
      }
    }
  }

  // The gradients of project_out, then of every head's attention.
  const int64_t out_count = gradient_floats(project_out), weights = per_head * m.v_count;
  const int64_t shares = std::max<int64_t>(1, std::min(height, GRADIENT_TASKS / batch)), share = (height + shares - 1) / shares;
  std::vector<float>& outer = zeroed(batch * shares, out_count + weights);
  auto without_taps = [&](int64_t t) {
    const int64_t b = t / shares, top = t % shares * share;
    float *dy = mirl::scratch((3 * channels + m.v_count) * PANEL), *d = dy + channels * PANEL, *mixed = d + channels * PANEL;
    float *v_panel = mixed + channels * PANEL, *gradient = outer.data() + t * (out_count + weights);
    const std::vector<Place> all = places(std::max<int64_t>(0, std::min(share, height - top)), m.size.width);
    grouped(all.size(), [&](int64_t first, int64_t count) {
      const Place* at = all.data() + first;
      with_vectors(count, [&](auto n) {
        gather<n>(a.dy, b, channels, top, 0, at, dy);
        gather<n>(v_image, b, m.v_count, top, 0, at, v_panel);
        product_panel(out_transposed, dy, n, d);
        for (int64_t h = 0, at_head = out_count; h < m.heads; ++h) {
          const Span& live = layout.v[h];
          product_panel(items[b].heads[h].attention.rows(nullptr), v_panel + live.first * PANEL, n, mixed + h * per_head * PANEL);
          correlate_all<n>(per_head, live.size(), d + h * per_head * PANEL, v_panel + live.first * PANEL, gradient + at_head);
          at_head += per_head * live.size();
        }
        correlate<n>(project_out, dy, mixed, gradient);
      });
    });
  };
  mirl::parallel(batch * shares, a.threads, without_taps);

  // Back through the softmax and the norms of q and k, which are at least 1e-12: where one is zero, so is all that it
  // scales, and its gradient.
  std::vector<double> temperature(m.heads, 0.0);
  for (int64_t b = 0; b < batch; ++b) {
    const double *sums = total.data() + b * layout.sums(), *norm = sums + layout.gram;
    std::vector<double> along(qk, 0.0);
    auto length = [&](int64_t i) { return std::max(std::sqrt(norm[i]), 1e-12); };
    for (int64_t h = 0, at_head = out_count; h < m.heads; at_head += per_head * layout.v[h].size(), ++h) {
      const Span &q = layout.q[h], &k = layout.k[h], &v = layout.v[h];
      for (int64_t c = 0; c < per_head; ++c) {
        const int64_t i = layout.place[h * per_head + c];
        if (i < 0) continue;
        const std::vector<double>& weight = items[b].softmax[h * per_head + c];
        std::vector<double> gradient(per_head, 0.0);
        double mean = 0;
        for (int64_t j = 0; j < v.size(); ++j) {
          double sum = 0;
          for (int64_t t = b * shares; t < (b + 1) * shares; ++t) sum += outer[t * (out_count + weights) + at_head + c * v.size() + j];
          const int64_t to = m.v_index[v.first + j] - h * per_head;
          gradient[to] = sum, mean += sum * weight[to];
        }
        for (int64_t j = k.first; j < k.last; ++j) {
          const int64_t column = m.k_index[j] - h * per_head;
          const double lengths = length(i) * length(m.q_count + j);
          const double cosine = sums[layout.start[h] + (i - q.first) * layout.wide[h] + j - k.first] / lengths;
          const double logit = weight[column] * (gradient[column] - mean), d = logit * m.temperature[h];
          temperature[h] += logit * cosine;
          along[i] += d * cosine, along[m.q_count + j] += d * cosine;
          const float scaled = norm[i] > 0 && norm[m.q_count + j] > 0 ? float(d / lengths) : 0.0f;
          items[b].heads[h].from_k.at(i - q.first, j - k.first) = items[b].heads[h].from_q.at(j - k.first, i - q.first) = scaled;
        }
      }
    }
    for (int64_t i = 0; i < qk; ++i) items[b].scale[i] = norm[i] > 0 ? float(along[i] / norm[i]) : 0.0f;
  }

  const Strips s(m.size, hidden, GRADIENT_TASKS);
  const Taps taps(dwconv, s);
  const int64_t tap_count = dwconv.start[dwconv.rows], inner_count = tap_count + gradient_floats(qkv) + hidden;
  std::vector<float>& inner = zeroed(s.tasks(), inner_count, 1);
  const int64_t pitch = padded(m.size.width);
  const MirlImage back{a.scratch, height * hidden * pitch, pitch, hidden * pitch};
  run_strips(s, channels * PANEL, (2 * channels + qk + hidden) * PANEL, a.threads, fill_normalised(s, m.x, qkv, true), [&](const Step& step) {
    float *dy = step.extra, *d_out = dy + channels * PANEL, *q = d_out + channels * PANEL, *d = q + qk * PANEL;
    const float* k = q + m.q_count * PANEL;
    float* gradient = inner.data() + step.task * inner_count;
    const Item& item = items[step.b];
    const std::vector<Place> all = places(step.count, step.x1 - step.x0);
    grouped(all.size(), [&](int64_t first, int64_t count) {
      const Place* at = all.data() + first;
      with_vectors(count, [&](auto n) {
        gather<n>(a.dy, step.b, channels, step.y, step.x0, at, dy);
        product_panel(out_transposed, dy, n, d_out);
        taps_panel(s, taps, qk, step, at, n, q);
        for (int64_t h = 0; h < m.heads; ++h) {
          const Span &live_q = layout.q[h], &live_k = layout.k[h], &live_v = layout.v[h];
          product_panel(item.heads[h].from_k.rows(nullptr), k + live_k.first * PANEL, n, d + live_q.first * PANEL);
          product_panel(item.heads[h].from_q.rows(nullptr), q + live_q.first * PANEL, n, d + (m.q_count + live_k.first) * PANEL);
          product_panel(item.heads[h].from_out.rows(nullptr), d_out + h * per_head * PANEL, n, d + (qk + live_v.first) * PANEL);
        }
        for (int64_t j = 0; j < hidden; ++j) {
          Vec own[n];
          for (int v = 0; v < n; ++v) {
            own[v] = load(d + j * PANEL + v * L);
            if (j < qk) own[v] -= item.scale[j] * load(q + j * PANEL + v * L);
          }
          tap_gradient<n>(s, taps, j, step, at, own, back, gradient);
        }
      });
    });
  });
  through_the_norm(s, m.x, a.dy, a.dx, back, a.dwconv_flipped->view(), qkv, a.qkv_transposed->view(), a.threads,
                   [&](int64_t task) { return inner.data() + task * inner_count + tap_count; });
  add_up(outer, out_count + weights, out_count, a.threads, a.gradient);
  add_up(inner, inner_count, inner_count, a.threads, a.gradient + out_count);
  for (int64_t h = 0; h < m.heads; ++h) a.gradient[out_count + inner_count + h] = float(temperature[h]);
}

}  // namespace MIRL_ISA
