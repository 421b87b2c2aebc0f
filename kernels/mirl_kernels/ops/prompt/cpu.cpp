// The prompt block: mean, softmax, mixture at the prompts' size, bilinear resize, sparse 3x3 convolution.
#include "../conv/conv.h"

namespace MIRL_ISA {
namespace {

// The means of all channels of all items.
std::vector<double> channel_means(const MirlPrompt& a) {
  const int64_t height = a.size.height, width = a.size.width;
  std::vector<double> means(a.size.batch * a.size.channels);
  auto mean = [&](int64_t t) {
    double total = 0;  // of the sums of rows
    for (int64_t y = 0; y < height; ++y) {
      const float* from = a.x.at(t / a.size.channels, t % a.size.channels, y, 0);
      Vec lanes{};
      int64_t i = 0;
      for (; i + L <= width; i += L) lanes += load(from + i);
      float rest = sum(lanes);
      for (; i < width; ++i) rest += from[i];
      total += rest;
    }
    means[t] = total / (height * width);
  };
  mirl::parallel(a.size.batch * a.size.channels, a.threads, mean);
  return means;
}

// The weights of the prompts in each item's mixture: a softmax of a linear layer of the means.
std::vector<float> prompt_weights(const MirlPrompt& a, const std::vector<double>& means) {
  std::vector<float> weights(a.size.batch * a.count);
  for (int64_t b = 0; b < a.size.batch; ++b) {
    std::vector<double> logit(a.count);
    for (int64_t n = 0; n < a.count; ++n) {
      logit[n] = a.linear_bias[n];
      for (int64_t c = 0; c < a.size.channels; ++c)
        logit[n] += a.linear_weight[n * a.size.channels + c] * means[b * a.size.channels + c];
    }
    const double most = *std::max_element(logit.begin(), logit.end());
    double total = 0;
    for (double& l : logit) total += l = std::exp(l - most);
    for (int64_t n = 0; n < a.count; ++n) weights[b * a.count + n] = float(logit[n] / total);
  }
  return weights;
}

// Where an axis of the resized prompt reads the prompt. Half-pixel centres (align_corners False), clamped at
// the borders: pixel i lies between near[i] and far[i].
struct Axis {
  std::vector<int32_t> near, far;
  std::vector<float> part;  // of far
  Axis(int64_t length, int64_t side) : near(length), far(length), part(length) {
    for (int64_t i = 0; i < length; ++i) {
      const float at = std::max(0.0f, (i + 0.5f) * (float(side) / length) - 0.5f);
      near[i] = int32_t(std::min<int64_t>(int64_t(at), side - 1));
      far[i] = int32_t(std::min<int64_t>(near[i] + 1, side - 1));
      part[i] = at - near[i];
    }
  }
};

// Mixes the prompts of each item and resizes the mixture to a.size, into the scratch memory.
void mix_and_resize(const MirlPrompt& a, const std::vector<float>& weights) {
  const int64_t height = a.size.height, width = a.size.width, side = a.side, square = side * side;
  const Axis down(height, side), across(width, side);
  auto resize = [&](int64_t t) {
    const int64_t b = t / a.channels, c = t % a.channels;
    float *mixture = mirl::scratch(square + side), *line = mixture + square;
    std::memset(mixture, 0, sizeof(float) * square);
    for (int64_t n = 0; n < a.count; ++n) {
      const float weight = weights[b * a.count + n], *prompt = a.prompt_param + (n * a.channels + c) * square;
      for (int64_t i = 0; i < square; ++i) mixture[i] += weight * prompt[i];
    }
    const int32_t *near = across.near.data(), *far = across.far.data();
    const float* part = across.part.data();
    for (int64_t y = 0; y < height; ++y) {
      const float *above = mixture + down.near[y] * side, *below = mixture + down.far[y] * side,
                  f = down.part[y];
      for (int64_t i = 0; i < side; ++i) line[i] = above[i] * (1 - f) + below[i] * f;
      float* to = a.scratch + (t * height + y) * width;
      for (int64_t x = 0; x < width; ++x) to[x] = line[near[x]] * (1 - part[x]) + line[far[x]] * part[x];
    }
  };
  mirl::parallel(a.size.batch * a.channels, a.threads, resize);
}

}  // namespace

void prompt(MirlPrompt& a) {
  const int64_t height = a.size.height, width = a.size.width, plane = height * width;
  mix_and_resize(a, prompt_weights(a, channel_means(a)));
  MirlConv args{};
  args.x = {a.scratch, a.channels * plane, plane, width}, args.y = a.y, args.weight = a.conv3x3;
  args.size = {a.size.batch, a.channels, height, width, 0}, args.height = height, args.width = width;
  args.stride_y = args.stride_x = args.shuffle = 1, args.activation.slope = 1;
  args.threads = a.threads;
  conv(args);
}

}  // namespace MIRL_ISA
