// Working size (geometry family): after resize_to the ops of a row act on a smaller or larger image, as in the
// pipelines of Real-ESRGAN and BSRGAN. The filters are OpenCV's, which BSRGAN uses; they are not widened when
// shrinking. Real-ESRGAN's are the same except for area, whose bins are whole pixels. Passes and fixed point are those
// of rescale.h. chain.h keeps track of the working size and restores the image's own at the end of a row. Listed in
// table.h.
#pragma once
#include "rescale.h"

namespace qpt {

constexpr i32 kAreaMean = 0;
constexpr i32 kTwoTaps = 1;   // bilinear
constexpr i32 kFourTaps = 2;  // bicubic, a = -3/4

// The parameters of resize_to that restore the image's own size.
QPT_CONSTANT float kRestore[4] = {1.0f, static_cast<float>(kFourTaps), 0.0f, 0.0f};

// Returns the working size of a side of the image of `size` pixels. p0 = scale in [1/16, 1.5].
QPT_INLINE i32 working_size(i32 size, const float* params) {
  return maximum(static_cast<i32>(static_cast<double>(parameter(params[0], 0.0625f, 1.5f)) * size), 1);
}

// Returns the largest working size, which buffers must hold.
QPT_INLINE i32 largest_working_size(i32 size) {
  return size + size / 2;
}

// Returns Keys' cubic convolution (IEEE TASSP 1981) with a = -3/4 at a distance below 2.
QPT_INLINE double sharp_cubic(double x) {
  x = x < 0.0 ? -x : x;
  return x < 1.0 ? (1.25 * x - 2.25) * x * x + 1.0 : ((-0.75 * x + 3.75) * x - 6.0) * x + 3.0;
}

// Returns the weight of input pixel `pixel` in output pixel i, which is `scale` input pixels wide: its share of the
// output pixel's footprint for area, else its weight in the interpolation at the output pixel's centre, where taps
// beyond the border read the border pixel.
QPT_INLINE double interpolation_weight(i32 filter, double scale, i32 in, i32 i, i32 pixel) {
  if (filter == kAreaMean) {
    const double from = i * scale, to = (i + 1) * scale;
    return maximum(minimum(to, pixel + 1.0) - maximum(from, static_cast<double>(pixel)), 0.0) / scale;
  }
  const double centre = (i + 0.5) * scale + 0.5;  // in input pixels, plus 1 to be positive
  const i32 left = static_cast<i32>(centre) - 1;
  const i32 reach = filter == kFourTaps ? 1 : 0;
  double weight = 0.0;
  for (i32 tap = left - reach; tap <= left + 1 + reach; ++tap) {
    if (clamp(tap, 0, in - 1) != pixel) continue;
    const double distance = centre - (tap + 1);
    weight += filter == kFourTaps ? sharp_cubic(distance) : 1.0 - maximum(distance, -distance);
  }
  return weight;
}

// Computes the weights of a resize of one side, for the block's own use. The caller must sync() before they are read.
template <class Team>
QPT_FN Resampling build_interpolation(const Team& team, i32 filter, i32 in, i32 out, Scratch scratch) {
  const double scale = static_cast<double>(in) / out;
  // A footprint of `scale` pixels touches up to one pixel more than its length rounded up.
  const i32 taps = filter == kAreaMean ? (in + out - 1) / out + 1 : 2 * filter;
  const Resampling resampling{scratch.take_own<i32>(team, out), scratch.take_own<i32>(team, out),
                              scratch.take_own<i32>(team, static_cast<i64>(out) * taps), taps};
  each(team, out, [&](i32 i) {
    const i32 start = static_cast<i32>(filter == kAreaMean ? i * scale : (i + 0.5) * scale + 0.5) - filter;
    const i32 first = clamp(start, 0, in - 1), count = minimum(start + taps, in) - first;
    for (i32 j = 0; j < count; ++j) {
      const double w = interpolation_weight(filter, scale, in, i, first + j) * (1 << kWeightBits);
      resampling.weight[static_cast<i64>(i) * taps + j] = static_cast<i32>(w < 0.0 ? w - 0.5 : w + 0.5);
    }
    resampling.first[i] = first;
    resampling.count[i] = count;
  });
  return resampling;
}

// Resizes src [h, w] to dst [to_h, to_w] along x, then along y, with 8 bits between. p0 = scale, from which chain.h
// computes to_h and to_w; p1 = filter.
template <class Team>
QPT_FN void resize_to(Team& team, OpArgs a) {
  const i32 filter = static_cast<i32>(parameter(a.params[1], 0.0f, 2.0f) + 0.5f);
  Scratch scratch{static_cast<u8*>(a.scratch)};
  u8* wide = scratch.take<u8>(static_cast<i64>(a.h) * a.to_w * 3);
  QPT_UNROLL(1)
  for (i32 pass = 0; pass < 2; ++pass) {
    const bool along_x = pass == 0;
    const Resampling resampling =
        build_interpolation(team, filter, along_x ? a.w : a.h, along_x ? a.to_w : a.to_h, scratch);
    team.sync();  // the weights, written by all, are read by all
    if (along_x)
      resample_x(team, a.src, wide, a.h, a.w, a.to_w, resampling);
    else
      resample_y(team, wide, a.dst, a.to_h, 3 * a.to_w, resampling);
    // `wide`, written by all, is read by all in the next pass, which overwrites the weights.
    if (along_x) team.sync_team();
  }
}

// An image and the weights of the longer side, for extents of at most h x w before and after. When shrinking,
// out * taps <= in + 3 out; otherwise taps is at most 4.
QPT_FN i64 resize_bytes(i32 h, i32 w, i32 blocks) {
  const i64 side = maximum(h, w);
  return taken_bytes<u8>(static_cast<i64>(h) * w * 3) + 2 * own_bytes<i32>(side, blocks) +
         own_bytes<i32>(4 * side, blocks);
}

}  // namespace qpt
