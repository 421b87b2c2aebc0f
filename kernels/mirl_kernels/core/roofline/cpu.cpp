// The machine's limits: multiply-adds that never wait, and a copy of what fits no cache.
#include <chrono>
#include <cstdlib>
#include <memory>
#include <vector>

#include "rows.h"

namespace MIRL_ISA {
namespace {

constexpr int CHAINS = 12, TRIES = 5;

template <class F>
double seconds(F&& f) {
  const auto begin = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

void roofline(MirlRoofline& a) {
  const int64_t steps = 1000000, floats = 1 << 23;  // 32 MiB to and fro
  std::vector<double> rate(a.threads);
  std::vector<std::unique_ptr<float, decltype(&mirl::give_back)>> memory;
  for (int64_t t = 0; t < a.threads; ++t) {
    memory.emplace_back(mirl::allocate(2 * floats), mirl::give_back);
    std::memset(memory[t].get(), 0, sizeof(float) * 2 * floats);
  }
  auto best = [&](auto task) {
    double most = 0;
    for (int i = 0; i < TRIES; ++i) {
      std::fill(rate.begin(), rate.end(), 0.0);
      mirl::parallel(a.threads, a.threads, task);
      double sum = 0;
      for (double r : rate) sum += r;
      most = std::max(most, sum);
    }
    return most;
  };
  a.flops = best([&](int64_t t) {
    Vec chain[CHAINS], scale = all(0.999f), add = all(0.001f);
    for (int c = 0; c < CHAINS; ++c) chain[c] = all(float(c));
    rate[t] = 2.0 * L * CHAINS * steps / seconds([&] {
                for (int64_t i = 0; i < steps; ++i)
                  for (int c = 0; c < CHAINS; ++c) chain[c] = chain[c] * scale + add;
              });
    for (int c = 1; c < CHAINS; ++c) chain[0] += chain[c];
    *memory[t] = sum(chain[0]);  // else none of it need be computed
  });
  a.bytes = best([&](int64_t t) {
    float *from = memory[t].get(), *to = from + floats;
    rate[t] = 8.0 * floats / seconds([&] { std::memcpy(to, from, sizeof(float) * floats); });
  });
}

}  // namespace MIRL_ISA
