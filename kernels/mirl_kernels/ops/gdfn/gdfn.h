// GDFN in strips: the hidden channels never leave the second-level cache, the gate never the first.
#pragma once
#include "strips.h"

namespace MIRL_ISA {

// What follows the ring's hidden channels, all a, then all b: taps, gate, project_out. `emit` says what takes
// the rows of the result for n vectors at step.y + at[v].row and step.x0 + at[v].column.
template <class Emit>
inline void gate(const Strips& s, const Taps& taps, const MirlRows& project_out, const MirlImage& y,
                 const Step& step, Emit&& emit) {
  const int64_t pairs = taps.rows.rows / 2, channels = s.size.channels;
  float* gated = step.extra;
  grouped(step.count, step.x1 - step.x0, [&](const Place* at, int64_t n) {
    const Tapped from(s, step, at, n);
    Fetch to_write(y, step.b, channels, step.y, step.x0, at, n, pairs);
    enter(Phase::gate);
    for (int64_t j = 0; j < pairs; ++j) {
      to_write.share<1>();
      runs<TAPPED>(at, n, [&](int64_t v, auto width) {
        Vec left[width], right[width];
        taps.pair<width>(j, pairs, from, v, left, right);
        for (int i = 0; i < width; ++i) store(gated + j * PANEL + (v + i) * L, gelu(left[i]) * right[i]);
      });
    }
    enter(Phase::project);
    product(project_out, gated, n, emit(at, n));
    enter(Phase::other);
  });
}

}  // namespace MIRL_ISA
