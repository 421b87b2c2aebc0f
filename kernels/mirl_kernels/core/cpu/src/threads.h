// A pool of threads that lives as long as the process, and scratch memory that each thread keeps.
#pragma once
#include <cstddef>
#include <cstdint>

namespace mirl {

using Task = void (*)(void* context, int64_t index);

// Runs task(context, i) for i in [0, count) on up to `threads` threads, this one included. When another
// caller holds the pool, this one does all its work itself, so that callers never wait for each other.
void parallel_tasks(int64_t count, int64_t threads, Task task, void* context);

template <class F>
void parallel(int64_t count, int64_t threads, F& f) {
  parallel_tasks(count, threads, [](void* context, int64_t i) { (*static_cast<F*>(context))(i); }, &f);
}

// How many threads to use by default: what OMP_NUM_THREADS says, or as many as there are processors for this
// process.
int64_t default_threads();

// Memory for so many floats, in huge pages where the system has them. Where there is none, the second one
// returns null.
float* allocate(uint64_t floats);
float* try_allocate(uint64_t floats);
void give_back(void* memory);  // of these two, or null

// This thread's scratch memory of at least `floats`, 64-byte aligned. Each call gives the same memory.
float* scratch(uint64_t floats);

// The same for words, in memory of their own.
int32_t* word_scratch(uint64_t words);

// How many floats the second-level cache of a core holds; MIRL_L2_BYTES says otherwise.
int64_t second_level_floats();

}  // namespace mirl
