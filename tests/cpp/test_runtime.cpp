// Tests of the C++ runtime, built with sanitizers by test_runtime.py: PROGRAM, a compiled tiny ticket.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "photo.h"
#include "plan.h"
#include "program.h"

namespace {

int failures = 0;
#define EXPECT(condition) \
  if (!(condition)) std::printf("line %d: " #condition "\n", __LINE__), ++failures

using Words = std::vector<uint32_t>;

uint32_t crc32(const unsigned char* data, size_t bytes) {
  uint32_t c = ~0u;
  for (size_t i = 0; i < bytes; ++i) {
    c ^= data[i];
    for (int bit = 0; bit < 8; ++bit) c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
  }
  return ~c;
}

MirlStatus load(Words words, MirlProgram** program, bool valid_checksum = true) {
  if (valid_checksum && words.size() > 5)
    words[4] = crc32(reinterpret_cast<unsigned char*>(&words[5]), 4 * (words.size() - 5));
  return mirl_load(words.data(), 4 * words.size(), program);
}

void stretches_in_use_together_do_not_overlap() {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    std::vector<mirl::Lifetime> lives(1 + random() % 20);
    for (auto& life : lives) {
      life.first = random() % 20, life.last = life.first + random() % 8, life.floats = 1 + random() % 500;
    }
    std::vector<int64_t> starts;
    const int64_t length = mirl::place(lives, &starts);
    int64_t end = 0;
    for (size_t i = 0; i < lives.size(); ++i) {
      end = std::max(end, starts[i] + lives[i].floats);
      for (size_t j = 0; j < i; ++j)
        if (lives[i].overlaps(lives[j]))
          EXPECT(starts[i] + lives[i].floats <= starts[j] || starts[j] + lives[j].floats <= starts[i]);
    }
    EXPECT(end == length);
  }
  std::vector<int64_t> starts;
  EXPECT(mirl::place({{0, 1, 100}, {1, 2, 50}, {2, 3, 100}}, &starts) == 150);
  EXPECT((starts == std::vector<int64_t>{0, 100, 0}));
}

void tiles_cover_an_axis_with_shares_that_add_up_to_one() {
  std::mt19937 random(2);
  for (int round = 0; round < 200; ++round) {
    const int64_t multiple = 8, tile = 128 + 8 * (random() % 20), length = 8 * (1 + random() % 200);
    const mirl::Axis axis(length, std::min(tile, length), multiple);
    std::vector<double> total(length);
    for (size_t i = 0; i < axis.starts.size(); ++i) {
      EXPECT(axis.starts[i] % multiple == 0 && axis.starts[i] >= 0);
      for (int64_t at = 0; at < axis.tile; ++at) total[axis.starts[i] + at] += axis.share(i, at);
    }
    for (const double sum : total) EXPECT(std::abs(sum - 1) < 1e-5);
  }
}

void wrong_arguments_are_errors(const MirlProgram* program) {
  MirlPlan* plan;
  const int64_t side = mirl_multiple(program);
  EXPECT(mirl_plan(program, 1, side + 1, side, &plan) == MIRL_BAD_ARGUMENT && !plan);
  EXPECT(mirl_plan(program, 0, side, side, &plan) == MIRL_BAD_ARGUMENT);
  EXPECT(mirl_plan(program, 1, int64_t(1) << 40, side, &plan) == MIRL_BAD_ARGUMENT);
  EXPECT(mirl_plan(program, 1, int64_t(1) << 27, side, &plan) == MIRL_OUT_OF_MEMORY);
  EXPECT(mirl_required_bytes(program, 1, -8, 8) == -1);
  EXPECT(mirl_run(nullptr, nullptr, nullptr, nullptr) == MIRL_BAD_ARGUMENT);
  EXPECT(mirl_plan(nullptr, 1, side, side, &plan) == MIRL_BAD_ARGUMENT);
  EXPECT(mirl_required_bytes(nullptr, 1, side, side) == -1);
  std::vector<uint8_t> pixels(16 * 16 * 4, 100);
  MirlPhoto photo{pixels.data(), 16, 16, 4, 8, 64};
  EXPECT(mirl_restore(program, &photo, pixels.data(), 2, nullptr) == MIRL_BAD_ARGUMENT);
  MirlOptions options{};
  options.instruction_set = "sse9";
  EXPECT(mirl_restore(program, &photo, pixels.data(), 1, &options) == MIRL_BAD_ARGUMENT);
  options = {};
  options.max_bytes = 1000;
  EXPECT(mirl_restore(program, &photo, pixels.data(), 1, &options) == MIRL_OUT_OF_MEMORY);
  photo.channels = 5;
  EXPECT(mirl_restore(program, &photo, pixels.data(), 1, nullptr) == MIRL_BAD_ARGUMENT);
}

int stop_at_half(void* last, double done) {
  *static_cast<double*>(last) = done;
  return done > 0.5;
}

void work_can_be_stopped(const MirlProgram* program) {
  std::vector<uint8_t> pixels(40 * 24 * 3, 100);
  MirlPhoto photo{pixels.data(), 40, 24, 3, 8, 72};
  double done = 0;
  MirlOptions options{};
  options.progress = stop_at_half, options.context = &done;
  EXPECT(mirl_restore(program, &photo, pixels.data(), 1, &options) == MIRL_CANCELLED);
  EXPECT(done > 0.5 && done < 1);
}

// All sizes, in tiles and as a whole, in place and with 16 bits.
void photos_of_any_size_are_restored(const MirlProgram* program) {
  std::mt19937 random(3);
  for (const auto& [height, width] : {std::pair{1, 1}, {1, 300}, {7, 5}, {130, 70}, {400, 150}})
    for (const int channels : {3, 4}) {
      std::vector<uint8_t> pixels(height * width * channels);
      for (auto& p : pixels) p = uint8_t(random());
      std::vector<uint16_t> wide(pixels.size());
      for (size_t i = 0; i < wide.size(); ++i) wide[i] = uint16_t(257 * pixels[i]);
      MirlPhoto photo{pixels.data(), height, width, channels, 8, width * channels};
      MirlPhoto wide_photo{wide.data(), height, width, channels, 16, 2 * width * channels};
      std::vector<uint8_t> whole(pixels.size()), tiled(pixels.size()), same(pixels.size());
      MirlOptions options{};
      options.threads = 2;
      EXPECT(mirl_restore(program, &photo, whole.data(), 1, &options) == MIRL_OK);
      EXPECT(mirl_restore(program, &photo, same.data(), 0, &options) == MIRL_OK && same == pixels);
      EXPECT(mirl_restore(program, &wide_photo, wide.data(), 1, &options) == MIRL_OK);
      for (size_t i = 0; i < wide.size(); ++i) EXPECT(std::abs(wide[i] / 257.0 - whole[i]) < 0.51);
      options.max_bytes = mirl_required_bytes(program, 1, 136, 136) + 24 * 136 * 400;
      EXPECT(mirl_restore(program, &photo, tiled.data(), 1, &options) == MIRL_OK);
      if (height < 130 && width < 130) EXPECT(tiled == whole);
      EXPECT(mirl_restore(program, &photo, pixels.data(), 1, &options) == MIRL_OK && pixels == tiled);
    }
}

void damaged_files_are_errors(const Words& words) {
  MirlProgram* program;
  EXPECT(mirl_load(words.data(), 3, &program) == MIRL_BAD_PROGRAM);
  EXPECT(mirl_load(nullptr, 100, &program) == MIRL_BAD_ARGUMENT);
  Words damaged = words;
  damaged[words.size() / 2] ^= 1;
  EXPECT(load(damaged, &program, false) == MIRL_BAD_PROGRAM);
  EXPECT(std::string(mirl_message()).find("checksum") != std::string::npos);
  damaged = words, damaged[2] = 99;
  EXPECT(load(damaged, &program) == MIRL_BAD_PROGRAM);
  EXPECT(std::string(mirl_message()).find("version 99") != std::string::npos);
  damaged = words, damaged[5] = 512;  // a multiple that tiles cannot be
  EXPECT(load(damaged, &program) == MIRL_BAD_PROGRAM);
  for (size_t size = 1; size < words.size(); size += 1 + words.size() / 50)
    EXPECT(load(Words(words.begin(), words.begin() + size), &program) == MIRL_BAD_PROGRAM);
}

// Changes words at random, most of them in the tables. What the checks let through must run, too: the
// sanitizers tell whether it reads or writes where it must not.
void hostile_files_do_no_harm(const Words& words, int rounds) {
  std::mt19937 random(4);
  const size_t tables = 15 + 2 * words[6] + 32 * words[7];
  int accepted = 0;
  for (int round = 0; round < rounds; ++round) {
    Words hostile = words;
    for (int change = 0; change < 1 + int(random() % 3); ++change) {
      const size_t at = 5 + random() % ((random() % 2 ? tables : hostile.size()) - 5);
      const uint32_t values[] = {0,
                                 1,
                                 uint32_t(-1),
                                 1u << 31,
                                 hostile[at] + 1,
                                 hostile[at] - 1,
                                 uint32_t(random()),
                                 uint32_t(random() % 64),
                                 hostile[at] * 2,
                                 0x7fffffff,
                                 256,
                                 hostile[at] ^ (1u << random() % 32)};
      hostile[at] = values[random() % 12];
    }
    MirlProgram* program;
    if (load(hostile, &program) != MIRL_OK) continue;
    ++accepted;
    MirlPlan* plan;
    const int64_t side = mirl_multiple(program);
    if (side <= 64 && mirl_required_bytes(program, 1, side, 2 * side) < (int64_t(1) << 28) &&
        mirl_plan(program, 1, side, 2 * side, &plan) == MIRL_OK) {
      std::vector<float> image(6 * side * side, 0.5f);
      mirl_run(plan, image.data(), image.data(), nullptr);
      mirl_free_plan(plan);
    }
    mirl_free(program);
  }
  std::printf("%d of %d hostile programs were accepted, and ran\n", accepted, rounds);
  EXPECT(accepted > rounds / 100 && accepted < rounds);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  std::FILE* file = std::fopen(arguments[1], "rb");
  std::fseek(file, 0, SEEK_END);
  Words words(std::ftell(file) / 4);
  std::rewind(file);
  if (std::fread(words.data(), 4, words.size(), file) != words.size()) return 2;
  std::fclose(file);
  MirlProgram* program;
  EXPECT(load(words, &program) == MIRL_OK);
  stretches_in_use_together_do_not_overlap();
  tiles_cover_an_axis_with_shares_that_add_up_to_one();
  wrong_arguments_are_errors(program);
  work_can_be_stopped(program);
  photos_of_any_size_are_restored(program);
  mirl_free(program);
  damaged_files_are_errors(words);
  hostile_files_do_no_harm(words, std::atoi(arguments[2]));
  return failures != 0;
}
