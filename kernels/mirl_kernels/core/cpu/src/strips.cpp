// What strips.h declares: how an image is cut, and how its strips run.
#include "strips.h"

namespace MIRL_ISA {

std::vector<Place> places(int64_t rows, int64_t columns) {
  std::vector<Place> all;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < columns; c += L) all.push_back({i, c, std::min(L, columns - c)});
  return all;
}

void transpose_tile(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows,
                    int64_t columns) {
  Vec block[L] = {};
  for (int64_t i = 0; i < rows; ++i) block[i] = load(from + i * from_stride, Place{0, 0, columns});
  transpose(block);
  for (int64_t j = 0; j < columns; ++j) store(to + j * to_stride, block[j], Place{0, 0, rows});
}

Strips::Strips(const MirlSize& s, int64_t hidden, int64_t threads, const Reach& reach, int64_t source_height,
               int64_t source_width)
    : size(s), hidden(hidden), reach(reach), source_height(source_height), source_width(source_width) {
  const int64_t rows = reach.above + 1 + reach.below, sideways = reach.left + reach.right;
  margin = round_up(std::max<int64_t>(1, std::max(reach.left, reach.right)), 16);
  // A group costs its vectors and a part more; a strip that takes more than half of the second-level cache,
  // through which the image passes too, costs a little, halos and small groups cost much.
  auto groups = [](int64_t columns) {
    const int64_t n = (columns + L - 1) / L;
    return n + 0.75 * double((n + WIDE - 1) / WIDE);
  };
  double best = 1e30;
  for (int64_t n = 1; n <= (s.flat ? 1 : (s.width + 15) / 16); ++n) {
    const int64_t w = (s.width + n - 1) / n, computed = n == 1 ? w : w + sideways;
    const double floats = double(hidden * rows * (round_up(computed, L) + margin));
    const double cached = floats / double(mirl::second_level_floats());
    const double cost = double(n) * (groups(computed) + groups(w)) * (1 + 0.1 * std::max(0.0, cached - 0.5));
    if (cost < best) best = cost, across = n, width = w;
  }
  across = (s.width + width - 1) / width;
  // Where taps reach behind a row of the ring, they meet the next one's margin, which is zero.
  const int64_t whole = std::max(width, std::min(width + reach.right, source_width));
  const int64_t computed = round_up(across == 1 ? whole : width + sideways, L);
  step = std::max<int64_t>(1, std::min(s.height, PANEL / computed));
  slots = step + rows - 1;
  pitch = round_up(computed + margin, 16);
  hidden_stride = slots * pitch + margin;
  if (hidden_stride / 16 % 2 == 0)
    hidden_stride += 16;  // an odd number of cache lines: channels meet in no set
  best = 1e30;
  for (int64_t n = 1; n <= std::max<int64_t>(1, std::min(4 * threads, s.height / 4)); ++n) {
    const int64_t waves = (s.batch * across * n + threads - 1) / threads;
    const double cost = double(waves) * (double((s.height + n - 1) / n) + double(rows - 1));
    if (cost < best) best = cost, down = n;
  }
}

Part Strips::part(int64_t task) const {
  Part p;
  p.task = task, p.b = task / (across * down);
  p.x0 = task % across * width, p.x1 = std::min(p.x0 + width, size.width);
  p.first = std::max<int64_t>(p.x0 - reach.left, 0);
  p.last = std::max(p.first, std::min(p.x1 + reach.right, source_width));
  const int64_t i = task / across % down;
  p.top = size.height * i / down, p.bottom = size.height * (i + 1) / down;
  return p;
}

namespace {

// The hidden rows of one task: fills the ring with them.
class Ring {
  const Strips& s;
  const Part& part;
  const FunctionRef<Filling>& fill;
  float *const panel, *const hidden;
  const int64_t row_vectors = (part.last - part.first + L - 1) / L;
  const std::vector<Place> all = places(s.slots, part.last - part.first);

 public:
  // `panel` is the filler's scratch memory; `hidden` has room for the ring.
  Ring(const Strips& s, const Part& part, const FunctionRef<Filling>& fill, float* panel, float* hidden)
      : s(s), part(part), fill(fill), panel(panel), hidden(hidden) {
    std::memset(hidden, 0, sizeof(float) * (s.hidden * s.hidden_stride + s.margin));
  }

