// Changes in CIELAB (colour family): chroma and the brightness curve. sRGB (IEC 61966-2-1) and CIE 15 with white D65,
// with the constants of skimage.color. L, a and b are linear in f(X), f(Y) and f(Z), so an op changes these three and
// never computes L, a or b. Both branches of a curve are computed before one is selected, so that loops vectorise.
// Listed in table.h; parameters in qpt/degradations/rows/colour.py.
#pragma once
#include "sharpen.h"
#include "tone.h"

namespace qpt {

// Returns the linear light of an sRGB value, both in [0, 1].
QPT_INLINE float linear_light(float share) {
  const float curved = exponential(2.4f * natural_log((share + 0.055f) / 1.055f));
  const float straight = share / 12.92f;
  return share > 0.04045f ? curved : straight;
}

// Returns the sRGB value, 0-255, of linear light, clipped.
QPT_INLINE float encoded_light(float light) {
  const float bounded = clamp(light, 0.0f, 1.0f);
  const float curved = 1.055f * exponential(natural_log(maximum(bounded, 0.003f)) / 2.4f) - 0.055f;
  const float straight = 12.92f * bounded;
  return 255.0f * (bounded > 0.0031308f ? curved : straight);
}

// Returns f of CIE 15 for a tristimulus value as a share of the white's, in [0, 1]: L = 116 f(Y) - 16,
// a = 500 (f(X) - f(Y)), b = 200 (f(Y) - f(Z)).
QPT_INLINE float lab_response(float share) {
  const float root = exponential(natural_log(maximum(share, 0.008f)) / 3.0f);
  const float straight = 7.787f * share + 16.0f / 116.0f;
  return share > 0.008856f ? root : straight;
}

QPT_INLINE float from_lab_response(float f) {
  const float cube = f * f * f, straight = (f - 16.0f / 116.0f) / 7.787f;
  return f > 0.2068966f ? cube : straight;
}

struct LabResponses {
  float x, y, z;
};

QPT_INLINE LabResponses lab_responses(float red, float green, float blue) {
  return {lab_response((0.412453f * red + 0.35758f * green + 0.180423f * blue) / 0.95047f),
          lab_response(0.212671f * red + 0.71516f * green + 0.072169f * blue),
          lab_response((0.019334f * red + 0.119193f * green + 0.950227f * blue) / 1.08883f)};
}

struct Rgb {
  float red, green, blue;  // 0-255
};

// Returns the colour of responses. f(Z) is at least 0, as in skimage.color.lab2xyz. The matrix is the inverse of the
// one above.
QPT_INLINE Rgb rgb_of(LabResponses f) {
  const float x = 0.95047f * from_lab_response(f.x), y = from_lab_response(f.y);
  const float z = 1.08883f * from_lab_response(maximum(f.z, 0.0f));
  return {encoded_light(3.24048134f * x - 1.53715152f * y - 0.49853633f * z),
          encoded_light(-0.96925495f * x + 1.87599f * y + 0.04155593f * z),
          encoded_light(0.05564664f * x - 0.20404134f * y + 1.05731107f * z)};
}

// Writes the linear light of the 256 values to a lookup table. The caller must sync() before it is read.
template <class Team>
QPT_FN void fill_light_lut(const Team& team, float* light) {
  each(team, 256, [&](i32 value) { light[value] = linear_light(static_cast<float>(value) / 255.0f); });
}

// Multiplies a and b of CIELAB by p0 = factor; 1 changes nothing.
template <class Team>
QPT_FN void chroma(Team& team, OpArgs a) {
  const float factor = parameter(a.params[0], 0.0f, 16.0f);
  float* light = Scratch{static_cast<u8*>(a.scratch)}.take_own<float>(team, 256);
  fill_light_lut(team, light);
  team.sync();  // the lookup table, written by all, is read by all
  each(team, rows_of(team, a).times(a.w), [&](i32 p) QPT_BODY {
    const LabResponses f = lab_responses(light[a.src[3 * p]], light[a.src[3 * p + 1]], light[a.src[3 * p + 2]]);
    const Rgb out = rgb_of({f.y + factor * (f.x - f.y), f.y, f.y + factor * (f.z - f.y)});
    a.dst[3 * p] = to_u8(out.red);
    a.dst[3 * p + 1] = to_u8(out.green);
    a.dst[3 * p + 2] = to_u8(out.blue);
  });
}

// Reads the two differences of responses that are a / 500 and -b / 200, for load_padded. red: the channel taken as red,
// 0 or 2, as a constant, so that a team of one has loops that vectorise; blue is the other.
template <class Red>
struct LabDifferences {
  static constexpr i32 channels = 2;
  static constexpr bool kByPixel = true;
  const u8* src;       // [h, w, 3]
  const float* light;  // [256]
  i32 w;
  Red red;
  QPT_INLINE LabResponses responses(const u8* pixel) const {
    return lab_responses(light[pixel[red]], light[pixel[1]], light[pixel[2 - red]]);
  }
  QPT_INLINE float operator()(i32 y, i32 i) const {
    const LabResponses f = responses(src + (static_cast<i64>(y) * w + i / 2) * 3);
    return (i % 2 == 0 ? f.x : f.z) - f.y;
  }
  QPT_INLINE void pixel(i32 y, i32 x, float* out) const {
    const LabResponses f = responses(src + (static_cast<i64>(y) * w + x) * 3);
    out[0] = f.x - f.y;
    out[1] = f.z - f.y;
  }
};

// Gives `count` pixels their own lightness and `gain` times the differences of responses; `cut` is subtracted last.
template <class Team, class Red>
QPT_FN void tint(const Team& team, LabDifferences<Red> from, const u8* src, const float* differences, float gain,
                 float cut, i32 count, u8* dst) {
  each(team, count, [&](i32 i) QPT_BODY {
    const float lightness = from.responses(src + 3 * i).y;
    const Rgb out =
        rgb_of({lightness + gain * differences[2 * i], lightness, lightness + gain * differences[2 * i + 1]});
    dst[3 * i + from.red] = to_u8(out.red - cut);
    dst[3 * i + 1] = to_u8(out.green - cut);
    dst[3 * i + 2 - from.red] = to_u8(out.blue - cut);
  });
}

// colour_diffusion_lab with a channel taken as red. cut: subtracted from the result.
template <class Team, class Red>
QPT_FN void diffuse_lab(Team& team, OpArgs a, Red red, float cut) {
  const float sigma = parameter(a.params[0], 0.0f, 0.5f * kMaxLineRadius), gain = parameter(a.params[1], 0.0f, 16.0f);
  Scratch scratch{static_cast<u8*>(a.scratch)};
  float* light = scratch.take_own<float>(team, 256);
  float* band = scratch.take_own<float>(team, static_cast<i64>(kFinishedRows<Team>) * 2 * a.w);
  fill_light_lut(team, light);
  // Not synced: the first barrier of separable_blur comes before any member reads the lookup table.
  const LabDifferences<Red> from{a.src, light, a.w, red};
  separable_blur(team, a, from, ceil_to_int(2.0f * sigma), GaussianTap{maximum(sigma, 0.05f)}, scratch, band, false,
                 [&](i32 y, i32 rows) {
                   const i64 at = static_cast<i64>(3) * y * a.w;
                   tint(team, from, a.src + at, band, gain, cut, rows * a.w, a.dst + at);
                 });
}

// Blurs a and b of CIELAB by p0 = sigma_px, cut off at 2 sigma, and multiplies them by p1 = gain; a sigma of 0 does not
// blur. p2 = 1: as ARNIQA has it, which takes red for blue and blue for red, and rounds down.
template <class Team>
QPT_FN void colour_diffusion_lab(Team& team, OpArgs a) {
  const bool swapped = parameter(a.params[2], 0.0f, 1.0f) >= 0.5f;
  const float cut = swapped ? 0.5f : 0.0f;
  if constexpr (!Team::kSolo)
    diffuse_lab(team, a, swapped ? 2 : 0, cut);
  else if (swapped)
    diffuse_lab(team, a, Constant<2>{}, cut);
  else
    diffuse_lab(team, a, Constant<0>{}, cut);
}

QPT_FN i64 lab_diffusion_bytes(i32 h, i32 w, i32 blocks) {
  const i64 row = 2 * static_cast<i64>(w), padded = row + 4 * kMaxLineRadius;
  if (blocks != kSoloBlocks)
    return own_bytes<float>(256, blocks) + own_bytes<float>(kStrip * row, blocks) +
           3 * own_bytes<float>(kMaxLineTaps + 2 * kTileRows, blocks) + own_bytes<i32>(1, blocks) +
           taken_bytes<float>(h * row + kSlack) + own_bytes<float>(kStrip * padded + kSlack, blocks);
  return taken_bytes<float>(256) + taken_bytes<float>(kBand * row) + 2 * taken_bytes<float>(kMaxLineTaps) +
         taken_bytes<i32>(kMaxLineTaps) + taken_bytes<i32>(1) + taken_bytes<i32>(kBand * kMaxLineTaps) +
         taken_bytes<i32>(kBand) + taken_bytes<float>(ring_rows(h, kMaxLineRadius) * row) +
         taken_bytes<float>(kBand * padded);
}

// Returns the parabola through (0, 0), (1/2, 1/2 + amount / 2) and (1, 1) at `share`, clipped to [0, 1].
QPT_INLINE float parabola(float share, float amount) {
  return clamp(share + 2.0f * amount * share * (1.0f - share), 0.0f, 1.0f);
}

// Applies the parabola of p0 = amount to R, G and B. If it brightens, a third of the result is the image with the
// parabola applied to the lightness L of CIELAB instead.
template <class Team>
QPT_FN void brightness_curve(Team& team, OpArgs a) {
  const float amount = parameter(a.params[0], -2.0f, 2.0f);
  if (amount <= 0.0f) {
    apply_curve(team, a, [&](float x) { return 255.0f * parabola(x / 255.0f, amount); });
    return;
  }
  Scratch scratch{static_cast<u8*>(a.scratch)};
  float* light = scratch.take_own<float>(team, 256);
  float* curved = scratch.take_own<float>(team, 256);
  fill_light_lut(team, light);
  each(team, 256, [&](i32 value) { curved[value] = 510.0f * parabola(static_cast<float>(value) / 255.0f, amount); });
  team.sync();  // both lookup tables, written by all, are read by all
  each(team, rows_of(team, a).times(a.w), [&](i32 p) QPT_BODY {
    const i32 red = a.src[3 * p], green = a.src[3 * p + 1], blue = a.src[3 * p + 2];
    const LabResponses f = lab_responses(light[red], light[green], light[blue]);
    const float lightness = 1.16f * f.y - 0.16f;
    const float lift = (parabola(lightness, amount) - lightness) / 1.16f;
    const Rgb lifted = rgb_of({f.x + lift, f.y + lift, f.z + lift});
    a.dst[3 * p] = to_u8((curved[red] + lifted.red) / 3.0f);
    a.dst[3 * p + 1] = to_u8((curved[green] + lifted.green) / 3.0f);
    a.dst[3 * p + 2] = to_u8((curved[blue] + lifted.blue) / 3.0f);
  });
}

QPT_FN i64 lab_bytes(i32, i32, i32 blocks) {
  return 2 * own_bytes<float>(256, blocks);
}

}  // namespace qpt
