// The pool of threads.h in WebAssembly. JavaScript makes the threads, Web Workers that share this memory, and
// each calls mirl_web_thread; there may be none.
#include <algorithm>
#include <atomic>

#include "threads.h"
#include "wasm.h"

namespace mirl {
namespace {

// Waits while `word` has this value. The engine never calls from a page's main thread, which may not wait.
void wait([[maybe_unused]] std::atomic<int32_t>& word, [[maybe_unused]] int32_t value) {
#ifdef __wasm_atomics__
  __builtin_wasm_memory_atomic_wait32(reinterpret_cast<int32_t*>(&word), value, -1);
#endif
}
void wake([[maybe_unused]] std::atomic<int32_t>& word, [[maybe_unused]] int64_t threads) {
#ifdef __wasm_atomics__
  __builtin_wasm_memory_atomic_notify(reinterpret_cast<int32_t*>(&word), uint32_t(threads));
#endif
}

// Ops follow each other so closely that a look or two thousand is cheaper than to sleep and to be woken.
constexpr int LOOKS = 2000;

struct Pool {
  static constexpr int32_t ACTIVE = 1 << 16, PLACES = ACTIVE - 1;
  std::atomic<int32_t> state{0};       // threads at work * ACTIVE + places for more of them
  std::atomic<int32_t> generation{0};  // counts what `run` was given
  std::atomic<bool> busy{false}, failed{false};
  Task task = nullptr;
  void* context = nullptr;
  int64_t count = 0;
  std::atomic<int64_t> next{0};

  void work() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i);
  }

  bool join() {
    int32_t old = state.load();
    while (old & PLACES)
      if (state.compare_exchange_weak(old, old + ACTIVE - 1)) return true;
    return false;
  }

  void leave() {
    if (state.fetch_sub(ACTIVE) == ACTIVE) wake(state, 1);
  }

  [[noreturn]] void serve() {
    for (int32_t seen = 0;;) {
      for (int look = 0; generation.load() == seen; ++look)
        if (look >= LOOKS) wait(generation, seen);
      seen = generation.load();
      if (!join()) continue;
      work();
      leave();
    }
  }

  void run(int64_t tasks, int64_t threads, Task f, void* c) {
    task = f, context = c, count = tasks;
    next.store(0);
    state.store(int32_t(std::min<int64_t>(threads - 1, PLACES)));
    generation.fetch_add(1);
    wake(generation, threads - 1);
    work();
    state.fetch_and(~PLACES);  // who has not begun by now has nothing left to do
    int32_t active;
    for (int look = 0; (active = state.load()); ++look)
      if (look >= LOOKS) wait(state, active);
    if (failed) out_of_memory();
  }
};

Pool pool;

}  // namespace

int64_t default_threads() { return 1; }  // JavaScript says how many threads there are

void parallel_tasks(int64_t count, int64_t threads, Task task, void* context) {
  if (threads > count) threads = count;
  if (threads > 1 && !pool.busy.exchange(true)) {
    pool.run(count, threads, task, context);
    pool.busy = false;
  } else {
    for (int64_t i = 0; i < count; ++i) task(context, i);
  }
}

}  // namespace mirl

// Does the pool's work for good. Its caller has given this thread a stack and thread-local memory.
MIRL_WEB(thread, void)() { mirl::pool.serve(); }

// To be called where mirl_web_thread has thrown: that is, in a task.
MIRL_WEB(thread_failed, void)() {
  mirl::pool.failed = true;
  mirl::pool.leave();
}
