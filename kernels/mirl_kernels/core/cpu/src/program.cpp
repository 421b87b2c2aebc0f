// Reads compiled tickets. Nothing in a file is believed: see check_program.
#include "program.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "shared_rules.h"
#include "threads.h"

namespace mirl {
namespace {

// Far beyond what networks have, and so small that no product of them overflows.
constexpr int64_t MOST_CHANNELS = 1 << 13, MOST_ROWS = 1 << 16, MOST_STEPS = 1 << 10, MOST_LEVELS = 7,
                  MOST_GRAM = 1 << 22, FARTHEST_TAP = 64, MATRIX_ALIGNMENT = 16;

thread_local char message[256] = "";

struct Shape {
  int64_t rows, columns;
};

class Checker {
  const MirlProgram& p;
  int64_t step = 0;  // for messages

  __attribute__((format(printf, 2, 3))) bool damaged(const char* format, ...) const {
    char what[160];
    va_list values;
    va_start(values, format);
    std::vsnprintf(what, sizeof what, format, values);
    va_end(values);
    fail(MIRL_BAD_PROGRAM, "the program is damaged (step %lld: %s); compile the ticket again",
         static_cast<long long>(step), what);
    return false;
  }

  bool inside(int64_t at, int64_t count) const {
    return at >= int64_t(sizeof(ProgramHeader)) / 4 && count >= 0 && at <= p.size && count <= p.size - at;
  }

  bool entries(int64_t base, const MirlChunk& c) const {
    if (c.start <= 0 || !inside(base + c.start, c.rows + 1)) return damaged("rows lie outside");
    const int32_t* start = p.words + base + c.start;
    if (start[0] != 0) return damaged("rows do not begin at 0");
    for (int64_t r = 0; r < c.rows; ++r)
      if (start[r + 1] < start[r]) return damaged("rows end before they begin");
    if (c.entry < 0 || !inside(base + c.entry, 2 * int64_t(start[c.rows])))
      return damaged("entries lie outside");
    const auto* entry = reinterpret_cast<const MirlEntry*>(p.words + base + c.entry);
    for (int64_t r = 0; r < c.rows; ++r)
      for (int64_t k = start[r]; k < start[r + 1]; ++k) {
        if (!offset(entry[k].offset, c)) return false;
        if (k > start[r] && entry[k].offset <= entry[k - 1].offset) return damaged("columns out of order");
      }
    return true;
  }

  bool offset(int32_t offset, const MirlChunk& c) const {
    const bool is_one =
        offset >= 0 && offset % (4 * MIRL_PANEL) == 0 && offset / (4 * MIRL_PANEL) < c.columns;
    return is_one || damaged("an entry at %d is none of %d columns", offset, c.columns);
  }

  // Every row once, every column inside.
  bool row_pairs(int64_t base, const MirlChunk& c) const {
    int64_t at = base + c.row_pairs;
    std::vector<bool> seen(c.rows);
    for (int64_t left = c.rows; left > 0; left -= 2) {
      if (!inside(at, 4)) return damaged("pairs of rows lie outside");
      const auto& pair = *reinterpret_cast<const MirlRowPair*>(p.words + at);
      const int64_t columns = 3 * int64_t(pair.shared) + 4 * int64_t(pair.single);
      if (pair.shared < 0 || pair.single < 0 || !inside(at + 4, columns))
        return damaged("pairs of rows lie outside");
      const int32_t row = pair.row[0], other = pair.row[1];
      const bool alone = other == -1 && left == 1;
      if (row < 0 || row >= c.rows || other >= c.rows || other == row || (other < 0 && !alone))
        return damaged("rows %d and %d are no pair of %d rows", row, other, c.rows);
      if (seen[row] || (!alone && seen[other])) return damaged("pairs of rows repeat one");
      seen[row] = true;
      if (!alone) seen[other] = true;
      const int32_t* word = pair.columns();
      for (int64_t i = 0; i < pair.shared; ++i, word += 3)
        if (!offset(word[0], c)) return false;
      for (int64_t i = 0; i < pair.single; ++i, word += 4)
        if (!offset(word[0], c) || !offset(word[1], c)) return false;
      at += 4 + columns;
    }
    return true;
  }

  bool chunk(int64_t base, const MirlChunk& c, int64_t rows) const {
    if (c.first_row < 0 || c.rows < 0 || c.columns < 0 || c.columns > MOST_CHANNELS ||
        c.first_row + int64_t(c.rows) > rows)
      return damaged("a chunk of %d rows and %d columns lies outside", c.rows, c.columns);
    if (!entries(base, c)) return false;
    if (c.bias < 0 || (c.bias && !inside(base + c.bias, c.rows))) return damaged("a bias lies outside");
    if (c.dense < 0 || (c.dense && !inside(base + c.dense, round_up(c.rows, 4) * c.columns)))
      return damaged("a whole matrix lies outside");
    if (c.row_pairs < 0 || (c.row_pairs && !row_pairs(base, c)))
      return c.row_pairs >= 0 || damaged("pairs of rows lie outside");
    const int64_t tile_words = round_up(c.rows, 16) * round_up(c.columns, 32) / 2;
    if (c.tiles && (c.tiles < 0 || c.tiles % MATRIX_ALIGNMENT || !inside(base + c.tiles, tile_words)))
      return damaged("tiles lie outside");
    return true;
  }

