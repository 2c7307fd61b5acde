// JPEG 2000 at a given compression ratio (texture family): the lossy part of ITU-T T.800 (colour transform, five levels
// of the 9/7 wavelet, quantiser with a dead zone) without the entropy coder, which is lossless. A coder that minimises
// the error for a number of bytes ends at nearly one quantisation step for all coefficients of an orthonormal
// transform. Therefore the step is searched for instead: the one that leaves as many non-zero coefficients as the bytes
// can code (He and Mitra's rho domain, IEEE TCSVT 2002). benchmarks/fit_jpeg2000.py fits the bits per coefficient to
// OpenJPEG. Listed in table.h.
#pragma once
#include "team_sum.h"
#include "wavelet.h"

namespace qpt {

// A file with n of N = 3 h w coefficients non-zero has header + n (value + place log2(N / n)) bits.
constexpr float kHeaderBits = 1879.0f;
constexpr float kValueBits = 4.85f;
constexpr float kPlaceBits = 0.278f;
constexpr i32 kLeastPixels = 400;  // one coefficient per so many pixels is kept at any ratio, about as in OpenJPEG

// Norms of the columns of the matrix from Y, Cb and Cr to RGB. The planes are multiplied by them, so that a
// quantisation error of one size is, in any plane, an error of about that size in RGB.
constexpr float kLumaNorm = 1.732050808f;
constexpr float kBlueNorm = 1.805115f;
constexpr float kRedNorm = 1.573403f;

// Returns how many non-zero coefficients of an h x w image a file of 24 h w / ratio bits codes.
QPT_INLINE i32 coefficients_coded(i32 h, i32 w, float ratio) {
  const float all = 3.0f * static_cast<float>(h) * static_cast<float>(w), bits = 8.0f * all / ratio - kHeaderBits;
  i32 low = 0, high = 3 * h * w;  // a binary search: the bits grow with n, and those of `low` are enough
  while (low < high) {
    const i32 middle = low + (high - low + 1) / 2;
    const float n = static_cast<float>(middle), places = natural_log(all / n) * 1.44269504f;
    if (n * (kValueBits + kPlaceBits * places) <= bits)
      low = middle;
    else
      high = middle - 1;
  }
  return maximum(low, h * w / kLeastPixels + 4);
}

// Returns the smallest step of at least 1 that leaves at most `most` coefficients of a size in [step, inf), to seven
// bits after the leading one. scratch: team_sum_bytes.
template <class Team>
QPT_FN float find_step(const Team& team, const float* coefficients, i32 count, i32 most, Scratch scratch) {
  TeamSum sum(team, scratch);
  const Span own = share(team, count);
  constexpr i32 kShift = 16;
  i32 low = 0x3F80 /* 1.0 */, high = 0x4680 /* 16384.0 */;  // the highest 16 bits of the step
  QPT_UNROLL(1)
  while (low < high) {
    const i32 middle = (low + high) / 2;
    const u32 threshold = static_cast<u32>(middle) << kShift;
    u32 larger = 0;
    each(team, own, [&](i32 i) { larger += (float_bits(coefficients[i]) & 0x7FFFFFFFu) >= threshold ? 1u : 0u; });
    if (sum.of(larger) <= static_cast<u64>(most))
      high = middle;
    else
      low = middle + 1;
  }
  return bits_float(static_cast<u32>(low) << kShift);
}

// Transforms the planes Y, Cb and Cr, or back if `inverse`: a team of one plane by plane, for its cache; blocks share
// the strips of all planes at once.
template <class Team>
QPT_FN void transform_all(const Team& team, float* planes, i32 area, i32 h, i32 w, i32 stride, bool inverse,
                          float* strip) {
  constexpr i32 kTogether = Team::kSolo ? 1 : 3;
  QPT_UNROLL(1)
  for (i32 c = 0; c < 3; c += kTogether)
    transform_planes(team, planes + static_cast<i64>(c) * area, kTogether, h, w, stride, inverse, strip);
}

// The JPEG 2000 round trip. p0 = ratio of the image's bytes to the file's, at least 1.
template <class Team>
QPT_FN void jpeg2000(Team& team, OpArgs a) {
  const float ratio = parameter(a.params[0], 1.0f, 4096.0f);
  const i32 stride = spread_stride(a.w), area = a.h * stride;
  Scratch scratch{static_cast<u8*>(a.scratch)};
  float* planes = scratch.take<float>(static_cast<i64>(3) * area);  // Y, Cb, Cr times their norms; 0 beyond a row's end
  float* strip = scratch.take_own<float>(team, static_cast<i64>(maximum(a.h, a.w)) * kStripLines);
  const Span own = rows_of(team, a), coefficients = share(team, 3 * area);
  float *const luma = planes, *const blue = planes + area, *const red = planes + 2 * static_cast<i64>(area);
  each(team, own, a.w, [&](i32 row, i32 x) {
    const u8* from = a.src + static_cast<i64>(3) * (row * a.w + x);
    const i32 p = row * stride + x;
    const float r = from[0], g = from[1], b = from[2];
    const float y = 0.299f * r + 0.587f * g + 0.114f * b;
    luma[p] = (y - 128.0f) * kLumaNorm;
    blue[p] = (b - y) * (kBlueNorm / 1.772f);
    red[p] = (r - y) * (kRedNorm / 1.402f);
  });
  each(team, share(team, 3 * a.h), stride - a.w, [=](i32 row, i32 x) { planes[row * stride + a.w + x] = 0.0f; });
  team.sync_team();  // planes, written by all, are read by all
  transform_all(team, planes, area, a.h, a.w, stride, false, strip);
  const float step = find_step(team, planes, 3 * area, coefficients_coded(a.h, a.w, ratio), scratch);
  const float per_step = 1.0f / step;
  // Each coefficient is truncated to an integer number of steps and restored to the middle of its interval, or to 0
  // below one step. The sign and the choice are made with bit operations, so that the loop has no branch.
  each(team, coefficients, [=](i32 i) {
    const u32 bits = float_bits(planes[i]), sign = bits & 0x80000000u;
    const float size = bits_float(bits & 0x7FFFFFFFu);
    const float middle = (static_cast<float>(static_cast<i32>(size * per_step)) + 0.5f) * step;
    planes[i] = bits_float((float_bits(middle) | sign) & (size < step ? 0u : 0xFFFFFFFFu));
  });
  team.sync_team();  // quantised coefficients, written by all, are read by all
  transform_all(team, planes, area, a.h, a.w, stride, true, strip);
  each(team, own, a.w, [&](i32 row, i32 x) {
    u8* to = a.dst + static_cast<i64>(3) * (row * a.w + x);
    const i32 p = row * stride + x;
    const float y = luma[p] * (1.0f / kLumaNorm) + 128.0f;
    const float cb = blue[p] * (1.0f / kBlueNorm), cr = red[p] * (1.0f / kRedNorm);
    to[0] = to_u8(y + 1.402f * cr);
    to[1] = to_u8(y - (0.344136286f * cb + 0.714136286f * cr));
    to[2] = to_u8(y + 1.772f * cb);
  });
}

QPT_FN i64 jpeg2000_bytes(i32 h, i32 w, i32 blocks) {
  return taken_bytes<float>(static_cast<i64>(3) * h * spread_stride(w)) + strip_bytes(h, w, blocks) +
         team_sum_bytes(blocks);
}

}  // namespace qpt
