// The C interface of the CPU kernels: pointers, sizes, strides and a thread count, nothing of PyTorch.
// All images are float32; pixel (y, x) of channel c of item b is at [b * batch + c * channel + y * row + x]. The kernels
// like it best when all channels of an image row lie together, at distances that `padded` (rows.h) gives.
#pragma once
#include <cstdint>

extern "C" {

// Channels of a panel of pixels (rows.h) lie so many floats apart.
#define MIRL_PANEL 64

// An entry of a sparse matrix. Its column is given as where that channel begins in a panel, in bytes: the innermost loop
// has no time to multiply.
struct MirlEntry {
  int32_t offset;
  float value;

  int64_t column() const { return offset / (4 * MIRL_PANEL); }
};

// A sparse matrix by rows. `bias` has one value per row, or is null. `dense`, where it is not null, holds the same matrix
// whole, for where that is faster: four rows at a time, value (r, c) at [(r / 4 * columns + c) * 4 + r % 4].
struct MirlRows {
  int64_t rows, columns;
  const int32_t* start;  // rows + 1 positions into entry
  const MirlEntry* entry;
  const float* bias;
  const float* dense;
};

struct MirlImage {
  float* data;
  int64_t batch, channel, row;  // floats from one to the next

  float* at(int64_t b, int64_t c, int64_t y, int64_t x) const { return data + b * batch + c * channel + y * row + x; }
};

struct MirlSize {
  int64_t batch, channels, height, width;
};

// y = x + project_out(GELU(a) * b), a, b = dwconv(project_in(normalised x)); hidden rows: all a, then all b.
struct MirlGdfn {
  MirlImage x, y;
  MirlSize size;
  MirlRows project_in, dwconv, project_out;
  int64_t threads;
};

// The live q, k and v channels are the rows of `qkv`, in this order; the *_index arrays hold their channels, head by head.
struct MirlMdta {
  MirlImage x, y;  // y may be x
  MirlSize size;
  MirlRows qkv, dwconv, project_out;
  const float* temperature;
  int64_t heads, q_count, k_count, v_count;
  const int32_t *q_index, *k_index, *v_index;
  float* scratch;  // batch * height * v_count * padded(width)
  int64_t threads;
};

struct MirlPointwise {
  MirlImage x, y;
  MirlSize size;
  MirlRows weight;
  int64_t threads;
};

// The weight is cut into chunks of columns. Of the columns in order, number i is weight column[i] = (channel * kernel +
// ky) * kernel + kx of the convolution: those that no output reads are left out. shuffle as in conv/reference.py.
struct MirlConv {
  MirlImage x, y, residual;  // residual.data may be null
  MirlSize size;
  const MirlRows* weight;
  int64_t chunks;
  const int32_t* column;
  int64_t kernel, shuffle, threads;
};

struct MirlPrompt {
  MirlImage x, y;
  MirlSize size;
  const float *linear_weight, *linear_bias, *prompt_param;
  int64_t count, channels, side;
  const MirlRows* conv3x3;  // as in MirlConv
  int64_t chunks;
  const int32_t* column;
  float* scratch;  // batch * channels * height * width
  int64_t threads;
};

// Not an op, but measured like one: what this machine can do at most, in operations and bytes a second.
struct MirlRoofline {
  int64_t threads;
  double flops, bytes;  // results
};
}

#define MIRL_OPS(X)        \
  X(gdfn, MirlGdfn)        \
  X(mdta, MirlMdta)        \
  X(pointwise, MirlPointwise) \
  X(conv, MirlConv)        \
  X(prompt, MirlPrompt)    \
  X(roofline, MirlRoofline)
