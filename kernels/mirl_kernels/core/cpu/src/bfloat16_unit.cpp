#include "bfloat16_unit.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "processor.h"

#ifdef MIRL_BFLOAT16_UNITS
#include <immintrin.h>
#endif

namespace mirl {
namespace {

[[maybe_unused]] std::atomic<bool> using_tiles{false};

Bfloat16Unit choose() {
  auto allows = [](const char* setting, const char* name) {
    const char* value = std::getenv(setting);
    return !value || !*value || !std::strcmp(value, name);
  };
  if (!allows("MIRL_CPU_ISA", "avx512")) return Bfloat16Unit::none;
#ifdef MIRL_BFLOAT16_UNITS
  if (allows("MIRL_CPU_BFLOAT16", "tiles") && has_amx()) {
    using_tiles = true;
    return Bfloat16Unit::tiles;
  }
  if (allows("MIRL_CPU_BFLOAT16", "vector") && has_avx512_bf16()) return Bfloat16Unit::vector;
#endif
  return Bfloat16Unit::none;
}

}  // namespace

Bfloat16Unit bfloat16_unit() {
  static const Bfloat16Unit unit = choose();
  return unit;
}

#ifdef MIRL_BFLOAT16_UNITS
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
