// Calls ARM's kernels for a process of another processor: qemu-aarch64 server libmirl_cpu.so MEMORY.
//
// Each call comes through standard input, as a function and its arguments; its result goes through standard
// output. Pointers are those of the client, whose memory is missing here. So the first use of a page of it
// raises a signal, and the handler fetches the page from MEMORY, the descriptor of the client's
// /proc/self/mem, to the same address. After the call, the words that have changed are written back.
//
// A system call that is given a pointer fails instead, where its page was not fetched before.
#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {

constexpr int64_t PAGE = 4096, RUN = 16 * PAGE;  // bytes that are fetched at once, at most
constexpr int64_t MOST = int64_t(1) << 30;       // and in a call
constexpr int ARGUMENTS = 8;                     // as many as AArch64 passes in registers

using Function = int64_t (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);

struct Request {
  int64_t function;  // its address; 0 asks for the address of the function that the first argument names
  int64_t arguments[ARGUMENTS];
};

struct Run {  // of pages
  char* copy;
  int64_t bytes;
};

int memory;                 // the client's, as a file
int file;                   // of what was fetched; it is mapped twice:
char* copies;               // as it was fetched
std::map<char*, Run> runs;  // and as the kernels change it, at the client's addresses
int64_t used;               // bytes of the file
std::mutex lock;            // of runs; kernels have threads

off_t offset(const void* at) { return reinterpret_cast<off_t>(at); }

[[noreturn]] void fail(const char* what, const void* at) {
  std::fprintf(stderr, "ARM server: %s (address %p)\n", what, at);
  _exit(1);
}

bool is_fetched(char* at) {
  const auto next = runs.upper_bound(at);
  return next != runs.begin() && at < std::prev(next)->first + std::prev(next)->second.bytes;
}

// The signal handler. It may allocate: malloc uses no memory of the client, so it is never what was
// interrupted.
void fetch(int, siginfo_t* signal, void*) {
  std::lock_guard<std::mutex> held(lock);
  char* at = static_cast<char*>(signal->si_addr) - offset(signal->si_addr) % PAGE;
  if (is_fetched(at)) return;  // another thread was faster
  const auto next = runs.lower_bound(at);
  int64_t bytes = next == runs.end() ? RUN : std::min<int64_t>(RUN, next->first - at);
  if (used + bytes > MOST) fail("a call uses too much memory", at);
  bytes = pread(memory, copies + used, bytes, offset(at)) / PAGE * PAGE;
  if (bytes <= 0) fail("a kernel uses memory that neither it nor its caller has", signal->si_addr);
  // MAP_FIXED replaces what is there, so it comes second. Other threads then see the whole run or none of it.
  if (mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != at)
    fail("the server has memory of its own where its caller has some; run it again", at);
  if (mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, used) != at)
    fail("no memory is left", at);
  runs[at] = {copies + used, bytes};
  used += bytes;
}

// Only words that have changed, because other threads of the client may write what lies beside them.
void give_page_back(char* at, const char* copy) {
  constexpr int64_t WORD = sizeof(int32_t);
  auto changed = [&](int64_t i) { return i < PAGE && std::memcmp(at + i, copy + i, WORD); };
  for (int64_t end, begin = 0; begin < PAGE; begin = end + WORD) {
    for (end = begin; changed(end);) end += WORD;
    const int64_t bytes = end - begin;
    if (bytes && pwrite(memory, at + begin, bytes, offset(at + begin)) != bytes)
      fail("the caller's memory cannot be written", at + begin);
  }
}

void give_back() {
  for (const auto& [at, run] : runs) {
    for (int64_t i = 0; i < run.bytes; i += PAGE)
      if (std::memcmp(at + i, run.copy + i, PAGE)) give_page_back(at + i, run.copy + i);
    munmap(at, run.bytes);
  }
  runs.clear(), used = 0;
}

}  // namespace

// QEMU (7.2) goes on at a wrong instruction when `dc zva` lacks its page, and the C library's memset uses
// that. So this one, which the kernels call instead, fetches the pages first.
extern "C" void* memset(void* to, int value, size_t bytes) {
  static const auto in_libc = reinterpret_cast<decltype(&memset)>(dlsym(RTLD_NEXT, "memset"));
  const volatile char* first = static_cast<char*>(to);
  for (size_t i = 0; i < bytes; i += PAGE) static_cast<void>(first[i]);
  if (bytes) static_cast<void>(first[bytes - 1]);
  return in_libc(to, value, bytes);
}

int main(int count, char** values) {
  if (count != 3)
    fail("expected two arguments, the library and the descriptor of the client's memory", nullptr);
  void* library = dlopen(values[1], RTLD_NOW);
  if (!library) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  memory = std::atoi(values[2]);
  file = memfd_create("copies", 0);
  const int failure = ftruncate(file, MOST);
  void* mapped = mmap(nullptr, MOST, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (failure || mapped == MAP_FAILED) fail("no memory is left", nullptr);
  copies = static_cast<char*>(mapped);
  struct sigaction action = {};
  action.sa_sigaction = fetch, action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
  Request request;
  while (std::fread(&request, sizeof request, 1, stdin)) {
    const int64_t* a = request.arguments;
    const int64_t result =
        request.function
            ? reinterpret_cast<Function>(request.function)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7])
            : reinterpret_cast<int64_t>(dlsym(library, reinterpret_cast<const char*>(a[0])));
    give_back();
    std::fwrite(&result, sizeof result, 1, stdout);
    std::fflush(stdout);
  }
}
