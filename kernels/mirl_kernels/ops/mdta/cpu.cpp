// What mdta.h declares: pass one, and the matrices of pass two. Then MDTA itself.
#include "mdta.h"

namespace MIRL_ISA {

std::vector<Span> spans(const int32_t* index, int64_t count, const MirlMdta& a) {
  const int64_t per_head = a.size.channels / a.heads;
  std::vector<Span> by_head;
  for (int64_t h = 0, i = 0; h < a.heads; ++h) {
    const int64_t first = i;
    while (i < count && index[i] / per_head == h) ++i;
    by_head.push_back({first, i});
  }
  return by_head;
}

Layout::Layout(const MirlMdta& a)
    : per_head(a.size.channels / a.heads), norms(a.q_count + a.k_count), q(spans(a.q_index, a.q_count, a)),
      k(spans(a.k_index, a.k_count, a)), v(spans(a.v_index, a.v_count, a)), place(a.size.channels, -1) {
  for (int64_t h = 0; h < a.heads; ++h) {
    start.push_back(gram);
    wide.push_back(transposed_columns(k[h].size()));
    gram += q[h].size() * wide[h];
  }
  for (int64_t i = 0; i < a.q_count; ++i) place[a.q_index[i]] = i;
}

namespace {

// Pass one: q, k and v in strips; adds up the Gram matrices and norms, and stores v.
class PassOne {
  const MirlMdta& a;
  const Layout& layout;
  const int64_t qk = a.q_count + a.k_count;
  const Strips s{a.size, qk + a.v_count, a.sums ? TRAINING_TASKS : a.threads};
  const Taps taps{a.dwconv->view(), s};
  const MirlImage v_image = v_in_scratch(a);
  // A thread's memory: q and k of a panel, k transposed, and the sums in float, which go to those in double
  // in time: Gram matrices, norms, and the number of pixels.
  const int64_t transposed = PANEL * transposed_stride(layout.widest()), norms = round_up(qk, L) * L;
  const int64_t sums_floats = layout.gram + norms + 1;
  std::vector<double> partial;  // sums of each task

 public:
  PassOne(const MirlMdta& a, const Layout& layout)
      : a(a), layout(layout), partial(s.tasks() * layout.sums(), 0.0) {}

  // Returns the sums of each item.
  std::vector<double> run() {
    const FillNormalised fill{s, a.x, a.qkv->view(), a.centred != 0, 1e-5f, a.gain, a.offset};
    run_strips(s, a.size.channels * PANEL, qk * PANEL + transposed + sums_floats, a.threads, fill,
               [&](const Step& step) { consume(step); });
    const int64_t tasks = s.tasks() / a.size.batch;  // of one item, added up in order
    std::vector<double> total(a.size.batch * layout.sums(), 0.0);
    for (int64_t b = 0; b < a.size.batch; ++b)
      for (int64_t t = 0; t < tasks; ++t)
        for (int64_t i = 0; i < layout.sums(); ++i)
          total[b * layout.sums() + i] += partial[(b * tasks + t) * layout.sums() + i];
    return total;
  }

 private:
  void consume(const Step& step) {
    float *q = step.extra, *kt = q + qk * PANEL, *gram = kt + transposed, *norm = gram + layout.gram;
    float& summed = norm[norms];  // pixels
    if (step.first) std::memset(kt, 0, sizeof(float) * (transposed + sums_floats));
    grouped(step.count, step.x1 - step.x0, [&](const Place* at, int64_t n) {
      const Tapped from(s, step, at, n);
      Fetch to_write(v_image, step.b, a.v_count, step.y, step.x0, at, n, qk);
      enter(Phase::qk_taps);
      compute_qk(from, at, n, to_write, q, norm);
      enter(Phase::v_taps);
      store_v(step, from, at, n);
      enter(Phase::gram);
      add_grams(q, n, kt, gram);
      enter(Phase::other);
    });
    summed += float(step.count * (step.x1 - step.x0));
    if (summed >= 1024 || step.last) move_sums(step.task, gram);
  }

