// The prompt block: mean, softmax, mixture at the prompts' own size, bilinear resize, sparse 3x3 convolution.
#include "conv.h"

namespace MIRL_ISA {

void prompt(const MirlPrompt& a) {
  const int64_t plane = a.size.height * a.size.width, height = a.size.height, width = a.size.width;
  const int64_t side = a.side, square = side * side;
  std::vector<float> weights(a.size.batch * a.count);
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
    means[t] = total / plane;
  };
  mirl::parallel(a.size.batch * a.size.channels, a.threads, mean);
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

  float *mixed = a.scratch, *resized = mixed + a.size.batch * a.channels * square;
  auto resize = [&](int64_t t) {
    const int64_t b = t / a.channels, c = t % a.channels;
    float* mixture = mixed + t * square;
    for (int64_t i = 0; i < square; ++i) {
      float value = 0;
      for (int64_t n = 0; n < a.count; ++n)
        value += weights[b * a.count + n] * a.prompt_param[(n * a.channels + c) * square + i];
      mixture[i] = value;
    }
    // Half-pixel centres (align_corners False): clamped at the borders.
    for (int64_t y = 0; y < height; ++y) {
      const float sy = std::max(0.0f, (y + 0.5f) * (float(side) / height) - 0.5f);
      const int64_t y0 = std::min<int64_t>(int64_t(sy), side - 1), y1 = std::min(y0 + 1, side - 1);
      const float fy = sy - y0;
      for (int64_t x = 0; x < width; ++x) {
        const float sx = std::max(0.0f, (x + 0.5f) * (float(side) / width) - 0.5f);
        const int64_t x0 = std::min<int64_t>(int64_t(sx), side - 1), x1 = std::min(x0 + 1, side - 1);
        const float fx = sx - x0;
        const float top = mixture[y0 * side + x0] * (1 - fx) + mixture[y0 * side + x1] * fx;
        const float below = mixture[y1 * side + x0] * (1 - fx) + mixture[y1 * side + x1] * fx;
        resized[t * plane + y * width + x] = top * (1 - fy) + below * fy;
      }
    }
  };
  mirl::parallel(a.size.batch * a.channels, a.threads, resize);
  MirlConv conv{{resized, a.channels * plane, plane, width}, a.y, {}, a.size, a.conv3x3, 3, 1, a.threads};
  conv.size.channels = a.channels;
  run_conv(conv);
}

}  // namespace MIRL_ISA