  const MirlMatrix* header(int64_t at) const {
    if (at % MATRIX_ALIGNMENT || !inside(at, 5)) return damaged("a matrix lies outside"), nullptr;
    const MirlMatrix* m = p.matrix(int32_t(at));
    if (m->rows < 0 || m->rows > MOST_ROWS || m->entries < 0 || m->chunks < 1 ||
        !inside(at + 5, 9 * int64_t(m->chunks)))
      return damaged("a matrix of %d rows in %d chunks lies outside", m->rows, m->chunks), nullptr;
    return m;
  }

  // A matrix of one chunk.
  bool matrix(int32_t at, const Shape& shape) const {
    const MirlMatrix* m = header(at);
    if (!m) return false;
    const MirlChunk& c = m->chunk(0);
    if (m->rows != shape.rows || m->columns != shape.columns || m->chunks != 1 || c.rows != shape.rows ||
        c.columns != shape.columns || c.first_row)
      return damaged("a matrix is %dx%d; expected %lldx%lld", m->rows, m->columns,
                     static_cast<long long>(shape.rows), static_cast<long long>(shape.columns));
    return chunk(at, c, m->rows);
  }

  // A convolution's matrix, whose taps name channels of so many.
  bool convolution(int32_t at, int64_t rows, int64_t channels) const {
    const MirlMatrix* m = header(at);
    if (!m) return false;
    int64_t columns = 0, end = 0;
    for (int64_t i = 0; i < m->chunks; ++i) {
      const MirlChunk& c = m->chunk(i);
      if (!chunk(at, c, m->rows)) return false;
      const bool again = i > 0 && c.first_row == m->chunk(i - 1).first_row;
      if (again ? c.rows != m->chunk(i - 1).rows : c.first_row != end) return damaged("chunks out of order");
      columns += c.columns, end = c.first_row + int64_t(c.rows);
    }
    if (m->rows != rows || end != rows || m->columns != columns)
      return damaged("a convolution has %d rows; expected %lld", m->rows, static_cast<long long>(rows));
    if (m->taps <= 0 || !inside(int64_t(at) + m->taps, 3 * columns)) return damaged("taps lie outside");
    for (const MirlTap* tap = m->tap(); tap < m->tap() + columns; ++tap) {
      if (tap > m->tap() && tap->channel < tap[-1].channel) return damaged("taps out of order");
      if (tap->channel < 0 || tap->channel >= channels || std::abs(int64_t(tap->dy)) > FARTHEST_TAP ||
          std::abs(int64_t(tap->dx)) > FARTHEST_TAP)
        return damaged("a tap at (%d, %d) of channel %d", tap->dy, tap->dx, tap->channel);
    }
    return true;
  }

  bool slice(const ProgramSlice& s, bool outside_is_image) const {
    if (s.buffer == -1)
      return (outside_is_image && s.first == 0 && s.last == 3) || damaged("no image is expected there");
    if (s.buffer < 0 || s.buffer >= p.header().buffers) return damaged("there is no buffer %d", s.buffer);
    const int32_t channels = p.buffers()[s.buffer].channels;
    return (s.first >= 0 && s.first < s.last && s.last <= channels) ||
           damaged("channels %d to %d of %d", s.first, s.last, channels);
  }

  bool conv(const ProgramStep& s) const {
    const int64_t stride = s.conv.stride, shuffle = s.conv.shuffle;
    auto log2 = [](int64_t n) {
      int64_t bits = 0;
      while (bits < MOST_LEVELS && int64_t(1) << bits < n) ++bits;
      return int64_t(1) << bits == n ? bits : int64_t(-1);
    };
    const int64_t strides = log2(stride), ups = shuffle < 0 ? 0 : log2(shuffle),
                  downs = shuffle < 0 ? log2(-shuffle) : 0;
    if (strides < 0 || ups < 0 || downs < 0 || p.level(s.x) + strides + downs - ups != p.level(s.y) ||
        p.level(s.x) + strides > MOST_LEVELS)
      return damaged("stride %d and shuffle %d do not lead from one buffer to the other", s.conv.stride,
                     s.conv.shuffle);
    const int64_t outputs = s.y.channels() << 2 * ups;
    if (outputs % (int64_t(1) << 2 * downs)) return damaged("channels do not unshuffle");
    return convolution(s.conv.weight, outputs >> 2 * downs, s.x.channels() * stride * stride);
  }

