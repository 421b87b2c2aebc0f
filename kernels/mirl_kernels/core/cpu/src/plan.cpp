#include "plan.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <numeric>

#include "shared_rules.h"
#include "threads.h"

namespace mirl {
namespace {

constexpr int64_t ALIGNMENT = 64;  // floats: every stretch begins at a multiple
constexpr int64_t MOST_PIXELS = int64_t(1) << 32;

}  // namespace

int64_t place(const std::vector<Lifetime>& lifetimes, std::vector<int64_t>* starts) {
  std::vector<size_t> order(lifetimes.size()), placed;
  std::iota(order.begin(), order.end(), size_t(0));
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return lifetimes[a].floats > lifetimes[b].floats; });
  starts->assign(lifetimes.size(), 0);
  int64_t length = 0;
  for (const size_t i : order) {
    int64_t& start = (*starts)[i];
    for (const size_t j : placed) {  // by address
      if (!lifetimes[i].overlaps(lifetimes[j])) continue;
      if ((*starts)[j] - start >= lifetimes[i].floats) break;
      start = std::max(start, (*starts)[j] + lifetimes[j].floats);
    }
    auto behind = [&](size_t j) { return (*starts)[j] > start; };
    placed.insert(std::find_if(placed.begin(), placed.end(), behind), i);
    length = std::max(length, start + lifetimes[i].floats);
  }
  return length;
}

MirlStatus check_size(const MirlProgram& program, const InputSize& size) {
  const int64_t multiple = program.header().multiple;
  const bool positive = size.batch > 0 && size.height > 0 && size.width > 0;
  const bool fits = positive && size.height <= MOST_PIXELS && size.width <= MOST_PIXELS / size.height &&
                    size.batch <= MOST_PIXELS / (size.height * size.width);
  if (!fits || size.height % multiple || size.width % multiple)
    return fail(MIRL_BAD_ARGUMENT,
                "images are (%lld, 3, %lld, %lld); expected 1 or more, with sides that are multiples of %lld",
                static_cast<long long>(size.batch), static_cast<long long>(size.height),
                static_cast<long long>(size.width), static_cast<long long>(multiple));
  return MIRL_OK;
}

}  // namespace mirl

using mirl::Lifetime;
using mirl::ProgramOp;
using mirl::ProgramSlice;
using mirl::ProgramStep;

MirlPlan::MirlPlan(const MirlProgram& program, const mirl::InputSize& size)
    : program(program), size(size), buffers(program.header().buffers), scratch(program.header().steps) {
  const int64_t steps = program.header().steps;
  std::vector<Lifetime> lifetimes(buffers.size(), {-1, -1, 0});
  auto use = [&](const ProgramSlice& s, int64_t step) {
    if (s.buffer < 0) return;
    const mirl::ProgramBuffer& b = program.buffers()[s.buffer];
    Lifetime& life = lifetimes[s.buffer];
    if (life.first < 0) life.first = step;
    life.last = step;
    life.floats = mirl::round_up(
        size.batch * size.height_at(b.level) * b.channels * mirl::padded(size.width_at(b.level)),
        mirl::ALIGNMENT);
  };
  for (int64_t i = 0; i < steps; ++i) {
    const ProgramStep& step = program.steps()[i];
    use(step.x, i), use(step.y, i);
    lifetimes.push_back({i, i, mirl::round_up(scratch_floats(step), mirl::ALIGNMENT)});
  }
  std::vector<int64_t> starts;
  floats = mirl::place(lifetimes, &starts);
  std::copy_n(starts.begin(), buffers.size(), buffers.begin());
  std::copy_n(starts.begin() + buffers.size(), steps, scratch.begin());
}

MirlPlan::~MirlPlan() { mirl::give_back(memory); }

int64_t MirlPlan::scratch_floats(const ProgramStep& step) const {
  const MirlSize s = size_of(step.x);
  if (step.op == ProgramOp::block) return step.block.live[2] * s.batch * s.height * mirl::padded(s.width);
  return step.op == ProgramOp::prompt ? step.y.channels() * s.batch * s.height * s.width : 0;
}

MirlSize MirlPlan::size_of(const ProgramSlice& slice) const {
  const int64_t level = program.level(slice);
  return {size.batch, slice.channels(), size.height_at(level), size.width_at(level), 0};
}

MirlImage MirlPlan::image(const ProgramSlice& slice) const {
  const mirl::ProgramBuffer& b = program.buffers()[slice.buffer];
  const int64_t channel = mirl::padded(size.width_at(b.level)), row = b.channels * channel;
  float* first = memory + buffers[slice.buffer] + slice.first * channel;
  return {first, size.height_at(b.level) * row, channel, row};
}

int64_t mirl_required_bytes(const MirlProgram* program, int64_t batch, int64_t height, int64_t width) {
  int64_t bytes = -1;
  mirl::guarded([&] {
    const mirl::InputSize size{batch, height, width};
    const MirlStatus status =
        program ? mirl::check_size(*program, size) : mirl::fail(MIRL_BAD_ARGUMENT, "the program is null");
    if (status == MIRL_OK) bytes = MirlPlan(*program, size).floats * int64_t(sizeof(float));
    return status;
  });
  return bytes;
}

MirlStatus mirl_plan(const MirlProgram* program, int64_t batch, int64_t height, int64_t width,
                     MirlPlan** plan) {
  if (!program || !plan) return mirl::fail(MIRL_BAD_ARGUMENT, "an argument is null");
  *plan = nullptr;
  const mirl::InputSize size{batch, height, width};
  if (const MirlStatus status = mirl::check_size(*program, size); status != MIRL_OK) return status;
  return mirl::guarded([&] {
    auto made = std::make_unique<MirlPlan>(*program, size);
    made->memory = mirl::try_allocate(made->floats);
    if (!made->memory)
      return mirl::fail(MIRL_OUT_OF_MEMORY, "the buffers for %lld images of %lldx%lld take %.1f GB",
                        static_cast<long long>(batch), static_cast<long long>(height),
                        static_cast<long long>(width), double(made->floats) * sizeof(float) / 1e9);
    *plan = made.release();
    return MIRL_OK;
  });
}

void mirl_free_plan(MirlPlan* plan) { delete plan; }
