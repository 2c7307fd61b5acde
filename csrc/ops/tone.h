// Tone changes (colour family): a function of a sample's value alone, computed in float32 for the 256 values and then
// looked up; dither depends on the pixel's position too. Gamma and the sigmoid are those of skimage.exposure, the
// sigmoid stretched so that black and white stay. Listed in table.h; parameters in qpt/degradations/rows/colour.py.
#pragma once
#include "team_maxima.h"

namespace qpt {

// Writes dst = curve(src), clipped and rounded. curve maps float values of 0-255 to such values.
template <class Team, class Curve>
QPT_FN void apply_curve(const Team& team, OpArgs a, Curve curve) {
  u8* lut = Scratch{static_cast<u8*>(a.scratch)}.take_own<u8>(team, 256);
  each(team, 256, [&](i32 value) { lut[value] = to_u8(curve(static_cast<float>(value))); });
  team.sync();  // the lookup table, written by all, is read by all
  each(team, rows_of(team, a).times(3 * a.w), [&](i32 i) { a.dst[i] = lut[a.src[i]]; });
}

// Maps x to 255 (x / 255)^gamma. p0 = gamma; 1 changes nothing.
template <class Team>
QPT_FN void gamma(Team& team, OpArgs a) {
  const float exponent = parameter(a.params[0], 0.1f, 8.0f);
  apply_curve(team, a, [&](float x) {
    const float share = maximum(x, 1.0f) / 255.0f;
    return x > 0.0f ? 255.0f * exponential(exponent * natural_log(share)) : 0.0f;
  });
}

// Maps x to the logistic function of gain (x / 255 - 1/2), stretched so that 0 and 255 stay. p0 = gain.
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

// Maps x to x + shift. p0 = shift on the 0-255 scale.
template <class Team>
QPT_FN void mean_shift(Team& team, OpArgs a) {
  const float shift = parameter(a.params[0], -255.0f, 255.0f);
  apply_curve(team, a, [&](float x) { return x + shift; });
}

// Maps x to the nearest of p0 = levels equally spaced values, 0 and 255 among them. No value lies half way between two,
// since 2 x (levels - 1) is even and 255 is odd.
template <class Team>
QPT_FN void quantise(Team& team, OpArgs a) {
  const float steps = nearest(parameter(a.params[0], 2.0f, 256.0f)) - 1.0f;
  apply_curve(team, a, [&](float x) { return nearest(x * steps / 255.0f) * 255.0f / steps; });
}

// Keeps the highest p0 = bits bits of every value, as Pillow's ImageOps.posterize does; 8 changes nothing.
template <class Team>
QPT_FN void posterise(Team& team, OpArgs a) {
  const i32 bits = static_cast<i32>(parameter(a.params[0], 1.0f, 8.0f));
  const i32 mask = 0xff << (8 - bits);
  each(team, rows_of(team, a).times(3 * a.w), [&](i32 i) { a.dst[i] = static_cast<u8>(a.src[i] & mask); });
}

// Returns the element (y, x) of Bayer's 8 x 8 matrix of 0..63. Its bits from the highest down are the bits of y ^ x and
// y from the lowest up, interleaved.
QPT_INLINE i32 bayer(i32 y, i32 x) {
  const i32 v = y ^ x;
  return (v & 1) << 5 | (y & 1) << 4 | (v & 2) << 2 | (y & 2) << 1 | (v & 4) >> 1 | (y & 4) >> 2;
}

// Maps x to one of p0 = levels equally spaced values, the one above or the one below by the matrix element m: value
// number floor(x steps / 255 + (m + 1/2) / 64). In integers the sum over the denominator 255 x 128 is odd, so it is
// never an integer itself, and the result does not depend on rounding.
template <class Team>
QPT_FN void dither(Team& team, OpArgs a) {
  const i32 steps = static_cast<i32>(nearest(parameter(a.params[0], 2.0f, 256.0f))) - 1;
  each(team, rows_of(team, a), a.w, [&](i32 y, i32 x) {
    const i64 at = (static_cast<i64>(y) * a.w + x) * 3;
    const i32 threshold = 255 * (2 * bayer(y, x) + 1);
    for (i32 c = 0; c < 3; ++c) {
      const i32 step = (128 * steps * a.src[at + c] + threshold) / (255 * 128);
      a.dst[at + c] = to_u8(static_cast<float>(255 * step) / static_cast<float>(steps));
    }
  });
}

// Maps a share x to 1/2 + p0 (x - 1/2) + p1 (x - 1/2)^3. p0 = slope, p1 = cubic.
template <class Team>
QPT_FN void tone_cubic(Team& team, OpArgs a) {
  const float slope = parameter(a.params[0], -4.0f, 4.0f), cubic = parameter(a.params[1], -16.0f, 16.0f);
  apply_curve(team, a, [&](float x) {
    const float u = x / 255.0f - 0.5f;
    return 255.0f * (0.5f + u * (slope + cubic * (u * u)));
  });
}

// Cuts [0, 255] into p0 = levels equal intervals, of which a value on an edge belongs to the one below and 0 to none,
// and maps the numbers of the intervals linearly, so that the lowest in the image becomes black and the highest white.
// Where there is one number alone, it becomes white unless it is that of 0.
template <class Team>
QPT_FN void quantise_stretched(Team& team, OpArgs a) {
  const i32 levels = static_cast<i32>(nearest(parameter(a.params[0], 2.0f, 256.0f)));
  Scratch scratch{static_cast<u8*>(a.scratch)};
  u8* lut = scratch.take_own<u8>(team, 256);
  const Span own = rows_of(team, a).times(3 * a.w);
  i32 low = 255, high = 0;
  each(team, own, [&](i32 i) {
    low = minimum(low, static_cast<i32>(a.src[i]));
    high = maximum(high, static_cast<i32>(a.src[i]));
  });
  const Pair most = team_maxima(team, scratch, {static_cast<float>(-low), static_cast<float>(high)});
  const auto interval = [&](i32 value) { return (value * levels + 254) / 255; };
  const i32 first = interval(-static_cast<i32>(most.first)), last = interval(static_cast<i32>(most.second));
  const float from = static_cast<float>(first < last ? first : 0);
  const float steps = static_cast<float>(first < last ? last - first : 1);
  each(team, 256,
       [&](i32 value) { lut[value] = to_u8(255.0f * (static_cast<float>(interval(value)) - from) / steps); });
  team.sync();  // the lookup table, written by all, is read by all
  each(team, own, [&](i32 i) { a.dst[i] = lut[a.src[i]]; });
}

QPT_FN i64 stretch_bytes(i32, i32, i32 blocks) {
  return own_bytes<u8>(256, blocks) + team_maxima_bytes(blocks);
}

QPT_FN i64 tone_bytes(i32, i32, i32 blocks) {
  return own_bytes<u8>(256, blocks);
}

}  // namespace qpt