  // emit(v, Vec) for the n vectors of a ring channel behind its taps.
  template <class Emit>
  __attribute__((always_inline)) void each_vector(int64_t channel, const Tapped& from, const Place* at,
                                                  int64_t n, Emit&& emit) const {
    runs<TAPPED>(at, n, [&](int64_t v, auto width) {
      Vec sums[width];
      taps.panel<width>(channel, from, v, sums);
      for (int i = 0; i < width; ++i) emit(v + i, sums[i]);
    });
  }

  // q and k as panels, with their squares added up in `norm`.
  void compute_qk(const Tapped& from, const Place* at, int64_t n, Fetch& to_write, float* q,
                  float* norm) const {
    for (int64_t j = 0; j < qk; ++j) {
      to_write.share<1>();
      Vec squares = load(norm + j * L);
      each_vector(j, from, at, n, [&](int64_t v, Vec value) {
        if (at[v].valid < L) value = only(value, at[v].valid);
        squares += value * value;
        store(q + j * PANEL + v * L, value);
      });
      store(norm + j * L, squares);
    }
  }

  void store_v(const Step& step, const Tapped& from, const Place* at, int64_t n) const {
    float* to[WIDE];
    for (int64_t v = 0; v < n; ++v) to[v] = v_image.at(step.b, 0, step.y + at[v].row, step.x0 + at[v].column);
    for (int64_t j = 0; j < a.v_count; ++j)
      each_vector(qk + j, from, at, n,
                  [&](int64_t v, const Vec& value) { store(to[v] + j * v_image.channel, value, at[v]); });
  }

  void add_grams(const float* q, int64_t n, float* kt, float* gram) const {
    const float* k = q + a.q_count * PANEL;
    for (int64_t h = 0; h < a.heads; ++h) {
      const float *q_h = q + layout.q[h].first * PANEL, *k_h = k + layout.k[h].first * PANEL;
      const int64_t rows = layout.q[h].size(), columns = layout.k[h].size();
      float* sums = gram + layout.start[h];
      if (a.bfloat16) {
        add_gram_by_tiles(q_h, rows, k_h, columns, n, sums);
      } else {
        transpose_panel(k_h, columns, n, kt);
        add_gram(q_h, rows, kt, layout.wide[h], n * L, sums);
      }
    }
  }

