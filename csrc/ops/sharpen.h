// Ops that combine an image with its own Gaussian blur: sharpening (texture family) and colour diffusion (colour
// family). The blur is kept in float, a band of rows at a time. Luma is that of ITU-R 601. Listed in table.h;
// parameters in qpt/degradations/rows.
#pragma once
#include "blur.h"

namespace qpt {

// Calls finish(first, count, blurred) for parts of the image: the Gaussian blur of channel c of pixel first + i is
// blurred[From::channels * i + c]. from is that of load_padded.
template <class Team, class From, class Finish>
QPT_FN void with_gaussian_blur(const Team& team, OpArgs a, From from, i32 radius, float sigma, Finish finish) {
  Scratch scratch{static_cast<u8*>(a.scratch)};
  float* band = scratch.take_own<float>(team, static_cast<i64>(kFinishedRows<Team>) * From::channels * a.w);
  separable_blur(team, a, from, radius, GaussianTap{sigma}, scratch, band, false,
                 [&](i32 y, i32 rows) { finish(y * a.w, rows * a.w, static_cast<const float*>(band)); });
}

template <class Sample>
QPT_INLINE float luma_601(const Sample* pixel) {
  return 0.299f * static_cast<float>(pixel[0]) + 0.587f * static_cast<float>(pixel[1]) +
         0.114f * static_cast<float>(pixel[2]);
}

// Reads the luma of an image for load_padded.
struct LumaSamples {
  static constexpr i32 channels = 1;
  static constexpr bool kByPixel = false;
  const u8* src;  // [h, w, 3]
  i32 w;
  QPT_INLINE float operator()(i32 y, i32 x) const { return luma_601(src + (static_cast<i64>(y) * w + x) * 3); }
  QPT_INLINE void pixel(i32 y, i32 x, float* out) const { out[0] = (*this)(y, x); }
};

// Maps x to x + amount (x - blur(x)). p0 = amount, p1 = sigma_px in (0, 8].
template <class Team>
QPT_FN void unsharp_mask(Team& team, OpArgs a) {
  const float amount = parameter(a.params[0], 0.0f, 16.0f);
  const float sigma = parameter(a.params[1], 0.05f, 8.0f);
  with_gaussian_blur(team, a, Samples<3>(a), gaussian_radius(sigma), sigma,
                     [&](i32 first, i32 count, const float* blurred) {
                       const u8* src = a.src + static_cast<i64>(3) * first;
                       u8* dst = a.dst + static_cast<i64>(3) * first;
                       each(team, 3 * count, [&](i32 i) {
                         const float x = src[i];
                         dst[i] = to_u8(x + amount * (x - blurred[i]));
                       });
                     });
}

// Adds to every channel amount times the difference of the luma to its blur. p0 = amount, p1 = radius_px, an integer in
// [1, 24], which is also the blur's sigma: the kernel is truncated at one sigma, as in the source.
template <class Team>
QPT_FN void high_sharpen(Team& team, OpArgs a) {
  const float amount = parameter(a.params[0], 0.0f, 64.0f);
  const i32 radius = static_cast<i32>(parameter(a.params[1], 1.0f, static_cast<float>(kMaxRadius)) + 0.5f);
  with_gaussian_blur(team, a, LumaSamples{a.src, a.w}, radius, static_cast<float>(radius),
                     [&](i32 first, i32 count, const float* blurred) {
                       const u8* src = a.src + static_cast<i64>(3) * first;
                       u8* dst = a.dst + static_cast<i64>(3) * first;
                       each(team, count, [&](i32 p) {
                         const float detail = amount * (luma_601(src + 3 * p) - blurred[p]);
                         dst[3 * p] = to_u8(static_cast<float>(src[3 * p]) + detail);
                         dst[3 * p + 1] = to_u8(static_cast<float>(src[3 * p + 1]) + detail);
                         dst[3 * p + 2] = to_u8(static_cast<float>(src[3 * p + 2]) + detail);
                       });
                     });
}

// Keeps the luma Y, and blurs and multiplies the colour difference by gain: x becomes Y(x) + gain (blur(x) -
// Y(blur(x))), since blurring and Y commute. p0 = sigma_px in (0, 8], p1 = gain.
template <class Team>
QPT_FN void colour_diffusion(Team& team, OpArgs a) {
  const float gain = parameter(a.params[1], 0.0f, 16.0f);
  const float sigma = parameter(a.params[0], 0.05f, 8.0f);
  with_gaussian_blur(team, a, Samples<3>(a), gaussian_radius(sigma), sigma,
                     [&](i32 first, i32 count, const float* blurred) {
                       const u8* src = a.src + static_cast<i64>(3) * first;
                       u8* dst = a.dst + static_cast<i64>(3) * first;
                       each(team, count, [&](i32 p) {
                         const float luma = luma_601(src + 3 * p), blurred_luma = luma_601(blurred + 3 * p);
                         dst[3 * p] = to_u8(luma + gain * (blurred[3 * p] - blurred_luma));
                         dst[3 * p + 1] = to_u8(luma + gain * (blurred[3 * p + 1] - blurred_luma));
                         dst[3 * p + 2] = to_u8(luma + gain * (blurred[3 * p + 2] - blurred_luma));
                       });
                     });
}

// Scratch of with_gaussian_blur.
QPT_FN i64 sharpen_bytes(i32 h, i32 w, i32 blocks) {
  const i32 rows = blocks == kSoloBlocks ? kBand : kStrip;
  return own_bytes<float>(static_cast<i64>(rows) * 3 * w, blocks) + blur_bytes(h, w, blocks);
}

}  // namespace qpt