  // Hidden rows y .. y + count into the ring from `slot` on; zero outside the image, as the padding is.
  void fill_rows(int64_t y, int64_t count, int64_t slot) {
    for (; count && y < 0; ++y, --count, ++slot) {
    }  // zero from the start
    const int64_t inside = std::max<int64_t>(0, std::min(count, s.source_height - y)),
                  vectors = inside * row_vectors;
    grouped(vectors, [&](int64_t from, int64_t n) {
      Filling f{part, part.b, y, part.first, all.data() + from, n, {}, panel, 0, 0, nullptr, true};
      for (int64_t v = 0; v < n; ++v) {
        f.whole = f.whole && f.at[v].valid == L;
        f.to[v] = hidden + (slot + f.at[v].row) % s.slots * s.pitch + s.margin + f.at[v].column;
      }
      f.next_y = y, f.next_n = std::min(n, vectors - from - n), f.next_at = all.data() + from + n;
      if (f.next_n == 0)
        f.next_y = std::min(y + s.step, s.source_height - inside), f.next_n = n, f.next_at = all.data();
      fill(f);
    });
    for (int64_t i = inside; i < count; ++i) clear(slot + i);
  }

 private:
  void clear(int64_t slot) {
    for (int64_t h = 0; h < s.hidden; ++h)
      std::memset(hidden + h * s.hidden_stride + slot % s.slots * s.pitch, 0, sizeof(float) * s.pitch);
  }
};

}  // namespace

void run_strips(const Strips& s, const Items& items, int64_t panel_floats, int64_t extra, int64_t threads,
                FunctionRef<Filling> fill, FunctionRef<Step> consume) {
  const int64_t per_item = s.across * s.down;
  panel_floats = round_up(panel_floats, 16);
  auto task = [&](int64_t i) {
    const Part part = s.part(items.first * per_item + i);
    const int64_t ring_floats = s.hidden * s.hidden_stride + s.margin;
    float* panel = mirl::scratch(panel_floats + ring_floats + extra);
    float *hidden = panel + panel_floats, *consumer_memory = hidden + ring_floats;
    Ring ring(s, part, fill, panel, hidden);
    const int64_t ahead = s.reach.above + s.reach.below;
    int64_t slot = 0;
    for (int64_t y = part.top; y < part.bottom; y += s.step) {
      const int64_t count = std::min(s.step, part.bottom - y);
      if (y == part.top) ring.fill_rows(y - s.reach.above, ahead + count, 0);
      else ring.fill_rows(y + s.reach.below, count, slot + ahead);
      consume(Step{part.task, part.b, y, count, part.x0, part.x1, y == part.top, y + count == part.bottom,
                   slot, hidden + s.margin + part.x0 - part.first, consumer_memory});
      slot = (slot + count) % s.slots;
    }
  };
  mirl::parallel(items.count * per_item, threads, task);
}

void run_strips(const Strips& s, int64_t panel_floats, int64_t extra, int64_t threads,
                FunctionRef<Filling> fill, FunctionRef<Step> consume) {
  run_strips(s, Items{0, s.size.batch}, panel_floats, extra, threads, fill, consume);
}

void FillNormalised::operator()(const Filling& f) const {
  const int64_t channels = s.size.channels;
  enter(Phase::norm);
  with_vectors(f.n, [&](auto n) {
    gather<n>(x, f.b, channels, f.y, f.x, f.at, f.panel);
    normalise<n>(channels, centred, f.panel, eps);
    if (gain) scale_and_shift<n>(channels, f.panel, gain, offset, f.panel);
  });
  Fetch next(x, f.b, channels, f.next_y, f.x, f.next_at, f.next_n, s.hidden);
  enter(Phase::expand);
  product(pointwise, f.panel, f.n, [&](int64_t h, int64_t begin, auto width, const Vec* sums) {
    if (begin == 0) next.template share<0>();
    f.store_hidden(h, s.hidden_stride, begin, width, sums);
  });
  enter(Phase::other);
}

}  // namespace MIRL_ISA
