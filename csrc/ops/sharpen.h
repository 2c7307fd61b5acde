// What mixes an image with its own Gaussian blur: sharpening (texture family) and bled colours (colour family). The
// blur stays float, a band of rows at a time. Luma is ITU-R 601's. Listed in table.h; definitions in
// qpt/degradations.py.
#pragma once
#include "blur.h"

namespace qpt {

// finish(at, blurred) for every pixel: `at` is the index of its first sample, `blurred` points to the three samples of
// the Gaussian blur, which finish may not keep.
template <class Team, class Finish>
QPT_FN void with_gaussian_blur(const Team& team, OpArgs a, i32 radius, float sigma, Finish finish) {
  Scratch scratch{static_cast<u8*>(a.scratch)};
  const i32 samples = 3 * a.w;
  float* band = scratch.take<float>(static_cast<i64>(kBand) * samples);
  separable_blur(team, a, radius, GaussianTap{sigma}, scratch, band, static_cast<i64>(0), [&](i32 y, i32 rows) {
    each(team, rows * a.w,
         [&](i32 p) { finish(static_cast<i64>(y) * samples + 3 * p, static_cast<const float*>(band + 3 * p)); });
  });
}

template <class Sample>
QPT_INLINE float luma_601(const Sample* pixel) {
  return 0.299f * static_cast<float>(pixel[0]) + 0.587f * static_cast<float>(pixel[1]) +
         0.114f * static_cast<float>(pixel[2]);
}

// x + amount (x - blur(x)). p0 = amount, p1 = sigma_px in (0, 8].
template <class Team>
QPT_FN void unsharp_mask(Team& team, OpArgs a) {
  const float amount = parameter(a.params[0], 0.0f, 16.0f);
  const float sigma = parameter(a.params[1], 0.05f, 8.0f);
  with_gaussian_blur(team, a, gaussian_radius(sigma), sigma, [&](i64 at, const float* blurred) {
    const u8* src = a.src + at;
    u8* dst = a.dst + at;
    for (i32 c = 0; c < 3; ++c) {
      const float x = src[c];
      dst[c] = to_u8(x + amount * (x - blurred[c]));
    }
  });
}

// The difference of the luma to its blur, amount times on every channel. p0 = amount, p1 = radius_px, a whole number in
// [1, 24], which is the blur's sigma too: its kernel is cut off after one sigma, as in the source.
template <class Team>
QPT_FN void high_sharpen(Team& team, OpArgs a) {
  const float amount = parameter(a.params[0], 0.0f, 64.0f);
  const i32 radius = static_cast<i32>(parameter(a.params[1], 1.0f, static_cast<float>(kMaxRadius)) + 0.5f);
  with_gaussian_blur(team, a, radius, static_cast<float>(radius), [&](i64 at, const float* blurred) {
    const u8* src = a.src + at;
    u8* dst = a.dst + at;
    const float detail = amount * (luma_601(src) - luma_601(blurred));
    for (i32 c = 0; c < 3; ++c) dst[c] = to_u8(static_cast<float>(src[c]) + detail);
  });
}

// Luma kept, the rest blurred and multiplied by gain: Y(x) + gain (blur(x) - Y(blur(x))), since blurring and Y commute.
// p0 = sigma_px in (0, 8], p1 = gain.
template <class Team>
QPT_FN void colour_diffusion(Team& team, OpArgs a) {
  const float gain = parameter(a.params[1], 0.0f, 16.0f);
  const float sigma = parameter(a.params[0], 0.05f, 8.0f);
  with_gaussian_blur(team, a, gaussian_radius(sigma), sigma, [&](i64 at, const float* blurred) {
    const float luma = luma_601(a.src + at), blurred_luma = luma_601(blurred);
    u8* dst = a.dst + at;
    for (i32 c = 0; c < 3; ++c) dst[c] = to_u8(luma + gain * (blurred[c] - blurred_luma));
  });
}

// Scratch of with_gaussian_blur on an h x w image.
QPT_FN i64 sharpen_bytes(i32 h, i32 w) {
  return taken_bytes<float>(static_cast<i64>(kBand) * 3 * w) + blur_bytes(h, w);
}

}  // namespace qpt