  bool prompt(const ProgramStep& s) const {
    const PromptWords& w = s.prompt;
    const int64_t channels = s.y.channels();
    if (w.count < 1 || w.count > MOST_CHANNELS || w.side < 1 || w.side > 4096)
      return damaged("%d prompts with sides of %d", w.count, w.side);
    if (!inside(w.linear_weight, w.count * s.x.channels()) || !inside(w.linear_bias, w.count) ||
        !inside(w.prompt_param, w.count * channels) ||
        !inside(w.prompt_param, w.count * channels * w.side * w.side))
      return damaged("prompts lie outside");
    return convolution(w.conv3x3, channels, channels);
  }

  // Channels head by head, each at most once.
  bool index(int32_t at, int32_t count, int64_t channels, int64_t heads) const {
    if (count < 0 || count > channels || !inside(at, count))
      return damaged("a list of channels lies outside");
    std::vector<bool> seen(channels);
    const int64_t per_head = channels / heads;
    for (int32_t i = 0; i < count; ++i) {
      const int32_t c = p.words[at + i];
      if (c < 0 || c >= channels || seen[c] || (i && c / per_head < p.words[at + i - 1] / per_head))
        return damaged("channel %d of %lld", c, static_cast<long long>(channels));
      seen[c] = true;
    }
    return true;
  }

  bool block(const ProgramStep& s) const {
    const BlockWords& w = s.block;
    const int64_t channels = s.x.channels();
    if (w.heads < 1 || channels % w.heads) return damaged("%d heads", w.heads);
    int64_t hidden = 0;
    for (int i = 0; i < 3; hidden += w.live[i++])
      if (!index(w.index[i], w.live[i], channels, w.heads)) return false;
    if (int64_t(w.live[0]) * w.live[1] > MOST_GRAM)
      return damaged("%d q and %d k channels", w.live[0], w.live[1]);
    if (!inside(w.temperature, w.heads)) return damaged("temperatures lie outside");
    const MirlMatrix* in = header(w.project_in);
    if (!in || in->rows % 2) return in ? damaged("%d rows are no pairs", in->rows) : false;
    return matrix(w.qkv, {hidden, channels}) && matrix(w.attention_dwconv, {hidden, 9}) &&
           matrix(w.attention_out, {channels, channels}) && matrix(w.project_in, {in->rows, channels}) &&
           matrix(w.dwconv, {in->rows, 9}) && matrix(w.project_out, {channels, in->rows / 2});
  }

  bool one_step(const ProgramStep& s, bool first, bool last) const {
    if (!slice(s.x, first) || !slice(s.y, last)) return false;
    if (first != (s.x.buffer < 0) || last != (s.y.buffer < 0))
      return damaged("the image comes first, the result last");
    const bool in_place = s.x.buffer == s.y.buffer && s.x.first == s.y.first && s.x.last == s.y.last;
    const bool apart = s.x.buffer != s.y.buffer || s.x.last <= s.y.first || s.y.last <= s.x.first;
    if (!apart && !(in_place && s.op == ProgramOp::block)) return damaged("input and output overlap");
    if (s.op == ProgramOp::conv) return conv(s);
    if (p.level(s.x) != p.level(s.y) || first || last) return damaged("op %d there", int(s.op));
    switch (s.op) {
      case ProgramOp::pointwise: return matrix(s.pointwise.weight, {s.y.channels(), s.x.channels()});
      case ProgramOp::prompt: return prompt(s);
      case ProgramOp::block:
        return s.x.channels() == s.y.channels() ? block(s) : damaged("a block changes its channels");
      default: return damaged("there is no op %d", int(s.op));
    }
  }

 public:
  explicit Checker(const MirlProgram& program) : p(program) {}

