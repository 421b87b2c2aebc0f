// A compiled ticket as it lies in its file and in memory: 32-bit words, little-endian, so that the kernels
// read packed matrices where they are. Positions are in words from the file's beginning; those of matrices
// are multiples of 16, so that cache lines begin there. `mirl-sparse compile` writes it (program_file.py).
#pragma once
#include <exception>

#include "abi.h"
#include "mirl.h"

namespace mirl {

constexpr int32_t PROGRAM_VERSION = 1;
constexpr char PROGRAM_MAGIC[] = "MIRLPROG";

struct ProgramHeader {
  char magic[8];
  int32_t version;
  uint32_t words, checksum;  // of the whole file; CRC-32 of the words behind the checksum
  int32_t multiple;          // that sides of images are multiples of
  int32_t buffers, steps;    // how many there are
  int32_t reserved[7];
};  // then the buffers, then the steps

// An image of so many channels at 1/2^level of the input's height and width.
struct ProgramBuffer {
  int32_t channels, level;
};

// Channels first .. last of a buffer. Buffer -1 is the image as an input, and the result as an output.
struct ProgramSlice {
  int32_t buffer, first, last;

  int64_t channels() const { return last - first; }
};

enum class ProgramOp : int32_t { conv, pointwise, prompt, block };

struct ConvWords {
  int32_t weight, stride, shuffle;
};
struct PointwiseWords {
  int32_t weight;
};
struct PromptWords {
  int32_t linear_weight, linear_bias, prompt_param, conv3x3, count, side;
};
struct BlockWords {
  int32_t qkv, attention_dwconv, attention_out, temperature;
  int32_t index[3], live[3];  // of q, k and v: which channels are computed, and how many
  int32_t heads, attention_centred, bfloat16, project_in, dwconv, project_out, centred;
};

struct ProgramStep {
  ProgramOp op;
  ProgramSlice x, y;
  union {
    int32_t words[25];
    ConvWords conv;
    PointwiseWords pointwise;
    PromptWords prompt;
    BlockWords block;
  };
};
static_assert(sizeof(ProgramHeader) == 60 && sizeof(ProgramStep) == 128, "the file's layout");

// Keeps one line for mirl_message; returns `status`.
MirlStatus fail(MirlStatus status, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Calls f, which gives a MirlStatus; memory that runs out becomes one. (Builds for browsers have no
// exceptions.)
template <class F>
MirlStatus guarded(F&& f) {
#if __cpp_exceptions
  try {
    return f();
  } catch (const std::exception&) {
    return fail(MIRL_OUT_OF_MEMORY, "memory ran out");
  }
#else
  return f();
#endif
}

// Checks all that the kernels rely on, so that no file makes them read or write where they must not.
MirlStatus check_program(const MirlProgram& program);

}  // namespace mirl

struct MirlProgram {
  const int32_t* words = nullptr;
  int64_t size = 0;          // in words
  int32_t* owned = nullptr;  // the same memory, where the program has to free it

  const mirl::ProgramHeader& header() const { return *reinterpret_cast<const mirl::ProgramHeader*>(words); }
  const mirl::ProgramBuffer* buffers() const {
    return reinterpret_cast<const mirl::ProgramBuffer*>(words + sizeof(mirl::ProgramHeader) / 4);
  }
  const mirl::ProgramStep* steps() const {
    return reinterpret_cast<const mirl::ProgramStep*>(buffers() + header().buffers);
  }
  const MirlMatrix* matrix(int32_t at) const { return reinterpret_cast<const MirlMatrix*>(words + at); }
  const float* floats(int32_t at) const { return reinterpret_cast<const float*>(words + at); }
  // How often the sides of a slice are halved against the image.
  int64_t level(const mirl::ProgramSlice& s) const { return s.buffer < 0 ? 0 : buffers()[s.buffer].level; }
};
