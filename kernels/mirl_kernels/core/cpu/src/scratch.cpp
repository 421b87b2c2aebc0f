// The memory that threads.h declares, on every system.
#include <cstdlib>
#include <new>

#include "threads.h"

#ifdef _WIN32
#include <malloc.h>
#endif
#ifdef __unix__
#include <unistd.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace mirl {
namespace {

#ifdef __wasm__
constexpr size_t ALIGNMENT = 64;
#else
constexpr size_t ALIGNMENT = size_t(1) << 21;  // of a huge page
#endif

struct Scratch {
  float* data = nullptr;
  uint64_t size = 0;
  ~Scratch() { give_back(data); }

  float* at_least(uint64_t floats) {
    if (floats > size) {
      give_back(data);
      data = nullptr, size = 0;
      data = allocate(floats), size = floats;
    }
    return data;
  }
};
thread_local Scratch thread_scratch, thread_words;

}  // namespace

float* try_allocate(uint64_t floats) {
  if (floats > (SIZE_MAX - ALIGNMENT) / sizeof(float)) return nullptr;
  const size_t bytes = (floats * sizeof(float) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
#ifdef _WIN32
  void* memory = _aligned_malloc(bytes, ALIGNMENT);
#else
  void* memory = std::aligned_alloc(ALIGNMENT, bytes);
#endif
#ifdef __linux__
  if (memory) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return static_cast<float*>(memory);
}

void give_back(void* memory) {
#ifdef _WIN32
  _aligned_free(memory);
#else
  std::free(memory);
#endif
}

float* allocate(uint64_t floats) {
  float* memory = try_allocate(floats);
  if (!memory) throw std::bad_alloc();
  return memory;
}

float* scratch(uint64_t floats) { return thread_scratch.at_least(floats); }

int32_t* word_scratch(uint64_t words) { return reinterpret_cast<int32_t*>(thread_words.at_least(words)); }

int64_t second_level_floats() {
  static const int64_t floats = [] {
    const char* setting = std::getenv("MIRL_L2_BYTES");
    long bytes = setting ? std::atol(setting) : 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    if (bytes <= 0) bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return int64_t(bytes > 0 ? bytes : 512 * 1024) / int64_t(sizeof(float));
  }();
  return floats;
}

}  // namespace mirl
