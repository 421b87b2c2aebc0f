// What the sources of the WebAssembly build share.
#pragma once

// A function mirl_web_NAME that JavaScript calls.
#define MIRL_WEB(name, Result) \
  extern "C" __attribute__((export_name("mirl_web_" #name))) Result mirl_web_##name

namespace mirl {

// Throws an error of JavaScript's, after which nothing here may be called any more: C++ has no exceptions
// here, so that nothing is tidied up.
[[noreturn]] void out_of_memory();

}  // namespace mirl
