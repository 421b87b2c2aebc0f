#include "threads.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "bfloat16_unit.h"
#include "phase_times.h"

#ifdef __unix__
#include <dlfcn.h>
#include <pthread.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif

namespace mirl {
namespace {

void run_task(Task task, void* context, int64_t index) {
  struct Tiles {
    Tiles() { begin_tiles(); }
    ~Tiles() { end_tiles(); }
  } tiles;
  enter(Phase::other);
  task(context, index);
  enter(Phase::waiting);
}

// libgomp's entry point, where the process has that library: PyTorch's threads then do our work as well.
// Two pools would be in each other's way, since those who wait for work in libgomp's spin for milliseconds
// before they sleep.
using Team = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
Team find_team() {
#ifdef __unix__
  return reinterpret_cast<Team>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#else
  return nullptr;
#endif
}

struct Pool {
  Team team = find_team();
  std::mutex busy;  // held by the caller that uses the pool
  std::mutex lock;
  std::condition_variable wake, idle;
  std::vector<std::thread> workers;
  uint64_t generation = 0;
  int64_t wanted = 0, joined = 0, active = 0;
  Task task = nullptr;
  void* context = nullptr;
  int64_t count = 0;
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;  // of the first task that failed: memory ran out

  void work() {
    try {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) run_task(task, context, i);
    } catch (...) {
      next.store(count, std::memory_order_relaxed);
      std::lock_guard<std::mutex> held(lock);
      if (!failure) failure = std::current_exception();
    }
  }

  void serve() {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> held(lock);
    for (;;) {
      wake.wait(held, [&] { return generation != seen; });
      seen = generation;
      if (joined >= wanted) continue;
      ++joined, ++active;
      held.unlock();
      work();
      held.lock();
      if (--active == 0) idle.notify_one();
    }
  }

  void run(int64_t tasks, int64_t threads, Task f, void* c) {
    if (team) {
      task = f, context = c, count = tasks, failure = nullptr;
      next.store(0, std::memory_order_relaxed);
      team([](void* pool) { static_cast<Pool*>(pool)->work(); }, this, unsigned(threads), 0);
      if (failure) std::rethrow_exception(failure);
      return;
    }
    {
      std::lock_guard<std::mutex> held(lock);
      try {
        while (static_cast<int64_t>(workers.size()) < threads - 1) workers.emplace_back([this] { serve(); });
      } catch (const std::system_error&) {
        // The system gives no more threads: those that there are do the work.
      }
      task = f, context = c, count = tasks, wanted = threads - 1, joined = 0, failure = nullptr;
      next.store(0, std::memory_order_relaxed);
      ++generation;
    }
    wake.notify_all();
    work();
    std::unique_lock<std::mutex> held(lock);
    wanted = 0;  // who has not begun by now has nothing left to do
    idle.wait(held, [&] { return active == 0; });
    if (failure) std::rethrow_exception(failure);
  }
};

// Never destroyed: its threads may still wait on it while the process ends. A forked child has none
// of the threads, nor those that libgomp believes in, so it starts with a new pool.
Pool* pool = new Pool;
[[maybe_unused]] const int registered = [] {
#ifdef __unix__
  pthread_atfork(nullptr, nullptr, [] {
    pool = new Pool;
    pool->team = nullptr;
  });
#endif
  return 0;
}();

}  // namespace

void parallel_tasks(int64_t count, int64_t threads, Task task, void* context) {
  if (threads > count) threads = count;
  std::unique_lock<std::mutex> mine(pool->busy, std::defer_lock);
  if (threads > 1 && mine.try_lock()) {
    pool->run(count, threads, task, context);
  } else {
    for (int64_t i = 0; i < count; ++i) run_task(task, context, i);
  }
}

int64_t default_threads() {
  const char* setting = std::getenv("OMP_NUM_THREADS");
  if (const int threads = setting ? std::atoi(setting) : 0; threads > 0) return threads;
#ifdef __linux__
  cpu_set_t processors;
  if (!sched_getaffinity(0, sizeof processors, &processors)) return CPU_COUNT(&processors);
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace mirl
