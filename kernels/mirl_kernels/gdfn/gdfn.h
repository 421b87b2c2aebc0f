// GDFN in strips: the hidden channels never leave the second-level cache, the gate never the first.
#pragma once
#include "strips.h"

namespace MIRL_ISA {

// What follows the ring's hidden channels, all a, then all b: taps, gate, project_out. `emit` says what takes the rows
// of the result for n vectors at step.y + at[v].row and step.x0 + at[v].column.
template <class Emit>
inline void gate(const Strips& s, const Taps& taps, const MirlRows& project_out, const MirlImage& y, const Step& step, Emit&& emit) {
  constexpr int FEW = L == 16 ? 4 : 2;  // vectors whose taps and GELU fit the registers
  const int64_t pairs = taps.rows.rows / 2, channels = s.size.channels;
  float* gated = step.extra;
  const std::vector<Place> all = places(step.count, step.x1 - step.x0);
  grouped(all.size(), [&](int64_t first, int64_t n) {
    const Place* at = all.data() + first;
    Fetch to_write(y, step.b, channels, step.y, step.x0, at, n, pairs);
    for (int64_t j = 0; j < pairs; ++j) {
      to_write.share<1>();
      const float* hidden = step.hidden + j * s.hidden_stride;
      auto some = [&](int64_t v, auto few) {
        const int64_t slot = (step.slot + at[v].row) % s.slots;
        const float* in = hidden + at[v].column;
        Vec left[few], right[few];
        taps.panel<few>(j, slot, in, left);
        taps.panel<few>(pairs + j, slot, in + pairs * s.hidden_stride, right);
        for (int i = 0; i < few; ++i) store(gated + j * PANEL + (v + i) * L, gelu(left[i]) * right[i]);
      };
      for (int64_t v = 0; v < n;) {
        if (v + FEW <= n && at[v].row == at[v + FEW - 1].row) some(v, Vectors<FEW>{}), v += FEW;
        else if (v + 2 <= n && at[v].row == at[v + 1].row) some(v, Vectors<2>{}), v += 2;
        else some(v, Vectors<1>{}), v += 1;
      }
    }
    product(project_out, gated, n, emit(at, n));
  });
}

}  // namespace MIRL_ISA
