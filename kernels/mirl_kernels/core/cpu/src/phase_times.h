// How long the phases of the ops take, in builds with MIRL_PHASE_TIMES (benchmarks/phases.py makes one);
// elsewhere `enter` is nothing.
#pragma once
#include <cstdint>

namespace mirl {

// What a thread is doing.
enum class Phase : int32_t {
  waiting,      // no task
  other,        // of a task
  norm,         // an image is read, and normalised
  expand,       // a 1x1 layer that makes hidden channels: the product, and what it stores in the ring
  qk_taps,      // q and k behind their taps
  v_taps,       // v behind its taps, stored
  gram,         // q times k
  attention,    // softmax, and what it is composed with
  apply,        // the attention of v, or what it is composed with, and the residual
  gate,         // GDFN's taps and gate
  project,      // project_out, and the residual
  convolution,  // k x k
  count
};

#ifdef MIRL_PHASE_TIMES
// Begins a phase on this thread: the time since the last call goes to the phase before.
void enter(Phase phase);
#else
inline void enter(Phase) {}
#endif

}  // namespace mirl
