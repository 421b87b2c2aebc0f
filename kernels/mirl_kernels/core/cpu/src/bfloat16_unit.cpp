#include "bfloat16_unit.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__)
#define MIRL_FIND_UNITS
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mirl {
namespace {

#ifdef MIRL_FIND_UNITS
bool has_vector() {
  unsigned a, b, c, d;
  return __builtin_cpu_supports("avx512f") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & 1u << 5;
}

// Whether the processor has AMX, and the system saves its registers and grants them.
bool has_tiles() {
  constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24, OSXSAVE = 1u << 27, STATE = 3u << 17;
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (BF16 | TILE)) != (BF16 | TILE)) return false;
  asm("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return (a & STATE) == STATE && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#else
bool has_vector() { return false; }
bool has_tiles() { return false; }
#endif

std::atomic<bool> using_tiles{false};

Bfloat16Unit choose() {
  auto allows = [](const char* setting, const char* name) {
    const char* value = std::getenv(setting);
    return !value || !*value || !std::strcmp(value, name);
  };
  if (!allows("MIRL_CPU_ISA", "avx512")) return Bfloat16Unit::none;
  if (allows("MIRL_CPU_BFLOAT16", "tiles") && has_tiles()) {
    using_tiles = true;
    return Bfloat16Unit::tiles;
  }
  if (allows("MIRL_CPU_BFLOAT16", "vector") && has_vector()) return Bfloat16Unit::vector;
  return Bfloat16Unit::none;
}

}  // namespace

Bfloat16Unit bfloat16_unit() {
  static const Bfloat16Unit unit = choose();
  return unit;
}

#ifdef MIRL_FIND_UNITS
__attribute__((target("amx-tile"))) void begin_tiles() {
  if (!using_tiles.load(std::memory_order_relaxed)) return;
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } shapes;
  for (int tile = 0; tile < 8; ++tile) shapes.row_bytes[tile] = 64, shapes.rows[tile] = 16;
  asm volatile("" ::"r"(&shapes) : "memory");  // GCC does not know how much of it is read
  _tile_loadconfig(&shapes);
}

__attribute__((target("amx-tile"))) void end_tiles() {
  if (using_tiles.load(std::memory_order_relaxed)) _tile_release();
}
#else
void begin_tiles() {}
void end_tiles() {}
#endif

}  // namespace mirl