  // Adds the sums in float, which begin at `gram`, to those in double, and clears them.
  void move_sums(int64_t task, float* gram) {
    const float* norm = gram + layout.gram;
    double *total = partial.data() + task * layout.sums(), *total_norms = total + layout.gram;
    for (int64_t i = 0; i < layout.gram; ++i) total[i] += gram[i];
    for (int64_t j = 0; j < qk; j += L) {
      Vec block[L];
      std::memcpy(block, norm + j * L, sizeof block);
      const Vec sum = sums(block);
      for (int64_t i = 0; i < std::min(L, qk - j); ++i) total_norms[j + i] += sum[i];
    }
    std::memset(gram, 0, sizeof(float) * sums_floats);
  }
};

}  // namespace

std::vector<double> reciprocal_norms(const Layout& layout, const double* sums) {
  std::vector<double> reciprocals(sums + layout.gram, sums + layout.sums());
  for (double& norm : reciprocals) norm = 1 / std::max(std::sqrt(norm), 1e-12);
  return reciprocals;
}

void softmax_row(const MirlMdta& a, const Layout& layout, const double* sums, const double* reciprocals,
                 int64_t channel, std::vector<double>& weight) {
  const int64_t h = channel / layout.per_head, q = layout.place[channel];
  weight.assign(layout.per_head, 0.0);
  if (q >= 0) {
    const double* row = sums + layout.start[h] + (q - layout.q[h].first) * layout.wide[h];
    for (int64_t k = layout.k[h].first; k < layout.k[h].last; ++k)
      weight[a.k_index[k] - h * layout.per_head] =
          row[k - layout.k[h].first] * reciprocals[q] * reciprocals[a.q_count + k] * a.temperature[h];
  }
  const double most = *std::max_element(weight.begin(), weight.end());
  double denominator = 0;
  for (double& w : weight) denominator += w = std::exp(w - most);
  for (double& w : weight) w /= denominator;
}

Attention::Attention(const MirlMdta& a)
    : a(a), layout(a), project_out(a.project_out->view()), v_image(v_in_scratch(a)),
      channels(a.size.channels), per_head(layout.per_head) {
  const std::vector<double> total = PassOne(a, layout).run();
  if (a.sums) std::copy(total.begin(), total.end(), a.sums);
  composed = mirl::mdta_is_composed(channels, a.heads, a.v_count, project_out.start[channels],
                                    project_out.dense || project_out.tiles, a.size.height * a.size.width);
  for (int64_t b = 0; b < a.size.batch; ++b) {
    if (composed) matrices.emplace_back(channels, a.v_count, a.bfloat16 != 0);
    for (int64_t h = 0; h < a.heads && !composed; ++h)
      matrices.emplace_back(per_head, layout.v[h].size(), a.bfloat16 != 0);
  }
  std::vector<Weights> attention(a.size.batch, Weights(layout, channels));
  auto soften = [&](int64_t t) {
    enter(Phase::attention);
    const int64_t b = t / a.heads, h = t % a.heads;
    const double* sums = total.data() + b * layout.sums();
    const std::vector<double> reciprocals = reciprocal_norms(layout, sums);
    std::vector<double> weight;
    for (int64_t c = h * per_head; c < (h + 1) * per_head; ++c) {
      softmax_row(a, layout, sums, reciprocals.data(), c, weight);
      attention[b].set(a, layout, c, weight);
      for (int64_t v = 0; v < layout.v[h].size() && !composed; ++v)
        matrices[t].at(c - h * per_head, v) = attention[b].row(c)[v];
    }
    if (!composed) matrices[t].finish();
  };
  mirl::parallel(a.size.batch * a.heads, a.threads, soften);
  const int64_t parts = (channels + 3) / 4;
  auto compose = [&](int64_t t) {
    enter(Phase::attention);
    const int64_t b = t / parts, first = t % parts * 4;
    const int64_t stride = a.v_count + L;
    std::vector<float> rows(4 * stride);
    attention[b].compose(layout, project_out, first, std::min(first + 4, channels),
                         [&](int64_t r, int64_t v, Vec sum) { store(&rows[(r - first) * stride + v], sum); });
    for (int64_t v = 0; v < a.v_count; ++v)
      for (int64_t i = 0; i < 4; ++i) matrices[b].at(first + i, v) = rows[i * stride + v];
  };
  if (!composed) return;
  mirl::parallel(a.size.batch * parts, a.threads, compose);
  auto finish = [&](int64_t b) { matrices[b].finish(); };
  if (a.bfloat16) mirl::parallel(a.size.batch, a.threads, finish);
}

void mdta(MirlMdta& a) {
  a.size = flattened(a.size);
  const Attention attention(a);
  const int64_t width = a.size.width, height = a.size.height;
  const int64_t step = std::max<int64_t>(1, PANEL / round_up(width, L)), steps = (height + step - 1) / step;
  auto task = [&](int64_t t) {
    const int64_t b = t / steps, y = t % steps * step;
    const std::vector<Place> all = places(std::min(step, height - y), width);
    float* scratch = mirl::scratch(attention.scratch_floats());
    grouped(all.size(), [&](int64_t first, int64_t n) {
      const Place* at = all.data() + first;
      const int64_t more = std::min<int64_t>(n, all.size() - first - n);
      const bool below = more == 0 && y + step < height && step == 1;
      attention.apply(b, y, 0, at, n, y + below, below ? all.data() : at + n, below ? n : more, scratch,
                      Residual(a.x, a.y, b, y, 0, at, n));
    });
  };
  mirl::parallel(a.size.batch * steps, a.threads, task);
}

}  // namespace MIRL_ISA
