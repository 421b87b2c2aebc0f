// The block of Swin transformers, window by window: each is read once, taken through attention and, where
// there is one, the feed-forward layer in panels that stay in the second-level cache, and written once.
// Vectors run over pixels throughout, so that softmax needs no sums within vectors: scores lie key by key.
#include "pixels.h"

namespace MIRL_ISA {
namespace {

// e^x for x <= 0; 0 below -87. A polynomial on [-ln 2 / 2, ln 2 / 2], Taylor's to the sixth power, is within
// 2e-7 of it.
inline Vec exponential(Vec x) {
  constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  const Vec clamped = vmax(x, all(-87.5f)), shifted = clamped * 1.44269504f + ROUND, power = shifted - ROUND;
  const Vec r = (clamped - power * 0.693359375f) + power * 2.12194440e-4f;
  Vec p = all(1.0f / 720);
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Int exponent = ((Int)shifted << 23) + (127 << 23);
  return x < all(-87.0f) ? Vec{} : p * (Vec)exponent;
}

// A dense matrix in float32, of which value (r, c) is at [r * row + c * column].
struct Matrix {
  const float* values;
  int64_t rows, columns, row, column;
};

// Four rows of a matrix times N vectors of each row of `in`.
template <int N>
__attribute__((always_inline)) inline void multiply_tile(const Matrix& m, int64_t r, const float* in,
                                                         int64_t stride, Vec* sums) {
  Vec total[4 * N] = {};
  const float* weight = m.values + r * m.row;
  for (int64_t c = 0; c < m.columns; ++c) {
    Vec x[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) x[v] = load(in + c * stride + v * L);
#pragma GCC unroll 16
    for (int i = 0; i < 4 * N; ++i) total[i] += weight[c * m.column + i / N * m.row] * x[i % N];
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4 * N; ++i) sums[i] = total[i];
}

// emit(row, first, Vectors<N>, sums) for a matrix times n vectors. What lies behind the last row, up to a
// multiple of four, is read.
template <class Emit>
inline void multiply(const Matrix& m, const float* in, int64_t stride, int64_t n, Emit&& emit) {
  for (int64_t r = 0; r < m.rows; r += 4)
    tiles(n, [&](int64_t first, auto wide) {
      Vec sums[4 * wide];
      multiply_tile<wide>(m, r, in + first * L, stride, sums);
      for (int64_t i = 0; i < std::min<int64_t>(4, m.rows - r); ++i)
        emit(r + i, first, wide, sums + i * wide);
    });
}

// Where the pixels of a window lie.
struct Window {
  std::vector<int64_t> pixel;  // of each, counted from the first of the batch
  std::vector<float> joined;   // whether its row and its column were joined on behind the others: 0 to 3
  bool divided = false;        // whether these differ
};

class Block {
  const MirlSwin& a;
  const MirlRows qkv = a.qkv->view(), project = a.project->view(), fc1 = a.fc1 ? a.fc1->view() : MirlRows{},
                 fc2 = a.fc2 ? a.fc2->view() : MirlRows{};
  const int64_t channels = a.size.channels, pixels = a.window * a.window,
                stride = round_up(pixels, PANEL),  // of a channel of a window
      across = a.size.width / a.window, down = a.size.height / a.window;
  const int64_t hidden = std::max(fc1.rows, project.columns);
  static constexpr int64_t GROUP = WIDE * L;  // pixels of a product

 public:
  explicit Block(const MirlSwin& a) : a(a) {}

  int64_t windows() const { return a.size.batch * across * down; }

  void run(int64_t index) const {
    // q, k and v; then, panel by panel, scores by keys, what attention or fc1 gives, and the result.
    float *qkv_of = mirl::scratch((qkv.rows + 4 + 2 * channels) * stride + (pixels + hidden) * PANEL),
          *x = qkv_of + (qkv.rows + 4) * stride, *normal = x + channels * stride,
          *scores = normal + channels * stride, *inner = scores + pixels * PANEL;
    const Window window = place(index);
    for (int64_t first = 0; first < pixels; first += GROUP) {
      const int64_t n = (std::min(GROUP, pixels - first) + L - 1) / L;
      read(window, first, n, x + panel(first), normal + panel(first));
      with_vectors(n, [&](auto v) { normalise<v>(channels, true, normal + panel(first), float(a.eps1)); });
      product(qkv, normal + panel(first), n, [&](int64_t r, int64_t begin, auto wide, const Vec* sums) {
        for (int v = 0; v < wide; ++v) {
          const int64_t at = r * stride + first + (begin + v) * L;
          store(qkv_of + at, a.added ? sums[v] + load(a.added + at) : sums[v]);
        }
      });
    }
    for (int64_t first = 0; first < pixels; first += GROUP) {
      const int64_t n = (std::min(GROUP, pixels - first) + L - 1) / L;
      for (int64_t h = 0; h < a.heads; ++h) attend(window, h, first, n, qkv_of, scores, inner);
      add_attention(n, x + panel(first), normal + panel(first), inner);
      if (a.fc1) feed_forward(n, x + panel(first), normal + panel(first), inner);
      write(window, first, n, x + panel(first));
    }
  }

 private:
  // Where the group that begins at a pixel lies: panels of all channels follow each other.
  int64_t panel(int64_t first) const { return first / PANEL * channels * PANEL + first % PANEL; }

