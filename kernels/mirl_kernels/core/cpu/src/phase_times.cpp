// What phase_times.h declares, in builds with MIRL_PHASE_TIMES.
#include "phase_times.h"

#include <atomic>
#include <chrono>

namespace mirl {
namespace {

std::atomic<int64_t> nanoseconds[int(Phase::count)];  // of all threads
thread_local Phase current = Phase::waiting;
thread_local std::chrono::steady_clock::time_point since = std::chrono::steady_clock::now();

}  // namespace

void enter(Phase phase) {
  const auto now = std::chrono::steady_clock::now();
  nanoseconds[int(current)] += (now - since).count();
  current = phase, since = now;
}

}  // namespace mirl

// Writes the nanoseconds of each phase to `to`, and begins anew.
extern "C" __attribute__((visibility("default"))) void mirl_phase_times(int64_t* to) {
  for (auto& phase : mirl::nanoseconds) *to++ = phase.exchange(0);
}
