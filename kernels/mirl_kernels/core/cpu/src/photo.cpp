#include "photo.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "runtime.h"
#include "shared_rules.h"
#include "threads.h"

namespace mirl {
namespace {

// As in runtime/tiling.py, which serves the other engines.
constexpr int64_t OVERLAP = 64;    // pixels that two neighbouring tiles share
constexpr int64_t SMALLEST = 128;  // side of a tile: smaller ones would be mostly overlap
constexpr int64_t LONGEST = int64_t(1) << 24;

// Position i of an axis, reflected into [0, length).
int64_t reflected(int64_t i, int64_t length) {
  if (length == 1) return 0;
  i %= 2 * (length - 1);
  return std::min(i, 2 * (length - 1) - i);
}

struct Free {
  void operator()(float* p) const { give_back(p); }
};
using Floats = std::unique_ptr<float, Free>;

// Pixels of type T, as floats in [0, 1] and back.
template <class T>
class Pixels {
  const MirlPhoto& photo;
  unsigned char* const result;
  const float strength;
  static constexpr float TOP = T(~T(0));

  const T* source(int64_t y) const {
    return reinterpret_cast<const T*>(static_cast<const unsigned char*>(photo.pixels) + y * photo.stride);
  }

 public:
  Pixels(const MirlPhoto& photo, void* result, double strength)
      : photo(photo), result(static_cast<unsigned char*>(result)), strength(float(strength)) {}

  // A tile as planes; beyond the photo it is reflected.
  void read(int64_t top, int64_t left, int64_t height, int64_t width, float* to) const {
    for (int64_t y = 0; y < height; ++y) {
      const T* from = source(reflected(top + y, photo.height));
      for (int64_t x = 0; x < width; ++x) {
        const T* pixel = from + reflected(left + x, photo.width) * photo.channels;
        for (int c = 0; c < 3; ++c) to[(c * height + y) * width + x] = pixel[c] / TOP;
      }
    }
  }

  // Row y of the result, from three planes.
  void write(int64_t y, const float* from, int64_t plane) const {
    const T* before = source(y);
    T* to = reinterpret_cast<T*>(result + y * photo.stride);
    for (int64_t x = 0; x < photo.width; ++x)
      for (int64_t c = 0; c < photo.channels; ++c) {
        const int64_t i = x * photo.channels + c;
        if (c == 3) {
          to[i] = before[i];
          continue;
        }
        float value = from[c * plane + x];
        if (strength < 1) value = value * strength + before[i] / TOP * (1 - strength);
        value = value > 0 ? std::min(value, 1.0f) : 0.0f;  // a NaN becomes 0
        to[i] = T(std::nearbyint(value * TOP));
      }
  }
};

// A photo that is restored in tiles, row of tiles by row of tiles. Of the result, as many rows are kept as
// tiles are high: the first ones are done when the next row of tiles begins below them.
template <class T>
MirlStatus restore_tiles(const MirlProgram& program, const Pixels<T>& pixels, const MirlPhoto& photo,
                         const InputSize& tile, RunOptions options) {
  const int64_t multiple = program.header().multiple;
  const Axis down(round_up(photo.height, multiple), tile.height, multiple),
      across(round_up(photo.width, multiple), tile.width, multiple);
  const bool whole = down.starts.size() == 1 && across.starts.size() == 1;
  MirlPlan* made = nullptr;
  if (const MirlStatus status = mirl_plan(&program, 1, tile.height, tile.width, &made); status != MIRL_OK)
    return status;
  const std::unique_ptr<MirlPlan, void (*)(MirlPlan*)> plan(made, mirl_free_plan);
  const int64_t plane = tile.height * tile.width, band_plane = tile.height * across.length;
  const Floats image(try_allocate(3 * plane)), band(whole ? nullptr : try_allocate(3 * band_plane));
  if (!image || !(whole || band)) return fail(MIRL_OUT_OF_MEMORY, "no memory for the photo's pixels");

  std::vector<float> shares(tile.width);
  options.share = 1.0 / double(down.starts.size() * across.starts.size());
  if (band) std::memset(band.get(), 0, sizeof(float) * 3 * band_plane);
  for (size_t i = 0; i < down.starts.size(); ++i) {
    const int64_t top = down.starts[i];
    for (size_t j = 0; j < across.starts.size(); ++j, options.from += options.share) {
      pixels.read(top, across.starts[j], tile.height, tile.width, image.get());
      const MirlStatus status = run_plan(*plan, image.get(), image.get(), options);
      if (status != MIRL_OK) return status;
      for (int64_t x = 0; x < tile.width && band; ++x) shares[x] = across.share(j, x);
      for (int64_t row = 0; row < 3 * tile.height && band; ++row) {
        const int64_t c = row / tile.height, y = row % tile.height;
        float* to = band.get() + c * band_plane + y * across.length + across.starts[j];
        const float *from = image.get() + row * tile.width, share = down.share(i, y);
        for (int64_t x = 0; x < tile.width; ++x) to[x] += share * shares[x] * from[x];
      }
    }
    const bool last = i + 1 == down.starts.size();
    const int64_t done = last ? tile.height : down.starts[i + 1] - top;
    for (int64_t y = 0; y < done && top + y < photo.height; ++y)
      if (band) pixels.write(top + y, band.get() + y * across.length, band_plane);
      else pixels.write(top + y, image.get() + y * tile.width, plane);
    for (int c = 0; c < 3 && band && !last; ++c) {
      float* rows = band.get() + c * band_plane;
      const int64_t left = (tile.height - done) * across.length;
      std::memmove(rows, rows + done * across.length, sizeof(float) * left);
      std::memset(rows + left, 0, sizeof(float) * (band_plane - left));
    }
  }
  return MIRL_OK;
}

MirlStatus check_photo(const MirlPhoto& p) {
  const bool known = (p.channels == 3 || p.channels == 4) && (p.bits == 8 || p.bits == 16);
  const bool sized = p.height > 0 && p.width > 0 && p.height <= LONGEST && p.width <= LONGEST;
  if (!p.pixels || !known || !sized || p.stride < p.width * p.channels * p.bits / 8)
    return fail(MIRL_BAD_ARGUMENT,
                "the photo is %lldx%lld with %lld channels of %lld bits, rows of %lld bytes; expected 3 or 4"
                " channels of 8 or 16 bits, and sides of 1 to 16,777,216 pixels",
                static_cast<long long>(p.height), static_cast<long long>(p.width),
                static_cast<long long>(p.channels), static_cast<long long>(p.bits),
                static_cast<long long>(p.stride));
  return MIRL_OK;
}

}  // namespace

Axis::Axis(int64_t length, int64_t tile, int64_t multiple) : length(length), tile(tile) {
  const int64_t count = tile >= length ? 1 : (length - OVERLAP + tile - OVERLAP - 1) / (tile - OVERLAP);
  const int64_t last = length - tile;
  for (int64_t i = 0; i + 1 < count; ++i)
    starts.push_back(int64_t(std::nearbyint(double(i * last) / double(count - 1))) / multiple * multiple);
  starts.push_back(last);
}

double Axis::weight(size_t i, int64_t at) const {
  double w = 1;
  if (at < 0 || at >= tile) return 0;
  if (i > 0 && at < OVERLAP) w *= (at + 0.5) / OVERLAP;
  if (i + 1 < starts.size() && at >= tile - OVERLAP) w *= (tile - at - 0.5) / OVERLAP;
  return w;
}

float Axis::share(size_t i, int64_t at) const {
  double total = 0;
  for (size_t j = 0; j < starts.size(); ++j) total += weight(j, starts[i] + at - starts[j]);
  return float(weight(i, at) / total);
}

}  // namespace mirl

