// Tone changes (colour family): one function of a sample's value for the whole image, computed in float32 for the 256
// values and then looked up; dither's depends on the pixel's place too. Gamma and the sigmoid are skimage.exposure's,
// the sigmoid stretched to keep black and white. Listed in table.h; definitions in qpt/degradations/op_table.py.
#pragma once
#include "op.h"

namespace qpt {

// dst = curve(src), clipped and rounded; curve takes and gives float values of 0-255.
template <class Team, class Curve>
QPT_FN void apply_curve(const Team& team, OpArgs a, Curve curve) {
  u8* table = Scratch{static_cast<u8*>(a.scratch)}.take<u8>(256);
  each(team, 256, [&](i32 value) { table[value] = to_u8(curve(static_cast<float>(value))); });
  team.sync();  // the table, written by all, is read by all
  each(team, a.h * a.w * 3, [&](i32 i) { a.dst[i] = table[a.src[i]]; });
}

// 255 (x / 255)^gamma. p0 = gamma; 1 changes nothing.
template <class Team>
QPT_FN void gamma(Team& team, OpArgs a) {
  const float exponent = parameter(a.params[0], 0.1f, 8.0f);
  apply_curve(team, a, [&](float x) {
    const float share = maximum(x, 1.0f) / 255.0f;
    return x > 0.0f ? 255.0f * exponential(exponent * natural_log(share)) : 0.0f;
  });
}

// The logistic function of gain (x / 255 - 1/2), stretched so that 0 and 255 stay. p0 = gain.
template <class Team>
QPT_FN void contrast_curve(Team& team, OpArgs a) {
  const float gain = parameter(a.params[0], 0.5f, 32.0f);
  const auto logistic = [&](float share) {
    const float t = gain * (share - 0.5f), small = exponential(t < 0.0f ? t : -t);
    return (t < 0.0f ? small : 1.0f) / (1.0f + small);
  };
  const float low = logistic(0.0f), range = logistic(1.0f) - low;
  apply_curve(team, a, [&](float x) { return 255.0f * (logistic(x / 255.0f) - low) / range; });
}

// x + p0. p0 = shift on the 0-255 scale.
template <class Team>
QPT_FN void mean_shift(Team& team, OpArgs a) {
  const float shift = parameter(a.params[0], -255.0f, 255.0f);
  apply_curve(team, a, [&](float x) { return x + shift; });
}

// The nearest of p0 = levels equally spaced values, 0 and 255 among them. 2 x (levels - 1) is even and 255 odd, so no
// value lies half way.
template <class Team>
QPT_FN void quantise(Team& team, OpArgs a) {
  const float steps = nearest(parameter(a.params[0], 2.0f, 256.0f)) - 1.0f;
  apply_curve(team, a, [&](float x) { return nearest(x * steps / 255.0f) * 255.0f / steps; });
}

// Keep the highest p0 = bits bits of every value; 8 changes nothing. Pillow's ImageOps.posterize.
template <class Team>
QPT_FN void posterise(Team& team, OpArgs a) {
  const i32 bits = static_cast<i32>(parameter(a.params[0], 1.0f, 8.0f));
  const i32 mask = 0xff << (8 - bits);
  each(team, a.h * a.w * 3, [&](i32 i) { a.dst[i] = static_cast<u8>(a.src[i] & mask); });
}

// Bayer's 8 x 8 matrix of 0..63 at (y, x): the bits of y ^ x and y, interleaved from the lowest up, are its bits from
// the highest down.
QPT_INLINE i32 bayer(i32 y, i32 x) {
  const i32 v = y ^ x;
  return (v & 1) << 5 | (y & 1) << 4 | (v & 2) << 2 | (y & 2) << 1 | (v & 4) >> 1 | (y & 4) >> 2;
}

// One of p0 = levels equally spaced values, the one above or below by the matrix: floor(x steps / 255 + (m + 1/2) /
// 64). In integers: the sum over the denominator 255 x 128 is odd, so it is never whole and nothing hangs on rounding.
template <class Team>
QPT_FN void dither(Team& team, OpArgs a) {
  const i32 steps = static_cast<i32>(nearest(parameter(a.params[0], 2.0f, 256.0f))) - 1;
  each(team, a.h, a.w, [&](i32 y, i32 x) {
    const i64 at = (static_cast<i64>(y) * a.w + x) * 3;
    const i32 threshold = 255 * (2 * bayer(y, x) + 1);
    for (i32 c = 0; c < 3; ++c) {
      const i32 step = (128 * steps * a.src[at + c] + threshold) / (255 * 128);
      a.dst[at + c] = to_u8(static_cast<float>(255 * step) / static_cast<float>(steps));
    }
  });
}

QPT_FN i64 tone_bytes(i32, i32) {
  return taken_bytes<u8>(256);
}

}  // namespace qpt
