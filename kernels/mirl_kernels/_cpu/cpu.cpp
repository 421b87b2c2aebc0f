// Images whose channels lie side by side, into planes.
#include "strips.h"

namespace MIRL_ISA {

void transpose(MirlTranspose& a) {
  constexpr int64_t ROWS = PANEL;
  const int64_t panels = (a.rows + ROWS - 1) / ROWS;
  auto task = [&](int64_t t) {
    const int64_t b = t / panels, first = t % panels * ROWS, rows = std::min(ROWS, a.rows - first);
    const float* x = a.x + b * a.x_batch + first * a.x_row;
    float* y = a.y + b * a.rows * a.columns + first;
    for (int64_t c = 0; c < a.columns; c += L) {
      for (int64_t i = 0; i < rows; i += L)
        turn(x + i * a.x_row + c, a.x_row, y + c * a.rows + i, a.rows, std::min(L, rows - i), std::min(L, a.columns - c));
    }
  };
  mirl::parallel(a.batch * panels, a.threads, task);
}

}  // namespace MIRL_ISA
