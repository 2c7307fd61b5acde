// Down-up scaling (geometry family): Pillow's Image.resize to round(size / factor) and back, byte for byte. In Pillow's
// antialiased resize (Resample.c) the filter's support grows with the scale; weights are computed in double, normalised
// and rounded to 22 fractional bits; passes run along x, then y (y first when a tall image shrinks), each rounded to 8
// bits. Pillow's nearest (Geometry.c) copies pixels. Area is OpenCV's. Listed in table.h; parameters in
// qpt/degradations/rows/geometry.py.
#pragma once
#include "op.h"

namespace qpt {

constexpr i32 kWeightBits = 22;
constexpr i32 kMaxFactor = 16;

// A filter is a number and not a type, so that the code of a resize exists once. The numbers of the triangle, the cubic
// and Lanczos' filter are their supports.
constexpr i32 kBox = 0;  // support 1/2
constexpr i32 kBilinear = 1;
constexpr i32 kBicubic = 2;  // Keys' cubic convolution with a = -1/2 (IEEE TASSP 1981)
constexpr i32 kLanczos = 3;  // Lanczos' windowed sinc
constexpr i32 kArea = 4;     // the share of an input pixel that the output pixel covers

// 1 / (k (k + 1)), k = 2, 4, ... 18.
QPT_CONSTANT double kSineSteps[] = {1.0 / 6,   1.0 / 20,  1.0 / 42,  1.0 / 72, 1.0 / 110,
                                    1.0 / 156, 1.0 / 210, 1.0 / 272, 1.0 / 342};

// Returns sin(pi x) / (pi x) for |x| <= 3. sin(pi x) is, up to the sign, that of x's distance from the nearest integer,
// for which the Taylor series to the 19th power has errors below 1e-15.
QPT_INLINE double normalised_sinc(double x) {
  if (x == 0.0) return 1.0;
  const i32 whole = static_cast<i32>(x < 0.0 ? x - 0.5 : x + 0.5);
  const double angle = (x - whole) * 3.14159265358979323846, square = angle * angle;
  double p = 1.0;
  QPT_UNROLL(1)
  for (i32 i = 8; i >= 0; --i) p = 1.0 - p * square * kSineSteps[i];
  const double sine = angle * p;
  return ((whole & 1) ? -sine : sine) / (x * 3.14159265358979323846);
}

// Returns a filter's weight at a distance x in output pixels, or in input pixels where these are larger. scale: the
// size of this unit in input pixels.
QPT_INLINE double filter_weight(i32 filter, double x, double scale) {
  if (filter == kBox) return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
  x = x < 0.0 ? -x : x;
  if (filter == kArea) return clamp(0.5 * scale + 0.5 - x * scale, 0.0, 1.0);
  if (filter == kLanczos) return x < 3.0 ? normalised_sinc(x) * normalised_sinc(x / 3.0) : 0.0;
  if (filter == kBilinear) return x < 1.0 ? 1.0 - x : 0.0;
  if (x < 1.0) return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * -0.5;
  return 0.0;
}

// The weights of a resize along one axis: out[i] = sum_j weight[i * taps + j] * in[first[i] + j], j < count[i].
struct Resampling {
  i32* first;
  i32* count;
  i32* weight;
  i32 taps;
};

// Returns a bound of the number of taps of an output pixel.
QPT_INLINE i32 resampling_taps(i32 filter, i32 in, i32 out) {
  const i32 scale = in > out ? (in + out - 1) / out : 1;  // in / out rounded up; Pillow's own bound is tighter
  return (filter == kBox || filter == kArea ? 1 : 2 * filter) * scale + 2;
}

// Computes the weights of a resize of one side, for the block's own use. The caller must sync() before they are read.
template <class Team>
QPT_FN Resampling build_resampling(const Team& team, i32 filter, i32 in, i32 out, Scratch scratch) {
  const i32 taps = resampling_taps(filter, in, out);
  const Resampling resampling{scratch.take_own<i32>(team, out), scratch.take_own<i32>(team, out),
                              scratch.take_own<i32>(team, static_cast<i64>(out) * taps), taps};
  const double scale = static_cast<double>(in) / out;
  const double filter_scale = scale < 1.0 ? 1.0 : scale;
  const double reach = filter == kBox    ? 0.5 * filter_scale
                       : filter == kArea ? 0.5 * filter_scale + 0.5
                                         : filter * filter_scale;
  const double inverse = 1.0 / filter_scale;
  double* raw = scratch.take_own<double>(team, static_cast<i64>(out) * taps);
  each(team, out, [&](i32 i) {
    const double centre = (i + 0.5) * scale;
    const i32 first = maximum(static_cast<i32>(centre - reach + 0.5), 0);
    const i32 count = minimum(minimum(static_cast<i32>(centre + reach + 0.5), in) - first, taps);
    double* const row = raw + static_cast<i64>(i) * taps;
    double total = 0.0;
    for (i32 j = 0; j < count; ++j) {
      row[j] = filter_weight(filter, (j + first - centre + 0.5) * inverse, filter_scale);
      total += row[j];
    }
    for (i32 j = 0; j < count; ++j) {
      double w = row[j];
      if (total != 0.0) w /= total;
      w *= 1 << kWeightBits;
      resampling.weight[static_cast<i64>(i) * taps + j] = static_cast<i32>(w < 0.0 ? w - 0.5 : w + 0.5);
    }
    resampling.first[i] = first;
    resampling.count[i] = count;
  });
  return resampling;
}

QPT_INLINE u8 weighted_to_u8(i32 sum) {
  return static_cast<u8>(clamp(sum >> kWeightBits, 0, 255));
}
constexpr i32 kHalf = 1 << (kWeightBits - 1);

// Computes one output pixel of a resize along x.
QPT_INLINE void resample_pixel(const i32* weight, i32 count, const u8* in, u8* out) {
  i32 r = kHalf, g = kHalf, b = kHalf;
  for (i32 j = 0; j < count; ++j) {
    r += weight[j] * in[3 * j];
    g += weight[j] * in[3 * j + 1];
    b += weight[j] * in[3 * j + 2];
  }
  out[0] = weighted_to_u8(r);
  out[1] = weighted_to_u8(g);
  out[2] = weighted_to_u8(b);
}

// Resizes along x: in [h, in_w, 3] -> out [h, out_w, 3].
template <class Team>
QPT_FN void resample_x(const Team& team, const u8* in, u8* out, i32 h, i32 in_w, i32 out_w, Resampling resampling) {
  const auto pixel = [&](i32 y, i32 x) {
    resample_pixel(resampling.weight + static_cast<i64>(x) * resampling.taps, resampling.count[x],
                   in + (static_cast<i64>(y) * in_w + resampling.first[x]) * 3,
                   out + (static_cast<i64>(y) * out_w + x) * 3);
  };
#if QPT_SIMD_ROWS
  if constexpr (Team::kSolo) {
    if (h >= simd::kTurned) {
      simd::resample_x<kWeightBits>(in, out, h, in_w, out_w, resampling.first, resampling.count, resampling.weight,
                                    resampling.taps, kHalf);
      return;
    }
  }
#endif
  each(team, share(team, h), out_w, pixel);
}

// Resizes along y: in [., samples] -> out [out_h, samples].
template <class Team>
QPT_FN void resample_y(const Team& team, const u8* in, u8* out, i32 out_h, i32 samples, Resampling resampling) {
  const auto sample = [&](i32 y, i32 i) {
    const u8* from = in + static_cast<i64>(resampling.first[y]) * samples + i;
    const i32* weight = resampling.weight + static_cast<i64>(y) * resampling.taps;
    i32 sum = kHalf;
    for (i32 j = 0; j < resampling.count[y]; ++j) sum += weight[j] * from[static_cast<i64>(j) * samples];
    out[static_cast<i64>(y) * samples + i] = weighted_to_u8(sum);
  };
#if QPT_SIMD_ROWS
  if constexpr (Team::kSolo) {
    for (i32 y = 0; y < out_h; ++y) {
      const i32 done = simd::resample_row<kWeightBits>(
          resampling.weight + static_cast<i64>(y) * resampling.taps, resampling.count[y], kHalf,
          in + static_cast<i64>(resampling.first[y]) * samples, samples, samples, out + static_cast<i64>(y) * samples);
      for (i32 i = done; i < samples; ++i) sample(y, i);
    }
    return;
  }
#endif
  each(team, share(team, out_h), samples, sample);
}

// Returns round(size / factor), halves to even as Python's round() has them, and at least 1.
QPT_INLINE i32 reduced_size(i32 size, double factor) {
  const double exact = size / factor;
  const i32 whole = static_cast<i32>(exact);
  const double rest = exact - whole;
  const bool up = rest > 0.5 || (rest == 0.5 && (whole & 1));
  return maximum(whole + (up ? 1 : 0), 1);
}

// Resizes in four passes: down along one axis and then the other, up along x, up along y.
template <class Team>
QPT_FN void rescale(Team& team, OpArgs a, i32 down, i32 up) {
  const double factor = parameter(a.params[0], 1.0f, static_cast<float>(kMaxFactor));
  const i32 small_h = reduced_size(a.h, factor), small_w = reduced_size(a.w, factor);
  Scratch scratch{static_cast<u8*>(a.scratch)};
  u8* half_way = scratch.take<u8>(static_cast<i64>(a.h) * a.w * 3);
  u8* small = scratch.take<u8>(static_cast<i64>(a.h) * a.w * 3);
  const bool y_first = a.h - small_h > 2 * (a.w - small_w);  // Pillow's rule since version 13; enlarging starts with x
  const u8* in = a.src;
  i32 h = a.h, w = a.w;  // of in
  Resampling resampling{};
  QPT_UNROLL(1)
  for (i32 pass = 0; pass < 4; ++pass) {
    const bool along_x = (pass & 1) == (pass < 2 && y_first ? 1 : 0);
    const i32 to_h = pass < 2 ? small_h : a.h, to_w = pass < 2 ? small_w : a.w;
    u8* out = pass == 1 ? small : pass == 3 ? a.dst : half_way;
    if ((pass & 1) == 0 || a.h != a.w) {  // a square image has the same weights along both axes
      resampling = build_resampling(team, pass < 2 ? down : up, along_x ? w : h, along_x ? to_w : to_h, scratch);
      team.sync();  // the weights, written by all, are read by all
    }
    if (along_x) {
      resample_x(team, in, out, h, w, to_w, resampling);
      w = to_w;
    } else {
      resample_y(team, in, out, to_h, 3 * w, resampling);
      h = to_h;
    }
    // Out, written by all, is read by all in the next pass, which overwrites the weights.
    if (pass < 3) team.sync_team();
    in = out;
  }
}

// Down and up again with the triangle filter. p0 = factor in [1, 16].
template <class Team>
QPT_FN void rescale_bilinear(Team& team, OpArgs a) {
  rescale(team, a, kBilinear, kBilinear);
}

// Down and up again with the cubic filter. p0 = factor in [1, 16].
template <class Team>
QPT_FN void rescale_bicubic(Team& team, OpArgs a) {
  rescale(team, a, kBicubic, kBicubic);
}

// Down and up again with the box filter, which on the way up repeats pixels, in blocks. p0 = factor in [1, 16].
template <class Team>
QPT_FN void pixelate(Team& team, OpArgs a) {
  rescale(team, a, kBox, kBox);
}

// Down and up again with Lanczos' filter. p0 = factor in [1, 16].
template <class Team>
QPT_FN void rescale_lanczos(Team& team, OpArgs a) {
  rescale(team, a, kLanczos, kLanczos);
}

// Writes to at[i] the pixel of `in` that Pillow's nearest filter copies to pixel i of `out`. Positions are sums of the
// step, as in Pillow: their rounding decides to which pixel an exact boundary belongs.
QPT_INLINE void nearest_pixels(i32 in, i32 out, i32* at) {
  const double step = static_cast<double>(in) / out;
  double position = 0.5 * step;
  for (i32 i = 0; i < out; ++i) {
    at[i] = minimum(static_cast<i32>(position), in - 1);
    position += step;
  }
}

// Down and up again without a filter: every pixel is a copy of a source pixel. p0 = factor in [1, 16].
template <class Team>
QPT_FN void rescale_nearest(Team& team, OpArgs a) {
  const double factor = parameter(a.params[0], 1.0f, static_cast<float>(kMaxFactor));
  const i32 small_h = reduced_size(a.h, factor), small_w = reduced_size(a.w, factor);
  Scratch scratch{static_cast<u8*>(a.scratch)};
  i32 *down_y = scratch.take_own<i32>(team, a.h), *up_y = scratch.take_own<i32>(team, a.h);
  i32 *down_x = scratch.take_own<i32>(team, a.w), *up_x = scratch.take_own<i32>(team, a.w);
  team.once([&] {
    nearest_pixels(a.h, small_h, down_y);
    nearest_pixels(small_h, a.h, up_y);
    nearest_pixels(a.w, small_w, down_x);
    nearest_pixels(small_w, a.w, up_x);
  });
  team.sync();  // the four lists of pixels, written by one member, are read by all
  each(team, rows_of(team, a), a.w, [&](i32 y, i32 x) {
    const u8* from = a.src + (static_cast<i64>(down_y[up_y[y]]) * a.w + down_x[up_x[x]]) * 3;
    u8* to = a.dst + (static_cast<i64>(y) * a.w + x) * 3;
    to[0] = from[0];
    to[1] = from[1];
    to[2] = from[2];
  });
}

// Down and up again by PyTorch's nearest filter, in which pixel i of `out` is pixel floor(i in / out) of `in`, in
// single precision: the picture also moves by up to half a reduced pixel. p0 = scale in [1/16, 1].
template <class Team>
QPT_FN void rescale_nearest_floor(Team& team, OpArgs a) {
  const double scale = parameter(a.params[0], 0.0625f, 1.0f);
  const i32 small_h = maximum(static_cast<i32>(scale * a.h), 1), small_w = maximum(static_cast<i32>(scale * a.w), 1);
  const auto floored = [](i32 in, i32 out, i32 i) {
    return minimum(static_cast<i32>(static_cast<float>(i) * (static_cast<float>(in) / static_cast<float>(out))),
                   in - 1);
  };
  each(team, rows_of(team, a), a.w, [&](i32 y, i32 x) {
    const i32 from_y = floored(a.h, small_h, floored(small_h, a.h, y));
    const i32 from_x = floored(a.w, small_w, floored(small_w, a.w, x));
    const u8* from = a.src + (static_cast<i64>(from_y) * a.w + from_x) * 3;
    u8* to = a.dst + (static_cast<i64>(y) * a.w + x) * 3;
    to[0] = from[0];
    to[1] = from[1];
    to[2] = from[2];
  });
}

// Returns the bytes that build_resampling needs for factors in [1, 16] if the longer side is `side`. When shrinking,
// out <= in and in <= out * ceil(in / out), so out * taps <= 6 (in + out) + 2 out <= 14 in; when enlarging, taps is at
// most 8.
QPT_FN i64 resampling_bytes(i64 side, i32 blocks) {
  return 2 * own_bytes<i32>(side, blocks) + own_bytes<i32>(14 * side, blocks) + own_bytes<double>(14 * side, blocks);
}

// Rounds a sum with two weights per term; halves go up or, if `even`, to the even number.
QPT_INLINE u8 weighted_twice_to_u8(i64 sum, bool even) {
  constexpr i32 bits = 2 * kWeightBits;
  const i64 below = even ? 1 - ((sum >> bits) & 1) : 0;  // 1 if a half goes down
  return static_cast<u8>((sum + (i64{1} << (bits - 1)) - below) >> bits);
}

// Resizes along both axes with one rounding, of halves up or, if `even`, to the even number: in [h, in_w, 3] -> out
// [out_h, out_w, 3]. line: scratch of the samples of a row of `in` and one more. Weights must not be negative.
// Everything is computed in integers, so the order of sums does not matter.
template <class Team>
QPT_FN void resample_both(const Team& team, const u8* in, u8* out, i32 in_w, i32 out_h, i32 out_w, Resampling along_y,
                          Resampling along_x, bool even, i32* line) {
  const i32 samples = 3 * in_w;
  const auto column = [&](i32 y, i32 i) {  // the sum along y of sample i, for output row y
    const u8* from = in + static_cast<i64>(along_y.first[y]) * samples + i;
    const i32* weight = along_y.weight + static_cast<i64>(y) * along_y.taps;
    i32 sum = 0;
    for (i32 j = 0; j < along_y.count[y]; ++j) sum += weight[j] * from[static_cast<i64>(j) * samples];
    return sum;
  };
  const auto pixel = [&](i32 y, i32 x, auto summed) {  // summed(i) returns column(y, i)
    const i32* weight = along_x.weight + static_cast<i64>(x) * along_x.taps;
    i64 r = 0, g = 0, b = 0;
    for (i32 j = 0; j < along_x.count[x]; ++j) {
      const i32 i = 3 * (along_x.first[x] + j);
      r += static_cast<i64>(weight[j]) * summed(i);
      g += static_cast<i64>(weight[j]) * summed(i + 1);
      b += static_cast<i64>(weight[j]) * summed(i + 2);
    }
    u8* to = out + (static_cast<i64>(y) * out_w + x) * 3;
    to[0] = weighted_twice_to_u8(r, even);
    to[1] = weighted_twice_to_u8(g, even);
    to[2] = weighted_twice_to_u8(b, even);
  };
  if constexpr (Team::kSolo) {  // row by row, so that loops along y run over contiguous samples
    for (i32 y = 0; y < out_h; ++y) {
      for (i32 i = 0; i <= samples; ++i) line[i] = 0;
      for (i32 j = 0; j < along_y.count[y]; ++j) {
        const u8* from = in + static_cast<i64>(along_y.first[y] + j) * samples;
        const i32 weight = along_y.weight[static_cast<i64>(y) * along_y.taps + j];
        QPT_INDEPENDENT
        for (i32 i = 0; i < samples; ++i) line[i] += weight * from[i];
      }
#if QPT_SIMD_ROWS
      for (i32 x = 0; x < out_w; ++x)
        simd::resample_sums<2 * kWeightBits>(along_x.weight + static_cast<i64>(x) * along_x.taps, along_x.count[x],
                                             line + 3 * along_x.first[x], even,
                                             out + (static_cast<i64>(y) * out_w + x) * 3);
#else
      for (i32 x = 0; x < out_w; ++x) pixel(y, x, [&](i32 i) { return line[i]; });
#endif
    }
  } else {
    each(team, share(team, out_h), out_w, [&](i32 y, i32 x) { pixel(y, x, [&](i32 i) { return column(y, i); }); });
  }
}

// Down by the mean over each output pixel's area, which may hold parts of pixels, and up bilinear, each with one
// rounding. Halves are rounded as OpenCV does, except for its half-up mean of exactly 2 x 2. p0 = factor in [1, 16].
template <class Team>
QPT_FN void rescale_area(Team& team, OpArgs a) {
  const double factor = parameter(a.params[0], 1.0f, static_cast<float>(kMaxFactor));
  const i32 small_h = reduced_size(a.h, factor), small_w = reduced_size(a.w, factor);
  Scratch scratch{static_cast<u8*>(a.scratch)};
  u8* small = scratch.take<u8>(static_cast<i64>(small_h) * small_w * 3);
  i32* line = scratch.take_own<i32>(team, 3 * a.w + 1);
  const Scratch of_y{scratch.take<u8>(resampling_bytes(a.h, team.blocks()))};
  QPT_UNROLL(1)
  for (i32 pass = 0; pass < 2; ++pass) {
    const bool down = pass == 0;
    const i32 h = down ? a.h : small_h, w = down ? a.w : small_w;
    const i32 to_h = down ? small_h : a.h, to_w = down ? small_w : a.w, filter = down ? kArea : kBilinear;
    const Resampling along_y = build_resampling(team, filter, h, to_h, of_y);
    const Resampling along_x = build_resampling(team, filter, w, to_w, scratch);
    team.sync();  // the weights, written by all, are read by all
    resample_both(team, down ? a.src : small, down ? small : a.dst, w, to_h, to_w, along_y, along_x, down, line);
    // The small image, written by all, is read by all in the next pass, which overwrites the weights.
    if (down) team.sync_team();
  }
}

// The small image, a row of sums and the weights along both axes.
QPT_FN i64 area_bytes(i32 h, i32 w, i32 blocks) {
  return taken_bytes<u8>(static_cast<i64>(h) * w * 3) + own_bytes<i32>(static_cast<i64>(3) * w + 1, blocks) +
         resampling_bytes(h, blocks) + resampling_bytes(w, blocks);
}

// Two images of at most h x w and the weights of the longer side, which is more than rescale_nearest needs.
QPT_FN i64 rescale_bytes(i32 h, i32 w, i32 blocks) {
  return 2 * taken_bytes<u8>(static_cast<i64>(h) * w * 3) + resampling_bytes(maximum(h, w), blocks);
}

}  // namespace qpt