  bool run() {
    const ProgramHeader& h = p.header();
    const int64_t tables = int64_t(sizeof h) / 4;
    const bool counts = h.buffers > 0 && h.steps > 1 && h.buffers <= MOST_STEPS && h.steps <= MOST_STEPS &&
                        tables + 2 * int64_t(h.buffers) + 32 * int64_t(h.steps) <= p.size;
    if (!counts) return damaged("%d buffers and %d steps", h.buffers, h.steps);
    int32_t deepest = 0;
    for (int64_t i = 0; i < h.buffers; ++i) {
      const ProgramBuffer& b = p.buffers()[i];
      if (b.channels < 1 || b.channels > MOST_CHANNELS || b.level < 0 || b.level > MOST_LEVELS)
        return damaged("a buffer of %d channels at level %d", b.channels, b.level);
      deepest = b.level > deepest ? b.level : deepest;
    }
    if (h.multiple < 1 || h.multiple > 1 << MOST_LEVELS || h.multiple % (1 << deepest))
      return damaged("multiples of %d", h.multiple);
    for (; step < h.steps; ++step)
      if (!one_step(p.steps()[step], step == 0, step + 1 == h.steps)) return false;
    return true;
  }
};

uint32_t crc32(const unsigned char* data, size_t bytes) {
  static const auto table = [] {
    struct {
      uint32_t of[256];
    } t;
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t c = i;
      for (int bit = 0; bit < 8; ++bit) c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
      t.of[i] = c;
    }
    return t;
  }();
  uint32_t c = ~0u;
  for (size_t i = 0; i < bytes; ++i) c = table.of[(c ^ data[i]) & 255] ^ (c >> 8);
  return ~c;
}

MirlStatus check_file(const MirlProgram& p) {
  const ProgramHeader& h = p.header();
  const unsigned one = 1;
  if (*reinterpret_cast<const char*>(&one) != 1)
    return fail(MIRL_BAD_PROGRAM, "programs are little-endian; this machine is not");
  if (h.version != PROGRAM_VERSION)
    return fail(MIRL_BAD_PROGRAM, "a program of version %d; expected %d: compile the ticket again", h.version,
                PROGRAM_VERSION);
  const auto* behind = reinterpret_cast<const unsigned char*>(&h.multiple);
  const auto* begin = reinterpret_cast<const unsigned char*>(p.words);
  if (crc32(behind, 4 * size_t(p.size) - (behind - begin)) != h.checksum)
    return fail(MIRL_BAD_PROGRAM, "the program is damaged (checksum); copy or compile it again");
  return MIRL_OK;
}

}  // namespace

MirlStatus fail(MirlStatus status, const char* format, ...) {
  va_list values;
  va_start(values, format);
  std::vsnprintf(message, sizeof message, format, values);
  va_end(values);
  return status;
}

MirlStatus check_program(const MirlProgram& program) {
  const MirlStatus status = check_file(program);
  if (status != MIRL_OK) return status;
  return guarded([&] { return Checker(program).run() ? MIRL_OK : MIRL_BAD_PROGRAM; });
}

}  // namespace mirl

using mirl::fail;

const char* mirl_message(void) { return mirl::message; }

namespace {

MirlStatus load(const void* data, size_t bytes, bool copy, MirlProgram** program) {
  if (!data || !program) return fail(MIRL_BAD_ARGUMENT, "data and program must not be null");
  *program = nullptr;
  mirl::ProgramHeader header;
  if (bytes >= sizeof header) std::memcpy(&header, data, sizeof header);
  if (bytes < sizeof header || std::memcmp(header.magic, mirl::PROGRAM_MAGIC, sizeof header.magic))
    return fail(MIRL_BAD_PROGRAM, "not a program; expected a file from mirl-sparse compile");
  if (bytes != 4 * uint64_t(header.words))
    return fail(MIRL_BAD_PROGRAM, "the program has %llu bytes; expected %llu: copy or compile it again",
                static_cast<unsigned long long>(bytes), 4 * static_cast<unsigned long long>(header.words));
  MirlProgram loaded;
  loaded.size = int64_t(bytes / 4);
  loaded.words = static_cast<const int32_t*>(data);
  if (copy) {
    loaded.owned = reinterpret_cast<int32_t*>(mirl::try_allocate(bytes / 4));
    if (!loaded.owned) return fail(MIRL_OUT_OF_MEMORY, "no memory for a program of %zu bytes", bytes);
    std::memcpy(loaded.owned, data, bytes);
    loaded.words = loaded.owned;
  } else if (reinterpret_cast<uintptr_t>(data) % 64) {
    return fail(MIRL_BAD_ARGUMENT, "the program is at %p; expected a multiple of 64", data);
  }
  const MirlStatus status = mirl::check_program(loaded);
  *program = status == MIRL_OK ? static_cast<MirlProgram*>(std::malloc(sizeof loaded)) : nullptr;
  if (!*program) {
    mirl::give_back(loaded.owned);
    return status == MIRL_OK ? fail(MIRL_OUT_OF_MEMORY, "no memory for a program") : status;
  }
  **program = loaded;
  return MIRL_OK;
}

}  // namespace

MirlStatus mirl_load(const void* data, size_t bytes, MirlProgram** program) {
  return load(data, bytes, true, program);
}

// The same without a copy: `data`, at a multiple of 64 bytes, must outlive the program. For the Python side.
extern "C" MIRL_API MirlStatus mirl_load_in_place(const void* data, size_t bytes, MirlProgram** program) {
  return load(data, bytes, false, program);
}

void mirl_free(MirlProgram* program) {
  if (program) mirl::give_back(program->owned);
  std::free(program);
}

int64_t mirl_multiple(const MirlProgram* program) { return program ? program->header().multiple : 0; }