  Window place(int64_t index) const {
    Window window;
    const int64_t b = index / (across * down), top = index / across % down * a.window,
                  left = index % across * a.window;
    for (int64_t i = 0; i < pixels; ++i) {
      const int64_t y = top + i / a.window + a.shift, x = left + i % a.window + a.shift;
      const bool below = y >= a.size.height, behind = x >= a.size.width;
      window.pixel.push_back((b * a.size.height + y - below * a.size.height) * a.size.width + x -
                             behind * a.size.width);
      window.joined.push_back(float(2 * below + behind));
      window.divided = window.divided || window.joined[i] != window.joined[0];
    }
    window.joined.resize(stride);
    return window;
  }

  // n vectors of pixels, into two panels.
  void read(const Window& window, int64_t first, int64_t n, float* x, float* normal) const {
    for (int64_t v = 0, at = first; v < n; ++v, at += L)
      read_pixels(a.x, channels, window.pixel.data() + at, std::min(L, pixels - at),
                  [&](int64_t c, Vec values) {
                    store(x + c * PANEL + v * L, values), store(normal + c * PANEL + v * L, values);
                  });
  }

  void write(const Window& window, int64_t first, int64_t n, const float* y) const {
    for (int64_t v = 0, at = first; v < n; ++v, at += L)
      write_pixels(a.y, channels, window.pixel.data() + at, std::min(L, pixels - at),
                   [&](int64_t c) { return load(y + c * PANEL + v * L); });
  }

  // A head's attention, of n vectors of pixels from `first` on.
  void attend(const Window& window, int64_t head, int64_t first, int64_t n, const float* qkv_of,
              float* scores, float* out) const {
    const int64_t depth = a.qk_start[head + 1] - a.qk_start[head], all_qk = a.qk_start[a.heads];
    const float *q = qkv_of + a.qk_start[head] * stride + first,
                *k = qkv_of + (all_qk + a.qk_start[head]) * stride,
                *v = qkv_of + (2 * all_qk + a.v_start[head]) * stride,
                *position = a.position + head * pixels * stride + first;
    const int64_t values = a.v_start[head + 1] - a.v_start[head];
    if (!values) return;
    Vec highest[WIDE];
    std::fill(highest, highest + WIDE, all(-INFINITY));
    multiply({k, pixels, depth, 1, stride}, q, stride, n,
             [&](int64_t key, int64_t at, auto wide, const Vec* sums) {
               for (int64_t i = at; i < at + wide; ++i) {
                 Vec score = sums[i - at] + load(position + key * stride + i * L);
                 if (window.divided)
                   score = load(window.joined.data() + first + i * L) == window.joined[key]
                               ? score
                               : score + float(a.masked);
                 highest[i] = vmax(highest[i], score);
                 store(scores + key * PANEL + i * L, score);
               }
             });
    Vec total[WIDE] = {};
    for (int64_t key = 0; key < pixels; ++key)
      for (int64_t i = 0; i < n; ++i) {
        const Vec weight = exponential(load(scores + key * PANEL + i * L) - highest[i]);
        total[i] += weight;
        store(scores + key * PANEL + i * L, weight);
      }
    for (int64_t i = 0; i < n; ++i) total[i] = 1.0f / total[i];
    multiply({v, values, pixels, stride, 1}, scores, PANEL, n,
             [&](int64_t r, int64_t at, auto wide, const Vec* sums) {
               for (int64_t i = at; i < at + wide; ++i)
                 store(out + (a.v_start[head] + r) * PANEL + i * L, sums[i - at] * total[i]);
             });
  }

  // The projection of what the heads gave, added to x, and once more into `normal`.
  void add_attention(int64_t n, float* x, float* normal, const float* inner) const {
    product(project, inner, n, [&](int64_t c, int64_t begin, auto wide, const Vec* sums) {
      for (int64_t v = begin; v < begin + wide; ++v) {
        const Vec value = sums[v - begin] + load(x + c * PANEL + v * L);
        store(x + c * PANEL + v * L, value), store(normal + c * PANEL + v * L, value);
      }
    });
  }

  // The second half, added to x, whose values `normal` has, too.
  void feed_forward(int64_t n, float* x, float* normal, float* inner) const {
    with_vectors(n, [&](auto v) { normalise<v>(channels, true, normal, float(a.eps2)); });
    product(fc1, normal, n, [&](int64_t r, int64_t begin, auto wide, const Vec* sums) {
      for (int v = 0; v < wide; ++v) store(inner + r * PANEL + (begin + v) * L, gelu(sums[v]));
    });
    product(fc2, inner, n, [&](int64_t c, int64_t begin, auto wide, const Vec* sums) {
      for (int64_t v = begin; v < begin + wide; ++v)
        store(x + c * PANEL + v * L, sums[v - begin] + load(x + c * PANEL + v * L));
    });
  }
};

}  // namespace

void swin(MirlSwin& a) {
  const Block block(a);
  const int64_t share = std::max<int64_t>(1, std::min<int64_t>(8, block.windows() / (4 * a.threads)));
  auto task = [&](int64_t t) {
    for (int64_t i = t * share; i < std::min(block.windows(), (t + 1) * share); ++i) block.run(i);
  };
  mirl::parallel((block.windows() + share - 1) / share, a.threads, task);
}

}  // namespace MIRL_ISA
