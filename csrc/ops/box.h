// Box blur (texture family): the mean over a square, borders reflect-101, as cv2.blur has it. Sums are integers: a
// running sum down every column, then the columns side by side. Listed in table.h.
#pragma once
#include "filter.h"

namespace qpt {

// p0 = radius_px, a whole number in [0, 24]: a window of 2 radius + 1.
template <class Team>
QPT_FN void box_blur(Team& team, OpArgs a) {
  const i32 radius = static_cast<i32>(parameter(a.params[0], 0.0f, static_cast<float>(kMaxRadius)) + 0.5f);
  const i32 taps = 2 * radius + 1, samples = 3 * a.w, stride = samples + 6 * radius;
  const float inverse = 1.0f / static_cast<float>(taps * taps);
  Scratch scratch{static_cast<u8*>(a.scratch)};
  i32* running = scratch.take<i32>(stride);  // of every padded column: the sum over the window's rows
  i32* column = scratch.take<i32>(static_cast<i64>(kBand) * stride);
  i32* sum = scratch.take<i32>(static_cast<i64>(kBand) * samples);
  const auto row_of = [&](i32 y) { return a.src + static_cast<i64>(reflect101(y, a.h)) * samples; };
  // body(place in the padded row, sample of a source row); a member keeps its places from call to call.
  const auto each_padded = [&](auto body) {
    each(team, samples, [&](i32 i) { body(3 * radius + i, i); });
    each(team, 6 * radius, [&](i32 i) {
      const i32 pixel = i / 3, channel = i - 3 * pixel, x = pixel < radius ? pixel - radius : a.w + pixel - radius;
      body(3 * (x + radius) + channel, 3 * reflect101(x, a.w) + channel);
    });
  };
  each_padded([&](i32 place, i32) { running[place] = 0; });
  for (i32 y = -radius; y <= radius; ++y) {
    const u8* row = row_of(y);
    each_padded([&](i32 place, i32 i) { running[place] += row[i]; });
  }
  for (i32 y = 0; y < a.h; y += kBand) {
    const i32 rows = minimum(kBand, a.h - y);
    for (i32 r = 0; r < rows; ++r) {
      const u8 *entering = row_of(y + r + radius + 1), *leaving = row_of(y + r - radius);
      i32* to = column + static_cast<i64>(r) * stride;
      each_padded([&](i32 place, i32 i) {
        const i32 now = running[place];
        to[place] = now;
        running[place] = now + entering[i] - leaving[i];
      });
    }
    team.sync();  // column sums, written by all, are read by all
    each(team, rows, samples, [&](i32 r, i32 i) { sum[r * samples + i] = 0; });
    QPT_UNROLL(1)
    for (i32 t = 0; t < taps; ++t)
      each(team, rows, samples, [&](i32 r, i32 i) { sum[r * samples + i] += column[r * stride + 3 * t + i]; });
    // A mean is at least 1 / (2 taps^2) from half a level, far more than the product's rounding.
    u8* const to = a.dst + static_cast<i64>(y) * samples;
    each(team, rows, samples,
         [&](i32 r, i32 i) { to[r * samples + i] = to_u8(static_cast<float>(sum[r * samples + i]) * inverse); });
    team.sync();  // all have read the column sums that the next band overwrites
  }
}

QPT_FN i64 box_bytes(i32, i32 w) {
  const i64 samples = static_cast<i64>(3) * w, stride = samples + 6 * kMaxRadius;
  return taken_bytes<i32>(stride) + taken_bytes<i32>(kBand * stride) + taken_bytes<i32>(kBand * samples);
}

}  // namespace qpt
