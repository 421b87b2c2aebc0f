// The C interface of the CPU kernels: pointers, sizes, strides and a thread count, nothing of PyTorch.
// All images are float32; pixel (y, x) of channel c of item b is at [b * batch + c * channel + y * row + x].
// The kernels like it best when all channels of an image row lie together, at distances that `padded`
// (shared_rules.h) gives.
#pragma once
#include <cstdint>

extern "C" {

// Channels of a panel of pixels (rows.h) lie so many floats apart.
#define MIRL_PANEL 64

// An entry of a sparse matrix. Its column is given as where that channel begins in a panel, in bytes: the
// innermost loop has no time to multiply.
struct MirlEntry {
  int32_t offset;
  float value;

  int64_t column() const { return offset / (4 * MIRL_PANEL); }
};

// Two rows of a matrix that are computed together, the second of which may be -1, for none. There follow
// `shared` columns that both rows have, an offset and two values each, and `single` pairs of columns, one for
// each row, two offsets and two values each. Offsets are as in MirlEntry. Where a row has fewer columns,
// values are 0.
struct MirlRowPair {
  int32_t row[2], shared, single;

  const int32_t* columns() const { return reinterpret_cast<const int32_t*>(this + 1); }
};

// A sparse matrix by rows, or a chunk of one. `bias` has one value per row, or is null. `dense`, where it is
// not null, holds the same matrix whole, for where that is faster: four rows at a time, value (r, c) at
// [(r / 4 * columns + c) * 4 + r % 4]. `row_pairs`, where it is not null, holds it once more for the same
// reason: half as many pairs of rows, rounded up, in any order (MirlRowPair). `tiles`, where it is not null,
// holds it rounded to bfloat16, as the left side of a product by tiles (bfloat16.h), which is used then; it
// is padded with zeros to whole tiles.
struct MirlRows {
  int64_t rows, columns;
  const int32_t* start;  // rows + 1 positions into entry
  const MirlEntry* entry;
  const float* bias;
  const float* dense;
  const MirlRowPair* row_pairs;
  const int32_t* tiles;
};

// Which pixel a column of a convolution's matrix stands for: that of channel `channel` at a distance of rows
// and columns from the pixel that is computed. A convolution with strides reads the image taken apart into
// strides' x columns' phases: channel (c * stride_y + i) * stride_x + j has pixel (y * stride_y + i, x *
// stride_x + j) of channel c at (y, x).
struct MirlTap {
  int32_t channel, dy, dx;
};

// A chunk of a packed matrix: a range of rows by a range of columns. Positions are in words of the packed
// matrix, 0 for none.
struct MirlChunk {
  int32_t first_row, rows, columns, start, entry, bias, dense, row_pairs, tiles;
};

// A packed matrix, as `pack` (packed_matrix.py) writes it: this header, then its chunks, then what they name.
// Chunks of the same rows follow each other and are to be added up; `taps` has one MirlTap per column, chunk
// by chunk, or is 0.
struct MirlMatrix {
  int32_t rows, columns, entries, chunks, taps;

  const int32_t* words() const { return reinterpret_cast<const int32_t*>(this); }
  const MirlChunk& chunk(int64_t i) const { return reinterpret_cast<const MirlChunk*>(this + 1)[i]; }
  const MirlTap* tap() const { return reinterpret_cast<const MirlTap*>(words() + taps); }
  MirlRows view(int64_t i = 0) const {
    const MirlChunk& c = chunk(i);
    auto floats = [&](int32_t at) { return at ? reinterpret_cast<const float*>(words() + at) : nullptr; };
    return {c.rows,
            c.columns,
            c.start ? words() + c.start : nullptr,
            reinterpret_cast<const MirlEntry*>(words() + c.entry),
            floats(c.bias),
            floats(c.dense),
            c.row_pairs ? reinterpret_cast<const MirlRowPair*>(words() + c.row_pairs) : nullptr,
            c.tiles ? words() + c.tiles : nullptr};
  }
};

struct MirlImage {
  float* data;
  int64_t batch, channel, row;  // floats from one to the next

  float* at(int64_t b, int64_t c, int64_t y, int64_t x) const {
    return data + b * batch + c * channel + y * row + x;
  }
};

// `flat` is not 0 where rows are short, of 1, 2, 4, 8 or 16 pixels, and follow each other in memory: MDTA,
// GDFN, LeFF, NAFNet's block and gradients then may work on all of them as on one.
struct MirlSize {
  int64_t batch, channels, height, width, flat;
};

// y = x + project_out(GELU(a) * b), a, b = dwconv(project_in(normalised x)); hidden rows: all a, then all b.
// The norm subtracts the mean where `centred` is not 0.
struct MirlGdfn {
  MirlImage x, y;
  MirlSize size;
  const MirlMatrix *project_in, *dwconv, *project_out;
  int64_t centred;
  const float *gain, *offset;  // of the norm; null where they are folded into project_in
  int64_t threads;
};

// Its gradients: of x; of project_in, dwconv and project_out, one after the other as `spread` reads them; of
// gain and offset.
struct MirlGdfnBackward {
  MirlGdfn gdfn;  // whose y is not used
  MirlImage dy, dx;
  const MirlMatrix *project_in_transposed, *dwconv_flipped, *project_out_transposed;
  float *gradient, *d_gain, *d_offset;
  int64_t threads;
};

// The live q, k and v channels are the rows of `qkv`, in this order; the *_index arrays hold their channels,
// head by head.
struct MirlMdta {
  MirlImage x, y;  // y may be x
  MirlSize size;
  const MirlMatrix *qkv, *dwconv, *project_out;
  const float* temperature;
  int64_t centred;
  const float *gain, *offset;  // of the norm; null where they are folded into qkv
  int64_t heads, q_count, k_count, v_count;
  const int32_t *q_index, *k_index, *v_index;
  float* scratch;    // batch * height * v_count * padded(width): v
  double* sums;      // what training keeps, or null: each item's Gram matrices, q by k, padded to
                     // transposed_columns(k), and norms of q and k
  int64_t bfloat16;  // whether attention rounds what it multiplies
  int64_t threads;
};

// Its gradients, as for MirlGdfnBackward (qkv, dwconv, project_out), and those of the temperatures. `mdta`
// has what the forward call left in its scratch and sums; its y is not used.
struct MirlMdtaBackward {
  MirlMdta mdta;
  MirlImage dy, dx;
  const MirlMatrix *qkv_transposed, *dwconv_flipped, *project_out_transposed;
  float *gradient, *d_gain, *d_offset, *d_temperature;
  int64_t threads;
};

// MDTA of x (`mdta`, whose y is not used), then GDFN of that to y, which may be x.
struct MirlBlock {
  MirlMdta mdta;
  MirlImage y;
  const MirlMatrix *project_in, *dwconv, *project_out;
  int64_t centred, threads;
};

// NAFNet's block (naf/reference.py). Rows of conv1 and conv2: the first halves of all pairs that are
// computed, then the second ones; the first pairs are those that conv3 reads, scaled by sca's rows of all
// pairs' means. Rows of conv4: the two halves of each pair.
struct MirlNaf {
  MirlImage x, y;  // y may be x
  MirlSize size;
  const MirlMatrix *conv1, *conv2, *sca, *conv3, *conv4, *conv5;
  const float *gain1, *offset1, *gain2, *offset2, *beta, *gamma;  // null where folded into the matrices
  double eps1, eps2;
  float* scratch;  // batch * height * conv3's columns * padded(width): what conv3 reads, before it is scaled
  double* sums;    // what training keeps, or null: batch * pairs, the sums over the pixels of each pair
  int64_t threads;
};

// The block of Swin transformers, or its first half (swin/reference.py). Rows of qkv: the live q of all
// heads, scaled; their k; the live v of all heads, which are the columns of `project`. Gains and biases of
// the norms are folded into qkv and fc1.
struct MirlSwin {
  const float* x;                               // of a pixel the channels lie side by side
  float* y;                                     // the same; it may be x
  MirlSize size;                                // height and width: multiples of the window
  const MirlMatrix *qkv, *project, *fc1, *fc2;  // the last two are null for the first half alone
  const float* position;  // heads * window^2 keys * window^2 queries, padded to a multiple of MIRL_PANEL
  const float* added;     // to qkv's rows * the pixels of each window, padded likewise; or null
  const int32_t *qk_start, *v_start;  // heads + 1 each: where the live q and k of a head begin, and its v
  int64_t heads, window, shift;
  double masked, eps1, eps2;
  int64_t threads;
};

// y = x + linear2(GELU(dwconv(GELU(linear1(normalised x))))); gain and bias of the norm are folded into
// linear1.
struct MirlLeff {
  const float* x;  // of a pixel the channels lie side by side
  float* y;        // the same, in memory of its own
  MirlSize size;
  const MirlMatrix *linear1, *dwconv, *linear2;
  double eps;
  int64_t threads;
};

// A value for each row of a matrix, for each channel of a norm, and for each channel of beta and gamma.
struct MirlNafVectors {
  float *conv1, *conv2, *sca, *conv3, *conv4, *conv5;  // biases: not written where a matrix has none
  float *gain1, *offset1, *gain2, *offset2, *beta, *gamma;
};

// Its gradients, as for MirlGdfnBackward (of the six matrices in their order), and those of all vectors.
// `naf` has what the forward call left in its scratch and sums; its y, laid out as in that call, takes the
// gradient of x.
struct MirlNafBackward {
  MirlNaf naf;
  MirlImage dy;
  const MirlMatrix *conv1_transposed, *conv2_flipped, *conv3_transposed, *conv4_transposed, *conv5_transposed;
  float* gradient;
  MirlNafVectors vectors;
  int64_t threads;
};

// What happens to a result before it is stored: max(x, slope * x), 0 <= slope <= 1 (1: nothing), or GELU.
struct MirlActivation {
  int64_t gelu;
  double slope;
};

struct MirlPointwise {
  MirlImage x, y;
  MirlSize size;
  const MirlMatrix* weight;
  MirlActivation activation;
  int64_t threads;
};

// shuffle as in conv/reference.py; where the last of its pixels lie outside of y, they are left out.
struct MirlConv {
  MirlImage x, y, residual;  // residual.data may be null
  MirlSize size;             // of x
  int64_t height, width;     // of y
  const MirlMatrix* weight;
  MirlActivation activation;
  int64_t stride_y, stride_x, shuffle, threads;
};

// The gradient of the weights of a convolution without strides or groups, whose result is as large as x,
// chunk by chunk: of their entries, or all where a chunk is kept whole.
struct MirlConvBackward {
  MirlImage x, dy;
  MirlSize size;  // of x
  const MirlMatrix* weight;
  float* gradient;
  int64_t threads;
};

// Output channel c reads channel c / multiplier by its row of the matrix, whose taps all name channel phase
// (0 .. stride_y * stride_x).
struct MirlDepthwise {
  MirlImage x, y;
  MirlSize size;          // of x
  int64_t height, width;  // of y
  const MirlMatrix* weight;
  MirlActivation activation;
  int64_t multiplier, stride_y, stride_x, threads;
};

// y[b][t] = weight * x[b][t] + bias for every token t of every item. Of x, either the channels of a token lie
// side by side (x_channel is 1) or the tokens do (x_token is 1).
struct MirlLinear {
  const float* x;
  float* y;
  int64_t batch, tokens, x_batch, x_token, x_channel;
  const MirlMatrix* weight;
  MirlActivation activation;
  int64_t threads;
};

// A packed matrix in training, and the weight that its values come from. `source` says, chunk by chunk:
// of entries, the place of each in the weight; of a chunk kept whole, the places of its rows, what each
// column adds to them, the number of values that are pruned, and these (row * columns + column).
struct MirlWeight {
  MirlMatrix* packed;
  const int32_t* source;
  float* weight;
  const float* gradient;
  int64_t clear;  // floats of the weight that `spread` sets to zero first
};

// `fill` writes the values into the packed matrices. `spread` writes the weights' gradients (to `weight`)
// from what a backward kernel left in `gradient`: chunk by chunk those of the entries, or of all, rows
// transposed_columns(columns) apart (shared_rules.h).
struct MirlWeights {
  const MirlWeight* weights;
  int64_t count, threads;
};

// y[b][j][i] = x[b][i][j], i < rows, j < columns: no op, but what PyTorch takes long for.
struct MirlTranspose {
  const float* x;
  float* y;
  int64_t batch, rows, columns, x_batch, x_row, threads;
};

struct MirlPrompt {
  MirlImage x, y;
  MirlSize size;
  const float *linear_weight, *linear_bias, *prompt_param;
  int64_t count, channels, side;
  const MirlMatrix* conv3x3;
  float* scratch;  // batch * channels * height * width
  int64_t threads;
};

// Not an op, but measured like one: what this machine can do at most, in operations and bytes a second.
struct MirlRoofline {
  int64_t threads;
  double flops, bytes;  // results
};
}

// The ops that steps of programs call.
#define MIRL_PROGRAM_OPS(X)   \
  X(block, MirlBlock)         \
  X(pointwise, MirlPointwise) \
  X(conv, MirlConv)           \
  X(prompt, MirlPrompt)

// Builds that only run programs (web.py) leave out the rest.
#ifdef MIRL_PROGRAMS_ONLY
#define MIRL_OPS(X) MIRL_PROGRAM_OPS(X)
#else
#define MIRL_OPS(X)                  \
  MIRL_PROGRAM_OPS(X)                \
  X(gdfn, MirlGdfn)                  \
  X(mdta, MirlMdta)                  \
  X(naf, MirlNaf)                    \
  X(swin, MirlSwin)                  \
  X(leff, MirlLeff)                  \
  X(depthwise, MirlDepthwise)        \
  X(linear, MirlLinear)              \
  X(transpose, MirlTranspose)        \
  X(gdfn_backward, MirlGdfnBackward) \
  X(mdta_backward, MirlMdtaBackward) \
  X(naf_backward, MirlNafBackward)   \
  X(conv_backward, MirlConvBackward) \
  X(fill, MirlWeights)               \
  X(spread, MirlWeights)             \
  X(roofline, MirlRoofline)
#endif
