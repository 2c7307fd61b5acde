// Changes near edges (colour family): green moved where the luma has gradients. The blurred gradient is kept in float
// for the whole image, since it is scaled by its own extremes. Its border is replicated, which sets these extremes
// where the image has edges at its border. Listed in table.h; parameters in qpt/degradations/rows/by_source.py.
#pragma once
#include "sharpen.h"
#include "team_maxima.h"

namespace qpt {

constexpr float kEdgeSigma = 4.0f;
constexpr i32 kEdgeRadius = 8, kEdgeTaps = 2 * kEdgeRadius + 1;

// Returns the row or column of the source for position i - `moved`, where the side of n pixels is continued by `border`
// copies of its ends and then repeats.
QPT_INLINE i32 wrapped(i32 i, i32 moved, i32 n, i32 border) {
  const i32 period = n + 2 * border;
  return clamp((i - moved + border + 64 * period) % period - border, 0, n - 1);
}

// Moves green by p0 = shift_px in the direction p1 = angle_deg, counter-clockwise as seen, rows and columns rounded,
// and blends it with the green that was there: its share is the blurred gradient of the luma, 0 where that is least in
// the image and 1 where it is most. Beyond the border lie as many copies of it as green moves along the other axis,
// then the opposite side.
template <class Team>
QPT_FN void colour_shift_edges(Team& team, OpArgs a) {
  const float distance = parameter(a.params[0], 0.0f, 64.0f);
  const SinCos angle = sin_cos_degrees(parameter(a.params[1], -36000.0f, 36000.0f));
  const i32 right = static_cast<i32>(nearest(distance * angle.cos)),
            up = static_cast<i32>(nearest(distance * angle.sin));
  Scratch scratch{static_cast<u8*>(a.scratch)};
  float* edge = scratch.take<float>(static_cast<i64>(a.h) * a.w);
  float* along_rows = scratch.take<float>(static_cast<i64>(a.h) * a.w);
  float* weight = scratch.take_own<float>(team, kEdgeTaps);
  const Span own = rows_of(team, a);
  const auto luma = [&](i32 y, i32 x) {
    return luma_601(a.src + (static_cast<i64>(clamp(y, 0, a.h - 1)) * a.w + clamp(x, 0, a.w - 1)) * 3);
  };
  each(team, own, a.w, [&](i32 y, i32 x) {
    const float across = luma(y, x + 1) - luma(y, x - 1), down = luma(y + 1, x) - luma(y - 1, x);
    edge[y * a.w + x] = square_root(across * across + down * down);
  });
  each(team, kEdgeTaps, [&](i32 t) { weight[t] = GaussianTap{kEdgeSigma}(t - kEdgeRadius); });
  team.sync();  // gradients of the block's rows and weights, written by all, are read by all
  each(team, own, a.w, [&](i32 y, i32 x) {
    float sum = 0.0f;
    for (i32 t = 0; t < kEdgeTaps; ++t)
      sum = fma(weight[t], edge[y * a.w + clamp(x + t - kEdgeRadius, 0, a.w - 1)], sum);
    along_rows[y * a.w + x] = sum;
  });
  team.sync_team();  // sums along rows, written by all, are read by all
  float low = 1e30f, high = 0.0f;
  each(team, own, a.w, [&](i32 y, i32 x) {
    float sum = 0.0f;
    for (i32 t = 0; t < kEdgeTaps; ++t)
      sum = fma(weight[t], along_rows[clamp(y + t - kEdgeRadius, 0, a.h - 1) * a.w + x], sum);
    edge[y * a.w + x] = sum;  // not divided by the sum of the weights, since it is stretched
    low = minimum(low, sum);
    high = maximum(high, sum);
  });
  const Pair most = team_maxima(team, scratch, {-low, high});
  low = -most.first;
  high = most.second;
  const float range = high > low ? high - low : 1.0f;
  const i32 border_y = right < 0 ? -right : right, border_x = up < 0 ? -up : up;
  each(team, own, a.w, [&](i32 y, i32 x) {
    const i32 p = y * a.w + x;
    const float share = (edge[p] - low) / range;
    const i32 from = wrapped(y, -up, a.h, border_y) * a.w + wrapped(x, right, a.w, border_x);
    const float green = a.src[3 * p + 1], moved = a.src[3 * from + 1];
    a.dst[3 * p] = a.src[3 * p];
    a.dst[3 * p + 1] = to_u8(green + share * (moved - green));
    a.dst[3 * p + 2] = a.src[3 * p + 2];
  });
}

QPT_FN i64 edge_bytes(i32 h, i32 w, i32 blocks) {
  return 2 * taken_bytes<float>(static_cast<i64>(h) * w) + own_bytes<float>(kEdgeTaps, blocks) +
         team_maxima_bytes(blocks);
}

}  // namespace qpt
