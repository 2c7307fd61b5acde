// Colour changes (colour family): brightness, contrast, saturation, hue, value. Brightness and contrast are Pillow's
// ImageEnhance, but rounded: Pillow's blend truncates, which darkens by half a grey level each time. Saturation, hue
// and value are those of hexcone HSV (Smith, SIGGRAPH 1978; colorsys, skimage.color) in float32. Each op is one pass
// over the image, after a sum over it for contrast. Listed in table.h.
#pragma once
#include "team_sum.h"

namespace qpt {

// Returns from + factor (to - from) in float32, clipped and rounded; factors above 1 extrapolate.
QPT_INLINE u8 blend(i32 from, i32 to, float factor) {
  return to_u8(static_cast<float>(from) + factor * static_cast<float>(to - from));
}

// Blends with black. p0 = factor; 1 changes nothing.
template <class Team>
QPT_FN void brightness(Team& team, OpArgs a) {
  const float factor = parameter(a.params[0], 0.0f, 255.0f);
  each(team, rows_of(team, a).times(3 * a.w), [&](i32 i) { a.dst[i] = blend(0, a.src[i], factor); });
}

// Returns the ITU-R 601 luma as an integer, as Pillow rounds it.
QPT_INLINE i32 rounded_luma(const u8* pixel) {
  return static_cast<i32>((19595u * pixel[0] + 38470u * pixel[1] + 7471u * pixel[2] + 32768u) >> 16);
}

// Blends with the rounded mean of the ITU-R 601 luma. p0 = factor; 1 changes nothing.
template <class Team>
QPT_FN void contrast(Team& team, OpArgs a) {
  const float factor = parameter(a.params[0], 0.0f, 255.0f);
  const Span rows = rows_of(team, a);
  u64 sum = 0;
  for (i32 y = rows.first; y < rows.last; ++y) {
    const u8* row = a.src + static_cast<i64>(y) * a.w * 3;
    u32 row_sum = 0;  // <= 255 w
    for (i32 x = team.rank(); x < a.w; x += team.size()) row_sum += static_cast<u32>(rounded_luma(row + 3 * x));
    sum += row_sum;
  }
  const u64 total = TeamSum(team, Scratch{static_cast<u8*>(a.scratch)}).of(sum);
  const u64 pixels = static_cast<u64>(a.h) * static_cast<u64>(a.w);
  const i32 mean = static_cast<i32>((2 * total + pixels) / (2 * pixels));
  each(team, rows_of(team, a).times(3 * a.w), [&](i32 i) { a.dst[i] = blend(mean, a.src[i], factor); });
}

// Multiplies the HSV saturation by p0 = factor, clipped to 1. No conversion is needed: with V = max, S = (max - min) /
// max and a fixed hue, every channel c becomes V - (V - c) S'/S, and S'/S = min(factor, 1/S).
template <class Team>
QPT_FN void saturation(Team& team, OpArgs a) {
  const float factor = parameter(a.params[0], 0.0f, 255.0f);
  each(team, rows_of(team, a).times(a.w), [&](i32 p) {
    const float r = a.src[3 * p], g = a.src[3 * p + 1], b = a.src[3 * p + 2];
    const float value = maximum(maximum(r, g), b), chroma = value - minimum(minimum(r, g), b);
    const float ratio =
        minimum(factor, value / maximum(chroma, 0.5f));  // 0.5 avoids 0 / 0 for grey, whose value - c is 0
    a.dst[3 * p] = to_u8(value - (value - r) * ratio);
    a.dst[3 * p + 1] = to_u8(value - (value - g) * ratio);
    a.dst[3 * p + 2] = to_u8(value - (value - b) * ratio);
  });
}

// Maps the HSV saturation S to min(p0 S + p1, 1), which may be negative: channels then lie beyond the value. The hue of
// grey is red's. p0 = factor, p1 = offset.
template <class Team>
QPT_FN void saturation_affine(Team& team, OpArgs a) {
  const float factor = parameter(a.params[0], -4.0f, 32.0f), offset = parameter(a.params[1], -1.0f, 1.0f);
  each(team, rows_of(team, a).times(a.w), [&](i32 p) {
    const float r = a.src[3 * p], g = a.src[3 * p + 1], b = a.src[3 * p + 2];
    const float value = maximum(maximum(r, g), b), chroma = value - minimum(minimum(r, g), b);
    const float inverse = value / maximum(chroma, 0.5f);              // 1 / S; 0.5 avoids 0 / 0
    const float ratio = minimum(factor + offset * inverse, inverse);  // of the new saturation to S
    const float tinted = value * (1.0f - minimum(offset, 1.0f));      // green and blue of what was grey
    const bool grey = chroma == 0.0f;
    a.dst[3 * p] = to_u8(value - (value - r) * ratio);
    a.dst[3 * p + 1] = to_u8(grey ? tinted : value - (value - g) * ratio);
    a.dst[3 * p + 2] = to_u8(grey ? tinted : value - (value - b) * ratio);
  });
}

// Returns the hue in sixths of a turn times the chroma C, in [-C, 5 C]: the sector of the largest channel (red before
// green before blue) plus the signed difference of the other two. It is linear in the channels, so nothing is divided.
// The hue of grey is 0.
QPT_INLINE float hue_times_chroma(float r, float g, float b, float value, float chroma) {
  const float in_red = g - b, in_green = b - r + 2.0f * chroma, in_blue = r - g + 4.0f * chroma;
  return value == r ? in_red : value == g ? in_green : in_blue;
}

// Maps an angle in sixths of a turn to the same angle in [1, 7]; added to a hue in [-1, 5] it gives a hue in [0, 12]
// for write_hexcone.
QPT_INLINE float forward_sixths(float turned) {
  const float within = turned - 6.0f * nearest(turned / 6.0f);  // [-3, 3]
  return within < 1.0f ? within + 6.0f : within;
}

// Writes the hexcone's channels for a hue h in [0, 12], taken mod 6: V - C plus C times |h - 3| - 1, 2 - |h - 2| and
// 2 - |h - 4|, each clipped to [0, 1]. turned: C h. low: V - C.
QPT_INLINE void write_hexcone(u8* dst, float turned, float low, float chroma) {
  const float two = 2.0f * chroma, four = 4.0f * chroma, six = 6.0f * chroma;
  const float h = turned >= six ? turned - six : turned;
  dst[0] = to_u8(low + clamp(maximum(h - four, two - h), 0.0f, chroma));
  dst[1] = to_u8(low + clamp(minimum(h, four - h), 0.0f, chroma));
  dst[2] = to_u8(low + clamp(minimum(h - two, six - h), 0.0f, chroma));
}

// Turns the HSV hue by p0 = shift_deg.
template <class Team>
QPT_FN void hue(Team& team, OpArgs a) {
  const float shift = forward_sixths(parameter(a.params[0], -36000.0f, 36000.0f) / 60.0f);
  each(team, rows_of(team, a).times(a.w), [&](i32 p) {
    const float r = a.src[3 * p], g = a.src[3 * p + 1], b = a.src[3 * p + 2];
    const float value = maximum(maximum(r, g), b), low = minimum(minimum(r, g), b), chroma = value - low;
    write_hexcone(a.dst + 3 * p, hue_times_chroma(r, g, b, value, chroma) + shift * chroma, low, chroma);
  });
}

// Adds p0 = shift, a share of 255, to the HSV value, clipped. Saturation and hue stay, so each channel keeps its ratio
// to the value; black becomes grey.
template <class Team>
QPT_FN void value_shift(Team& team, OpArgs a) {
  const float shift = 255.0f * parameter(a.params[0], -1.0f, 1.0f);
  each(team, rows_of(team, a).times(a.w), [&](i32 p) {
    const float r = a.src[3 * p], g = a.src[3 * p + 1], b = a.src[3 * p + 2];
    const float value = maximum(maximum(r, g), b), moved = clamp(value + shift, 0.0f, 255.0f);
    const float ratio = moved / maximum(value, 1.0f);
    a.dst[3 * p] = to_u8(moved - (value - r) * ratio);
    a.dst[3 * p + 1] = to_u8(moved - (value - g) * ratio);
    a.dst[3 * p + 2] = to_u8(moved - (value - b) * ratio);
  });
}

QPT_FN i64 colour_bytes(i32, i32, i32 blocks) {
  return team_sum_bytes(blocks);
}

}  // namespace qpt
