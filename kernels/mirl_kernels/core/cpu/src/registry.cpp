// Chooses the instruction set once, at load time, and forwards each call to its build.
#include "registry.h"

#include <cstdlib>
#include <cstring>
#include <exception>

#include "bfloat16_unit.h"
#include "processor.h"
#include "shared_rules.h"
#include "threads.h"

#ifdef _WIN32
#define MIRL_EXPORT extern "C" __declspec(dllexport)
#else
#define MIRL_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#define MIRL_DECLARE(op, Args) void op(Args&);
namespace portable {
MIRL_OPS(MIRL_DECLARE)
}
#ifdef MIRL_LANES_avx2
namespace avx2 {
MIRL_OPS(MIRL_DECLARE)
}
#endif
#ifdef MIRL_LANES_avx512
namespace avx512 {
MIRL_OPS(MIRL_DECLARE)
}
#endif

namespace {

#define MIRL_ENTRY_portable(op, Args) portable::op,
#define MIRL_ENTRY_avx2(op, Args) avx2::op,
#define MIRL_ENTRY_avx512(op, Args) avx512::op,

const mirl::InstructionSet sets[] = {
// best first
#ifdef MIRL_LANES_avx512
    {"avx512", MIRL_LANES_avx512, mirl::has_avx512(), MIRL_OPS(MIRL_ENTRY_avx512)},
#endif
#ifdef MIRL_LANES_avx2
    {"avx2", MIRL_LANES_avx2, mirl::has_avx2(), MIRL_OPS(MIRL_ENTRY_avx2)},
#endif
    {"portable", MIRL_LANES_portable, true, MIRL_OPS(MIRL_ENTRY_portable)},
};

const mirl::InstructionSet* find(const char* name) {
  for (const mirl::InstructionSet& set : sets)
    if (set.supported && (!name || !*name || !std::strcmp(name, set.name))) return &set;
  return nullptr;
}
// MIRL_CPU_ISA forces one; a name that this machine cannot run gives none, and the caller says so.
const mirl::InstructionSet* chosen = find(std::getenv("MIRL_CPU_ISA"));

}  // namespace

const mirl::InstructionSet* mirl::instruction_set(const char* name) { return name ? find(name) : chosen; }

// The name of the build in use, or null when MIRL_CPU_ISA asks for one that cannot run here.
MIRL_EXPORT const char* mirl_isa() { return chosen ? chosen->name : nullptr; }

MIRL_EXPORT int64_t mirl_default_threads() { return mirl::default_threads(); }

// What the Python side must lay out, or predict, as the kernels do.
MIRL_EXPORT int64_t mirl_padded(int64_t floats) { return mirl::padded(floats); }
MIRL_EXPORT int64_t mirl_transposed_columns(int64_t channels) { return mirl::transposed_columns(channels); }
MIRL_EXPORT int64_t mirl_panel_vectors() { return mirl::panel_vectors(chosen->lanes); }
MIRL_EXPORT int64_t mirl_bfloat16_unit() { return int64_t(mirl::bfloat16_unit()); }
MIRL_EXPORT int64_t mirl_row_pairs_are_fast() { return mirl::row_pairs_are_fast(chosen->lanes); }
MIRL_EXPORT int64_t mirl_conv_reads_ring(int64_t entries, int64_t columns) {
  return mirl::conv_reads_ring(chosen->lanes, entries, columns);
}
MIRL_EXPORT int64_t mirl_mdta_is_composed(int64_t channels, int64_t heads, int64_t live_v, int64_t entries,
                                          int64_t dense, int64_t pixels) {
  return mirl::mdta_is_composed(channels, heads, live_v, entries, dense != 0, pixels);
}

// How many bytes the arguments of an op take here, that a caller may compare with its idea of them.
#define MIRL_SIZE(op, Args) \
  MIRL_EXPORT int64_t mirl_##op##_bytes() { return sizeof(Args); }
MIRL_OPS(MIRL_SIZE)

// 0, or 1 when memory ran out.
#define MIRL_FORWARD(op, Args)            \
  MIRL_EXPORT int mirl_##op(Args* args) { \
    try {                                 \
      chosen->op(*args);                  \
      return 0;                           \
    } catch (const std::exception&) {     \
      return 1;                           \
    }                                     \
  }
MIRL_OPS(MIRL_FORWARD)
