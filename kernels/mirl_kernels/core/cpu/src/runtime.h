// What mirl_run and mirl_restore share.
#pragma once
#include "plan.h"
#include "registry.h"

namespace mirl {

constexpr int64_t DEFAULT_BYTES = int64_t(1) << 30;

// MirlOptions, checked, with defaults filled in.
struct RunOptions {
  const InstructionSet* set = nullptr;
  int64_t threads = 1, max_bytes = 0;
  int (*progress)(void* context, double done) = nullptr;
  void* context = nullptr;
  double from = 0, share = 1;  // which part of the whole work this run is

  MirlStatus read(const MirlOptions* options);
  // Whether the caller asks to stop.
  bool report(double done) const { return progress && progress(context, from + share * done); }
};

// `result` may be `image`.
MirlStatus run_plan(MirlPlan& plan, const float* image, float* result, const RunOptions& options);

}  // namespace mirl
