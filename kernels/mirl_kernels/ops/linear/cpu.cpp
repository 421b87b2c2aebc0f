// Linear layer: panels of tokens, transposed so that the product's vectors run over tokens (unless they lie
// so), and transposed back.
#include "strips.h"

namespace MIRL_ISA {

void linear(MirlLinear& a) {
  constexpr int64_t TOKENS = WIDE * L;
  const MirlRows weight = a.weight->view();
  const int64_t inputs = weight.columns, outputs = weight.rows, panels = (a.tokens + TOKENS - 1) / TOKENS;
  const int64_t share = std::max<int64_t>(1, std::min<int64_t>(8, a.batch * panels / (4 * a.threads)));
  auto panel_task = [&](int64_t b, int64_t first) {
    const int64_t tokens = std::min(TOKENS, a.tokens - first), n = (tokens + L - 1) / L;
    float *panel = mirl::scratch((inputs + L) * PANEL), *results = panel + inputs * PANEL;
    const float* x = a.x + b * a.x_batch + first * a.x_token;
    float* y = a.y + (b * a.tokens + first) * outputs;
    // L results of several tokens lie where no prefetcher of the processor expects them.
    auto expect = [&](int64_t token, int64_t end, int64_t channel) {
      for (; channel < outputs && token < std::min(end, tokens); ++token)
        __builtin_prefetch(y + token * outputs + channel, 1, 3);
    };
    expect(0, tokens, 0);
    const bool side_by_side = a.x_token == 1 && a.x_channel != 1;
    for (int64_t c = 0; c < inputs; c += side_by_side ? 1 : L)
      for (int64_t v = 0; v < n; ++v) {
        const int64_t valid = std::min(L, tokens - v * L), channels = std::min(L, inputs - c);
        const float* from = x + v * L * a.x_token + c * a.x_channel;
        float* to = panel + c * PANEL + v * L;
        if (side_by_side) {
          store(to, load(from, Place{0, 0, valid}));
          continue;
        }
        if (valid < L)  // lanes without tokens are computed as well
          for (int64_t i = 0; i < channels; ++i) store(to + i * PANEL, Vec{});
        transpose_tile(from, a.x_token, to, PANEL, valid, channels);
      }
    // What is read next, in as many parts as there are rows.
    const float *next = x + TOKENS * a.x_token,
                *end = side_by_side ? next
                                    : std::min(next + TOKENS * a.x_token, x + (a.tokens - first) * a.x_token);
    const int64_t part = (TOKENS * inputs / outputs + 15) / 16 * 16;
    product(weight, panel, n, [&](int64_t r, int64_t begin, auto wide, const Vec* sums) {
      if (begin == 0) {
        expect(r % L * WIDE, r % L * WIDE + WIDE, r / L * L + L);
        for (const float* stop = std::min(next + part, end); next < stop; next += 16)
          __builtin_prefetch(next, 0, 2);
      }
      for (int v = 0; v < wide; ++v)
        store(results + r % L * PANEL + (begin + v) * L, activated(sums[v], a.activation));
      if ((r + 1) % L && r + 1 < outputs) return;
      const int64_t c = r / L * L;
      for (int64_t v = begin; v < begin + wide; ++v)
        transpose_tile(results + v * L, PANEL, y + v * L * outputs + c, outputs, std::min(L, outputs - c),
                       std::min(L, tokens - v * L));
    });
  };
  auto task = [&](int64_t t) {
    for (int64_t i = t * share; i < std::min(a.batch * panels, (t + 1) * share); ++i)
      panel_task(i / panels, i % panels * TOKENS);
  };
  mirl::parallel((a.batch * panels + share - 1) / share, a.threads, task);
}

}  // namespace MIRL_ISA