using mirl::fail;

// The largest equal tiles that need no more memory.
MirlStatus mirl_tile_size(const MirlProgram* program, int64_t height, int64_t width, int64_t max_bytes,
                          int64_t* tile_height, int64_t* tile_width) {
  using namespace mirl;
  if (!program || !tile_height || !tile_width) return fail(MIRL_BAD_ARGUMENT, "an argument is null");
  if (max_bytes < 0) return fail(MIRL_BAD_ARGUMENT, "max_bytes is negative; expected 0 or more");
  if (height < 1 || width < 1 || height > LONGEST || width > LONGEST)
    return fail(MIRL_BAD_ARGUMENT, "the photo is %lldx%lld; expected sides of 1 to 16,777,216 pixels",
                static_cast<long long>(height), static_cast<long long>(width));
  const int64_t multiple = program->header().multiple, limit = max_bytes ? max_bytes : DEFAULT_BYTES;
  auto part = [&](int64_t length, int64_t count) {
    const int64_t share = count * multiple;
    return (length + (count - 1) * OVERLAP + share - 1) / share * multiple;
  };
  const int64_t whole_height = round_up(height, multiple), whole_width = round_up(width, multiple);
  for (int64_t down = 1, across = 1;;) {
    *tile_height = part(whole_height, down), *tile_width = part(whole_width, across);
    const int64_t band = down * across > 1 ? *tile_height * whole_width : 0;
    const int64_t pixels = 3 * int64_t(sizeof(float)) * (*tile_height * *tile_width + band);
    const int64_t buffers = mirl_required_bytes(program, 1, *tile_height, *tile_width);
    if (buffers >= 0 && buffers + pixels <= limit) return MIRL_OK;
    if (std::max(*tile_height, *tile_width) <= SMALLEST)
      return fail(MIRL_OUT_OF_MEMORY, "even tiles of %lldx%lld need %.0f MB of %.0f MB; allow more memory",
                  static_cast<long long>(*tile_height), static_cast<long long>(*tile_width),
                  double(buffers + pixels) / 1e6, double(limit) / 1e6);
    ++(*tile_height >= *tile_width ? down : across);
  }
}

MirlStatus mirl_restore(const MirlProgram* program, const MirlPhoto* photo, void* result, double strength,
                        const MirlOptions* options) {
  using namespace mirl;
  if (!program || !photo || !result) return fail(MIRL_BAD_ARGUMENT, "an argument is null");
  if (const MirlStatus status = check_photo(*photo); status != MIRL_OK) return status;
  if (!(strength >= 0 && strength <= 1))
    return fail(MIRL_BAD_ARGUMENT, "strength is %g; expected 0 (leave the photo as it is) to 1", strength);
  RunOptions run;
  if (const MirlStatus status = run.read(options); status != MIRL_OK) return status;
  InputSize tile{1, 0, 0};
  const MirlStatus status =
      mirl_tile_size(program, photo->height, photo->width, run.max_bytes, &tile.height, &tile.width);
  if (status != MIRL_OK) return status;
  return guarded([&] {
    if (photo->bits == 8)
      return restore_tiles(*program, Pixels<uint8_t>(*photo, result, strength), *photo, tile, run);
    return restore_tiles(*program, Pixels<uint16_t>(*photo, result, strength), *photo, tile, run);
  });
}
