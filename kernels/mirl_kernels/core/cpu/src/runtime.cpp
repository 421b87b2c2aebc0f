// Runs programs: one kernel after the other, on the memory of a plan.
#include "runtime.h"

#include "registry.h"
#include "threads.h"

namespace mirl {
namespace {

MirlImage planes(const float* data, const InputSize& s) {
  const int64_t plane = s.height * s.width;
  return {const_cast<float*>(data), 3 * plane, plane, s.width};
}

// The calls of a plan.
class Calls {
  const MirlPlan& plan;
  const MirlProgram& program;
  const InstructionSet& set;
  const MirlImage input, result;
  const int64_t threads;

  MirlImage image(const ProgramSlice& slice, const MirlImage& outside) const {
    return slice.buffer < 0 ? outside : plan.image(slice);
  }

  void conv(const ProgramStep& s) const {
    const MirlSize to = plan.size_of(s.y);
    MirlConv a{image(s.x, input),
               image(s.y, result),
               {},
               plan.size_of(s.x),
               to.height,
               to.width,
               program.matrix(s.conv.weight),
               {0, 1},
               s.conv.stride,
               s.conv.stride,
               s.conv.shuffle,
               threads};
    if (s.y.buffer < 0) a.residual = input;
    set.conv(a);
  }

  void pointwise(const ProgramStep& s) const {
    MirlPointwise a{plan.image(s.x), plan.image(s.y), plan.size_of(s.x), program.matrix(s.pointwise.weight),
                    {0, 1},          threads};
    set.pointwise(a);
  }

  void prompt(const ProgramStep& s, int64_t scratch) const {
    const PromptWords& w = s.prompt;
    MirlPrompt a{plan.image(s.x),
                 plan.image(s.y),
                 plan.size_of(s.x),
                 program.floats(w.linear_weight),
                 program.floats(w.linear_bias),
                 program.floats(w.prompt_param),
                 w.count,
                 s.y.channels(),
                 w.side,
                 program.matrix(w.conv3x3),
                 plan.memory + scratch,
                 threads};
    set.prompt(a);
  }

  void block(const ProgramStep& s, int64_t scratch) const {
    const BlockWords& w = s.block;
    auto list = [&](int i) { return program.words + w.index[i]; };
    const MirlImage y = plan.image(s.y);
    MirlBlock a{{plan.image(s.x),
                 y,
                 plan.size_of(s.x),
                 program.matrix(w.qkv),
                 program.matrix(w.attention_dwconv),
                 program.matrix(w.attention_out),
                 program.floats(w.temperature),
                 w.attention_centred,
                 nullptr,
                 nullptr,
                 w.heads,
                 w.live[0],
                 w.live[1],
                 w.live[2],
                 list(0),
                 list(1),
                 list(2),
                 plan.memory + scratch,
                 nullptr,
                 w.bfloat16,
                 threads},
                y,
                program.matrix(w.project_in),
                program.matrix(w.dwconv),
                program.matrix(w.project_out),
                w.centred,
                threads};
    set.block(a);
  }

 public:
  Calls(const MirlPlan& plan, const InstructionSet& set, const float* input, float* result, int64_t threads)
      : plan(plan), program(plan.program), set(set), input(planes(input, plan.size)),
        result(planes(result, plan.size)), threads(threads) {}

  void run(int64_t i) const {
    const ProgramStep& s = program.steps()[i];
    switch (s.op) {
      case ProgramOp::conv: return conv(s);
      case ProgramOp::pointwise: return pointwise(s);
      case ProgramOp::prompt: return prompt(s, plan.scratch[i]);
      case ProgramOp::block: return block(s, plan.scratch[i]);
    }
  }
};

// About how much work a step is, per pixel of the image.
double work(const MirlProgram& p, const ProgramStep& s) {
  auto entries = [&](int32_t at) { return double(p.matrix(at)->entries); };
  double values = 0;
  if (s.op == ProgramOp::conv) values = entries(s.conv.weight) / (double(s.conv.stride) * s.conv.stride);
  if (s.op == ProgramOp::pointwise) values = entries(s.pointwise.weight);
  if (s.op == ProgramOp::prompt) values = entries(s.prompt.conv3x3);
  if (s.op == ProgramOp::block)
    for (const int32_t at : {s.block.qkv, s.block.attention_dwconv, s.block.attention_out, s.block.project_in,
                             s.block.dwconv, s.block.project_out})
      values += 2 * entries(at);  // with the attention
  return (values + double(s.x.channels() + s.y.channels())) / double(int64_t(1) << 2 * p.level(s.x));
}

}  // namespace

MirlStatus run_plan(MirlPlan& plan, const float* image, float* result, const RunOptions& options) {
  const MirlProgram& program = plan.program;
  const Calls calls(plan, *options.set, image, result, options.threads);
  const int64_t steps = program.header().steps;
  double total = 0, done = 0;
  for (int64_t i = 0; i < steps; ++i) total += work(program, program.steps()[i]);
  for (int64_t i = 0; i < steps; ++i) {
    const MirlStatus status = guarded([&] {
      calls.run(i);
      return MIRL_OK;
    });
    if (status != MIRL_OK) return status;
    done += work(program, program.steps()[i]);
    if (options.report(i + 1 == steps ? 1 : done / total)) return fail(MIRL_CANCELLED, "cancelled");
  }
  return MIRL_OK;
}

MirlStatus RunOptions::read(const MirlOptions* options) {
  const MirlOptions given = options ? *options : MirlOptions{};
  if (given.threads < 0 || given.max_bytes < 0)
    return fail(MIRL_BAD_ARGUMENT, "%lld threads and %lld bytes; expected 0 or more",
                static_cast<long long>(given.threads), static_cast<long long>(given.max_bytes));
  set = instruction_set(given.instruction_set);
  if (!set)
    return fail(MIRL_BAD_ARGUMENT, "instruction set %s is not known, or this processor lacks it",
                given.instruction_set ? given.instruction_set : "of MIRL_CPU_ISA");
  threads = given.threads ? given.threads : default_threads();
  max_bytes = given.max_bytes;
  progress = given.progress, context = given.context;
  return MIRL_OK;
}

}  // namespace mirl

MirlStatus mirl_run(MirlPlan* plan, const float* image, float* result, const MirlOptions* options) {
  if (!plan || !image || !result) return mirl::fail(MIRL_BAD_ARGUMENT, "an argument is null");
  mirl::RunOptions run;
  if (const MirlStatus status = run.read(options); status != MIRL_OK) return status;
  return mirl::run_plan(*plan, image, result, run);
}
