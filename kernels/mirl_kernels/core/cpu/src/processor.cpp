#include "processor.h"

#include <cstdint>

#ifdef __x86_64__
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace mirl {
namespace {

#ifdef __x86_64__
struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf = 0) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
  return r;
}

constexpr bool has(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }
constexpr unsigned bit(int n) { return 1u << n; }

// Whether the system saves these registers.
bool saves(unsigned state) {
  if (!has(cpuid(1).c, bit(27))) return false;
  unsigned low, high;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return has(low, state);
}

constexpr unsigned YMM = bit(1) | bit(2), ZMM = YMM | bit(5) | bit(6) | bit(7), TILES = bit(17) | bit(18);

bool granted() {
#ifdef __linux__
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // of arch_prctl
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}
#endif

}  // namespace

#ifdef __x86_64__
bool has_avx2() { return has(cpuid(1).c, bit(12)) && has(cpuid(7).b, bit(5)) && saves(YMM); }
bool has_avx512() {
  return has_avx2() && has(cpuid(7).b, bit(16) | bit(17) | bit(30) | bit(31)) && saves(ZMM);
}
bool has_avx512_bf16() { return has_avx512() && has(cpuid(7, 1).a, bit(5)); }
bool has_amx() { return has(cpuid(7).d, bit(22) | bit(24)) && saves(TILES) && granted(); }
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512_bf16() { return false; }
bool has_amx() { return false; }
#endif

}  // namespace mirl
