// Images whose pixels have their channels side by side, as transformers lay out tokens: read into vectors of
// pixels, and written from them.
#pragma once
#include "strips.h"

namespace MIRL_ISA {

// emit(c, vector) for every channel of `valid` pixels, which are numbered as they lie in memory; zero behind
// them.
template <class Emit>
inline void read_pixels(const float* x, int64_t channels, const int64_t* pixel, int64_t valid, Emit&& emit) {
  for (int64_t c = 0; c < channels; c += L) {
    const int64_t count = std::min(L, channels - c);
    Vec block[L] = {};
    for (int64_t i = 0; i < valid; ++i) block[i] = load(x + pixel[i] * channels + c, Place{0, 0, count});
    transpose(block);
    for (int64_t j = 0; j < count; ++j) emit(c + j, block[j]);
  }
}

// Writes value(c) to channel c of `valid` pixels.
template <class Value>
inline void write_pixels(float* y, int64_t channels, const int64_t* pixel, int64_t valid, Value&& value) {
  for (int64_t c = 0; c < channels; c += L) {
    const int64_t count = std::min(L, channels - c);
    Vec block[L] = {};
    for (int64_t j = 0; j < count; ++j) block[j] = value(c + j);
    transpose(block);
    for (int64_t i = 0; i < valid; ++i) store(y + pixel[i] * channels + c, block[i], Place{0, 0, count});
  }
}

}  // namespace MIRL_ISA
