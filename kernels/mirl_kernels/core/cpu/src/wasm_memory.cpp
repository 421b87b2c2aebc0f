// malloc for WebAssembly, in place of Zig's: any thread may call it, what is given back becomes one piece
// again, and no size is rounded up to a power of two. Memory is what browsers have least of.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "shared_rules.h"
#include "wasm.h"

extern "C" unsigned char __heap_base;  // the linker's: memory is free from here on

namespace {

constexpr int64_t ALIGNMENT = 64, PAGE = 65536, MOST = int64_t(1) << 32;

// The header of a piece of memory. Pieces follow each other without gaps; no two that do are free.
struct Piece {
  uint32_t size;                     // with this header: a multiple of ALIGNMENT
  Piece* before;                     // in memory; null for the first one
  Piece *next_free, *previous_free;  // null where it is in use

  Piece* behind() { return reinterpret_cast<Piece*>(reinterpret_cast<unsigned char*>(this) + size); }
  bool is_free() const { return next_free; }
};
constexpr int64_t HEADER = sizeof(Piece);  // ends where the alignment begins

class Heap {
  Piece* last = nullptr;
  Piece free_list{0, nullptr, &free_list, &free_list};

  void add(Piece* p) {
    p->next_free = free_list.next_free, p->previous_free = &free_list;
    p->next_free->previous_free = free_list.next_free = p;
  }
  static void remove(Piece* p) {
    p->previous_free->next_free = p->next_free, p->next_free->previous_free = p->previous_free;
    p->next_free = p->previous_free = nullptr;
  }
  // Sets a piece's end, and tells the next one.
  void resize(Piece* p, uint32_t size, bool is_last) {
    p->size = size;
    if (is_last) last = p;
    else p->behind()->before = p;
  }
  // Makes a free piece from the last one's end to the memory's, less a header.
  void extend() {
    const int64_t base =
        mirl::round_up(reinterpret_cast<intptr_t>(&__heap_base) + HEADER, ALIGNMENT) - HEADER;
    Piece* p = last ? last->behind() : reinterpret_cast<Piece*>(base);
    p->before = last;
    last = p;
    p->size = uint32_t(int64_t(__builtin_wasm_memory_size(0)) * PAGE - HEADER - int64_t(uintptr_t(p)));
    give(p);
  }
  bool grow(int64_t size) {
    if (!last) extend();
    const int64_t missing = last->is_free() ? size - last->size : size;
    if (missing > 0 && int32_t(__builtin_wasm_memory_grow(0, (missing + PAGE - 1) / PAGE)) < 0) return false;
    if (missing > 0) extend();
    return true;
  }
  Piece* smallest(int64_t size) {
    Piece* found = nullptr;
    for (Piece* p = free_list.next_free; p != &free_list; p = p->next_free)
      if (p->size >= size && (!found || p->size < found->size)) found = p;
    return found;
  }

 public:
  void* take(size_t bytes) {
    const int64_t size = mirl::round_up(int64_t(bytes) + HEADER, ALIGNMENT);
    if (size >= MOST) return nullptr;
    Piece* p = smallest(size);
    if (!p && grow(size)) p = smallest(size);
    if (!p) return nullptr;
    remove(p);
    if (const uint32_t left = p->size - uint32_t(size)) {
      const bool is_last = p == last;
      p->size = uint32_t(size);
      Piece* rest = p->behind();
      rest->before = p;
      resize(rest, left, is_last);
      add(rest);
    }
    return p + 1;
  }

  void give(Piece* p) {
    if (p != last && p->behind()->is_free()) {
      Piece* behind = p->behind();
      remove(behind);
      resize(p, p->size + behind->size, behind == last);
    }
    if (p->before && p->before->is_free()) resize(p->before, p->before->size + p->size, p == last);
    else add(p);
  }
};

Heap heap;
std::atomic<bool> busy{false};

// Held for less time than it takes to sleep.
struct Lock {
  Lock() {
    while (busy.exchange(true, std::memory_order_acquire)) {
    }
  }
  ~Lock() { busy.store(false, std::memory_order_release); }
};

}  // namespace

extern "C" {

void* malloc(size_t bytes) {
  const Lock held;
  return heap.take(bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) {
  return alignment <= ALIGNMENT ? malloc(bytes) : nullptr;
}
void free(void* memory) {
  if (!memory) return;
  const Lock held;
  heap.give(static_cast<Piece*>(memory) - 1);
}
}

void* operator new(size_t bytes) {
  if (void* memory = malloc(bytes)) return memory;
  mirl::out_of_memory();
}
void* operator new[](size_t bytes) { return operator new(bytes); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return malloc(bytes); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return malloc(bytes); }
void operator delete(void* memory) noexcept { free(memory); }
void operator delete[](void* memory) noexcept { free(memory); }
void operator delete(void* memory, size_t) noexcept { free(memory); }
void operator delete[](void* memory, size_t) noexcept { free(memory); }
