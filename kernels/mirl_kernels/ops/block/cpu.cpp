// A whole transformer block: pass two of its MDTA fills the ring of its GDFN, so that what lies between the
// two never goes to memory. The ring holds it as well, behind the hidden channels, for GDFN's residual.
#include "../gdfn/gdfn.h"
#include "../mdta/mdta.h"

namespace MIRL_ISA {
namespace {

// The pixels of x around those of each task, which the tasks beside it may have overwritten when they are
// read: the rows above and below, and the columns left and right.
class Surroundings {
  const int64_t channels, pitch, floats;
  std::vector<float> saved;

  float* rows(const Part& p) { return saved.data() + p.task * floats; }
  float* columns(const Part& p) { return rows(p) + 2 * channels * pitch; }

 public:
  Surroundings(const Strips& s, const MirlImage& x, int64_t channels, int64_t threads)
      : channels(channels), pitch(round_up(s.width + 2, L) + L),
        floats(2 * channels * (pitch + (s.size.height + s.down - 1) / s.down)), saved(s.tasks() * floats) {
    auto save = [&](int64_t t) {
      const Part p = s.part(t);
      for (int side = 0; side < 2; ++side) {
        const int64_t y = side ? p.bottom : p.top - 1, column = side ? p.x1 : p.x0 - 1;
        for (int64_t c = 0; c < channels; ++c) {
          if (y >= 0 && y < s.size.height)
            std::memcpy(rows(p) + (side * channels + c) * pitch, x.at(p.b, c, y, p.first),
                        sizeof(float) * (p.last - p.first));
          if (column >= p.first && column < p.last)
            for (int64_t i = p.top; i < p.bottom; ++i)
              columns(p)[((i - p.top) * 2 + side) * channels + c] = *x.at(p.b, c, i, column);
        }
      }
    };
    mirl::parallel(s.tasks(), threads, save);
  }

  // Row top - 1 or bottom of a task, all channels at a distance of `stride`.
  const float* row(const Part& p, int64_t y, int64_t* stride) {
    *stride = pitch;
    return rows(p) + (y < p.top ? 0 : channels) * pitch;
  }
  // The channels of the pixel left or right of row y.
  const float* pixel(const Part& p, int64_t y, int side) {
    return columns(p) + ((y - p.top) * 2 + side) * channels;
  }
};

// Where a group of vectors of x is read: in memory, but for what belongs to the tasks beside.
struct Sources {
  const float *from[WIDE], *beside[WIDE][2];  // channel 0; the channels of a pixel beside the task's, or null
  int64_t stride[WIDE], lane[WIDE][2];        // from one channel to the next; the lane of that pixel
  const Place* at;
  bool plain;  // whole vectors, all in memory

  Sources(const MirlImage& x, Surroundings& around, const Filling& f) : at(f.at), plain(f.whole) {
    const Part& p = f.part;
    for (int64_t v = 0; v < f.n; ++v) {
      const int64_t row = f.y + at[v].row, column = at[v].column;
      const bool inside = row >= p.top && row < p.bottom;
      stride[v] = x.channel;
      from[v] = inside ? x.at(f.b, 0, row, f.x + column) : around.row(p, row, &stride[v]) + column;
      for (int side = 0; side < 2; ++side) {
        lane[v][side] = (side ? p.x1 : p.x0 - 1) - p.first - column;
        const bool here = inside && lane[v][side] >= 0 && lane[v][side] < at[v].valid;
        beside[v][side] = here ? around.pixel(p, row, side) : nullptr;
        plain = plain && !here;
      }
    }
  }

  // Channel c of vector v.
  __attribute__((always_inline)) Vec pixels(int64_t c, int64_t v) const {
    const float* p = from[v] + c * stride[v];
    if (plain) return load(p);
    Vec value = load(p, at[v]);
    for (int side = 0; side < 2; ++side)
      if (beside[v][side]) value[lane[v][side]] = beside[v][side][c];
    return value;
  }
};

// Takes the rows of GDFN's result as channels, and writes them to y with the ring's last channels added.
struct RingResidual {
  const float* from[WIDE];
  float* to[WIDE];
  const Place* at;
  int64_t stride, channel;

  // `hidden`: how many channels the ring has before those.
  RingResidual(const Strips& s, const MirlImage& y, int64_t hidden, const Step& step, const Place* at,
               int64_t n)
      : at(at), stride(s.hidden_stride), channel(y.channel) {
    for (int64_t v = 0; v < n; ++v) {
      const int64_t slot = (step.slot + s.reach.above + at[v].row) % s.slots;
      from[v] = step.hidden + hidden * s.hidden_stride + slot * s.pitch + at[v].column;
      to[v] = y.at(step.b, 0, step.y + at[v].row, step.x0 + at[v].column);
    }
  }
  void operator()(int64_t c, int64_t begin, int64_t width, const Vec* sums) const {
    for (int64_t v = begin; v < begin + width; ++v)
      store(to[v] + c * channel, sums[v - begin] + load(from[v] + c * stride), at[v]);
  }
};

}  // namespace

void block(MirlBlock& a) {
  a.mdta.threads = a.threads;
  const Attention attention(a.mdta);
  const MirlImage& x = a.mdta.x;
  const MirlRows project_in = a.project_in->view(), project_out = a.project_out->view();
  const int64_t channels = a.mdta.size.channels, hidden = project_in.rows;
  const Strips s(a.mdta.size, hidden + channels, a.threads);
  const Taps taps(a.dwconv->view(), s);
  Surroundings around(s, x, channels, a.threads);
  auto fill = [&](const Filling& f) {
    const Sources sources(x, around, f);
    attention.apply(f.b, f.y, f.x, f.at, f.n, f.next_y, f.next_at, f.next_n, f.panel + channels * PANEL,
                    [&](int64_t c, int64_t begin, auto width, const Vec* sums) {
                      for (int64_t v = begin; v < begin + width; ++v) {
                        const Vec value = sums[v - begin] + sources.pixels(c, v);
                        store(f.panel + c * PANEL + v * L, value);
                        store(f.to[v] + (hidden + c) * s.hidden_stride, value);
                      }
                    });
    enter(Phase::norm);
    with_vectors(f.n, [&](auto v) { normalise<v>(channels, a.centred, f.panel); });
    enter(Phase::expand);
    product(project_in, f.panel, f.n, [&](int64_t h, int64_t begin, auto width, const Vec* sums) {
      f.store_hidden(h, s.hidden_stride, begin, width, sums);
    });
    enter(Phase::other);
  };
  const int64_t panel = channels * PANEL + attention.scratch_floats();
  run_strips(s, panel, project_out.columns * PANEL, a.threads, fill, [&](const Step& step) {
    gate(s, taps, project_out, a.y, step,
         [&](const Place* at, int64_t n) { return RingResidual(s, a.y, hidden, step, at, n); });
  });
}

}  // namespace MIRL_ISA
