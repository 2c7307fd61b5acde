// Box blur (texture family): the mean over a square, as cv2.blur computes it with reflect-101 borders. Sums are
// integers: a running sum down every column, then the sum of neighbouring columns. Listed in table.h.
#pragma once
#include "filter.h"

namespace qpt {

// Writes to sum[r, i] the sum of the 2 radius + 1 columns around sample i, for `rows` padded rows of column sums.
template <class Team>
QPT_FN void sum_columns(const Team& team, const i32* column, i32 rows, i32 samples, i32 radius, i32* sum) {
  const i32 taps = 2 * radius + 1, stride = samples + 6 * radius;
  if constexpr (Team::kSolo) {  // running sums along the row too
    for (i32 r = 0; r < rows; ++r) {
      const i32 *entering = column + static_cast<i64>(r) * stride, *leaving = entering;
      i32 red = 0, green = 0, blue = 0;
      for (i32 t = 1; t < taps; ++t, entering += 3) {
        red += entering[0];
        green += entering[1];
        blue += entering[2];
      }
      i32* to = sum + static_cast<i64>(r) * samples;
      for (i32 i = 0; i < samples; i += 3, entering += 3, leaving += 3) {
        to[i] = red += entering[0];
        to[i + 1] = green += entering[1];
        to[i + 2] = blue += entering[2];
        red -= leaving[0];
        green -= leaving[1];
        blue -= leaving[2];
      }
    }
  } else {
    each(team, rows, samples, [&](i32 r, i32 i) {
      i32 total = 0;
      for (i32 t = 0; t < taps; ++t) total += column[r * stride + i + 3 * t];
      sum[r * samples + i] = total;
    });
  }
}

// The mean over a window of 2 radius + 1 pixels a side. p0 = radius_px, an integer in [0, 24].
template <class Team>
QPT_FN void box_blur(Team& team, OpArgs a) {
  constexpr i32 kRows = Team::kSolo ? kBand : kStrip;  // between barriers
  const i32 radius = static_cast<i32>(parameter(a.params[0], 0.0f, static_cast<float>(kMaxRadius)) + 0.5f);
  const i32 samples = 3 * a.w, stride = samples + 6 * radius;
  const Span own = rows_of(team, a);
  const float inverse = 1.0f / static_cast<float>((2 * radius + 1) * (2 * radius + 1));
  Scratch scratch{static_cast<u8*>(a.scratch)};
  u8* zeros = scratch.take_own<u8>(team, samples);
  i32* border =
      scratch.take_own<i32>(team, 6 * kMaxRadius);     // the sample of the row that each sample beyond its ends mirrors
  i32* running = scratch.take_own<i32>(team, stride);  // sum over the window's rows, for every padded column
  i32* column = scratch.take_own<i32>(team, static_cast<i64>(kRows) * stride);
  i32* sum = scratch.take_own<i32>(team, static_cast<i64>(kRows) * samples);
  const auto row_of = [&](i32 y) { return a.src + static_cast<i64>(reflect101(y, a.h)) * samples; };
  // Stores the running sums in `to`, then adds one row to them and subtracts another. A member has the same elements in
  // every call, so calls need no barrier between them.
  const auto advance = [&](i32* to, const u8* entering, const u8* leaving) {
    i32 *const inner = running + 3 * radius, *const inner_to = to + 3 * radius;
    each(team, samples, [=](i32 i) {
      inner_to[i] = inner[i];
      inner[i] = inner[i] + entering[i] - leaving[i];
    });
    each(team, 6 * radius, [=](i32 i) {
      const i32 place = i < 3 * radius ? i : samples + i, from = border[i];
      to[place] = running[place];
      running[place] = running[place] + entering[from] - leaving[from];
    });
  };
  each(team, 6 * radius, [=](i32 i) {
    const i32 pixel = i / 3, x = pixel < radius ? pixel - radius : a.w + pixel - radius;
    border[i] = 3 * reflect101(x, a.w) + i - 3 * pixel;
  });
  each(team, samples, [=](i32 i) { zeros[i] = 0; });
  each(team, stride, [=](i32 i) { running[i] = 0; });
  team.sync();  // border and zeros, written by all, are read by all
  for (i32 y = own.first - radius; y <= own.first + radius; ++y) advance(column, row_of(y), zeros);
  for (i32 y = own.first; y < own.last; y += kRows) {
    const i32 rows = minimum(kRows, own.last - y);
    for (i32 r = 0; r < rows; ++r)
      advance(column + static_cast<i64>(r) * stride, row_of(y + r + radius + 1), row_of(y + r - radius));
    team.sync();  // column sums, written by all, are read by all
    sum_columns(team, column, rows, samples, radius, sum);
    team.sync();  // sums, written by all, are rounded by all; all have read the column sums, which are overwritten
    // taps^2 is odd, so a mean is at least 1 / (2 taps^2) away from half a level, far more than the product's rounding
    // error: multiplying by the inverse rounds as dividing would.
    u8* const to = a.dst + static_cast<i64>(y) * samples;
    each(team, rows * samples, [=](i32 i) { to[i] = to_u8(static_cast<float>(sum[i]) * inverse); });
  }
}

QPT_FN i64 box_bytes(i32, i32 w, i32 blocks) {
  const i64 samples = static_cast<i64>(3) * w, stride = samples + 6 * kMaxRadius;
  const i32 rows = blocks == kSoloBlocks ? kBand : kStrip;
  return own_bytes<u8>(samples, blocks) + own_bytes<i32>(6 * kMaxRadius, blocks) + own_bytes<i32>(stride, blocks) +
         own_bytes<i32>(rows * stride, blocks) + own_bytes<i32>(rows * samples, blocks);
}

}  // namespace qpt
