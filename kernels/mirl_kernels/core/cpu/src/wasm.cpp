// What JavaScript (engine.js) calls, and what the system's library does otherwise, or not at all, in
// WebAssembly. The build has no exceptions: `throw` ends the module.
#include <algorithm>
#include <cstdlib>

#include "mirl.h"
#include "shared_rules.h"
#include "threads.h"
#include "wasm.h"

#define MIRL_IMPORT(name) __attribute__((import_module("mirl"), import_name(#name)))

extern "C" {
MIRL_IMPORT(progress) int mirl_import_progress(double done);
MIRL_IMPORT(out_of_memory) void mirl_import_out_of_memory();
}

void mirl::out_of_memory() {
  mirl_import_out_of_memory();
  __builtin_trap();
}

extern "C" {

// Only memory that ran out is ever thrown.
void* __cxa_allocate_exception(size_t) noexcept { mirl::out_of_memory(); }
[[noreturn]] void __cxa_throw(void*, void*, void (*)(void*)) { __builtin_trap(); }
// Of the system's calls, what the library still makes: there are no environment variables, and abort() ends
// the module.
int32_t __imported_wasi_snapshot_preview1_environ_sizes_get(size_t* count, size_t* bytes) {
  *count = *bytes = 0;
  return 0;
}
int32_t __imported_wasi_snapshot_preview1_environ_get(char**, char*) { return 0; }
void __imported_wasi_snapshot_preview1_proc_exit(int32_t) { __builtin_trap(); }
// Modules do not end otherwise, nor do their threads.
int __cxa_atexit(void (*)(void*), void*, void*) noexcept { return 0; }
int __cxa_thread_atexit(void (*)(void*), void*, void*) noexcept { return 0; }
}

MIRL_WEB(allocate, void*)(size_t bytes) { return std::malloc(bytes); }
MIRL_WEB(free, void)(void* memory) { std::free(memory); }
MIRL_WEB(message, const char*)() { return mirl_message(); }

// Gives null for what is no program.
MIRL_WEB(load, MirlProgram*)(const void* data, size_t bytes) {
  MirlProgram* program = nullptr;
  return mirl_load(data, bytes, &program) == MIRL_OK ? program : nullptr;
}
MIRL_WEB(unload, void)(MirlProgram* program) { mirl_free(program); }

namespace {

// Bytes for the whole image in one tile, or -1.
int64_t required(const MirlProgram* program, int64_t height, int64_t width) {
  const int64_t multiple = mirl_multiple(program);
  return mirl_required_bytes(program, 1, mirl::round_up(height, multiple), mirl::round_up(width, multiple));
}

// How much of `bytes` there is, beside what the kernels' own memory and the photo's pixels may take. Within a
// factor of two: less memory makes smaller tiles.
int64_t there_is(int64_t bytes) {
  constexpr int64_t BESIDE = 32 << 20;
  for (; bytes > 0; bytes /= 2) {
    float* memory = mirl::try_allocate(uint64_t(bytes + bytes / 4 + BESIDE) / sizeof(float));
    mirl::give_back(memory);
    if (memory) break;
  }
  return bytes;
}

}  // namespace

// As numbers that JavaScript has without BigInt.
MIRL_WEB(required_bytes, double)(const MirlProgram* program, int32_t height, int32_t width) {
  return double(required(program, height, width));
}

// Restores interleaved RGBA of 8 bits where it lies. 0 for `max_bytes`: the runtime's default.
MIRL_WEB(restore, MirlStatus)(const MirlProgram* program, void* rgba, int32_t height, int32_t width,
                              double strength, double max_bytes, int32_t threads) {
  MirlOptions options{};
  options.threads = threads;
  options.progress = [](void*, double done) { return mirl_import_progress(done); };
  const int64_t whole = required(program, height, width), most = max_bytes > 0 ? max_bytes : int64_t(1) << 30;
  const int64_t wanted = whole > 0 ? std::min(whole, most) : most, given = there_is(wanted);
  options.max_bytes = given < wanted ? std::max<int64_t>(given, 1) : most;
  const MirlPhoto photo{rgba, height, width, 4, 8, int64_t(width) * 4};
  return mirl_restore(program, &photo, rgba, strength, &options);
}
