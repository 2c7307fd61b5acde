// The bilateral filter, and noise smoothed by it (texture family). Weights fall with the distance and with the
// difference of the colours, summed over the channels, as in cv2.bilateralFilter (Tomasi and Manduchi, ICCV 1998).
// Listed in table.h; parameters in qpt/degradations/rows/texture.py.
#pragma once
#include "filter.h"
#include "noise.h"

namespace qpt {

constexpr i32 kMaxBilateral = 12;  // radius; sigma <= 8 px

// The weight of a pixel by its colour and distance. Colours more than seven sigmas apart get the weight at seven
// sigmas, 2e-11 of the centre's, so that no power of two is below 2^-126.
struct BilateralWeight {
  float per_square;  // log2(e) / (2 sigma^2)
  i32 most;

  QPT_INLINE explicit BilateralWeight(float sigma)
      : per_square(0.721347520f / (sigma * sigma)), most(static_cast<i32>(7.0f * sigma) + 1) {}

  // apart: minus the squared distance, in units of 2 sigma_px^2 / log2(e), at least -73.
  // red, green, blue: the differences to the centre's colour.
  QPT_INLINE float operator()(float apart, i32 red, i32 green, i32 blue) const {
    const i32 sum = (red < 0 ? -red : red) + (green < 0 ? -green : green) + (blue < 0 ? -blue : blue);
    return of_difference(apart, static_cast<float>(minimum(sum, most)));
  }

  // The same for differences that are whole numbers in floats: their sums are exact.
  QPT_INLINE float operator()(float apart, float red, float green, float blue) const {
    return of_difference(apart, minimum(absolute(red) + absolute(green) + absolute(blue), static_cast<float>(most)));
  }

 private:
  QPT_INLINE float of_difference(float apart, float difference) const {
    return quick_power_of_two(apart - difference * difference * per_square);
  }
};

// A pixel of a team of threads, which loads it at once and converts nothing.
struct alignas(16) FloatPixel {
  float red, green, blue, unused;
};

// The weighted sums of one output pixel.
struct BilateralSums {
  float weight = 0.0f, red = 0.0f, green = 0.0f, blue = 0.0f;

  QPT_INLINE void add(const BilateralWeight& weight_of, float apart, FloatPixel centre, FloatPixel p) {
    const float w = weight_of(apart, p.red - centre.red, p.green - centre.green, p.blue - centre.blue);
    weight += w;
    red = fma(w, p.red, red);
    green = fma(w, p.green, green);
    blue = fma(w, p.blue, blue);
  }
  QPT_INLINE void put(u8* out) const {
    out[0] = to_u8(red / weight);
    out[1] = to_u8(green / weight);
    out[2] = to_u8(blue / weight);
  }
};

// Filters over the disk of radius round(1.5 sigma_px), at least 1; borders are reflect-101. Sums run over the disk in
// raster order.
template <class Team>
QPT_FN void bilateral_filter(const Team& team, OpArgs a, float sigma_colour, float sigma_px) {
  const i32 radius = clamp(static_cast<i32>(nearest(1.5f * sigma_px)), 1, kMaxBilateral), reach = radius * radius;
  const float per_px = 0.721347520f / (sigma_px * sigma_px);
  const BilateralWeight weight_of(sigma_colour);
  Scratch scratch{static_cast<u8*>(a.scratch)};
  const auto source_of = [&](i32 y, i32 x) {
    return a.src + (static_cast<i64>(y) * a.w + reflect101(x - radius, a.w)) * 3;
  };
  const auto across = [&](i32 dy) {  // half of the width of the disk in row dy
    i32 dx = radius;
    while (dx * dx + dy * dy > reach) --dx;
    return dx;
  };
  if constexpr (Team::kSolo) {  // row by row, so that every loop runs over contiguous samples
    const i32 stride = a.w + 2 * radius;
    const i64 plane = static_cast<i64>(a.h) * stride;
    u8* padded = scratch.take<u8>(3 * plane);  // three planes
    each(team, a.h, stride, [&](i32 y, i32 x) {
      const u8* from = source_of(y, x);
      u8* to = padded + static_cast<i64>(y) * stride + x;
      to[0] = from[0];
      to[plane] = from[1];
      to[2 * plane] = from[2];
    });
    // Returns the red sample of column 0 in row y.
    const auto row_of = [&](i32 y) { return padded + static_cast<i64>(reflect101(y, a.h)) * stride + radius; };
    float* weight = scratch.take<float>(a.w);
    float* sum = scratch.take<float>(static_cast<i64>(3) * a.w);
    float *const red = sum, *const green = sum + a.w, *const blue = sum + 2 * a.w;
    for (i32 y = 0; y < a.h; ++y) {
      const u8* const centre = row_of(y);
      for (i32 x = 0; x < a.w; ++x) weight[x] = red[x] = green[x] = blue[x] = 0.0f;
      for (i32 dy = -radius; dy <= radius; ++dy) {
        const u8* const row = row_of(y + dy);
        const i32 last = across(dy);
        for (i32 dx = -last; dx <= last; ++dx) {
          const u8* const p = row + dx;
          const float apart = -per_px * static_cast<float>(dx * dx + dy * dy);
          QPT_INDEPENDENT
          for (i32 x = 0; x < a.w; ++x) {
            const i32 r = p[x], g = p[x + plane], b = p[x + 2 * plane];
            const float w = weight_of(apart, r - centre[x], g - centre[x + plane], b - centre[x + 2 * plane]);
            weight[x] += w;
            red[x] = fma(w, static_cast<float>(r), red[x]);
            green[x] = fma(w, static_cast<float>(g), green[x]);
            blue[x] = fma(w, static_cast<float>(b), blue[x]);
          }
        }
      }
      u8* const out = a.dst + static_cast<i64>(y) * a.w * 3;
      for (i32 x = 0; x < a.w; ++x) {
        out[3 * x] = to_u8(red[x] / weight[x]);
        out[3 * x + 1] = to_u8(green[x] / weight[x]);
        out[3 * x + 2] = to_u8(blue[x] / weight[x]);
      }
    }
  } else {
    // A thread has two neighbours: of the pixels that they need, all but one are the same.
    const i32 pairs = (a.w + 1) / 2, stride = 2 * pairs + 2 * radius;
    FloatPixel* padded = scratch.take<FloatPixel>(static_cast<i64>(a.h) * stride);
    each(team, rows_of(team, a), stride, [&](i32 y, i32 x) {
      const u8* from = source_of(y, x);
      padded[static_cast<i64>(y) * stride + x] = {static_cast<float>(from[0]), static_cast<float>(from[1]),
                                                  static_cast<float>(from[2]), 0.0f};
    });
    team.sync_team();  // pixels, written by all, are read by all
    each(team, rows_of(team, a), pairs, [&](i32 y, i32 pair) {
      // The second pixel of the last pair may lie beyond the last column; it is not written.
      const auto row_of = [&](i32 row) {
        return padded + static_cast<i64>(reflect101(row, a.h)) * stride + radius + 2 * pair;
      };
      const FloatPixel first = row_of(y)[0], second = row_of(y)[1];
      BilateralSums left, right;
      for (i32 dy = -radius; dy <= radius; ++dy) {
        const i32 last = across(dy);
        const FloatPixel* p = row_of(y + dy) - last;
        FloatPixel now = *p;
        QPT_UNROLL(2)  // `now` and `next` change places
        for (i32 dx = -last; dx <= last; ++dx) {
          const FloatPixel next = *++p;
          const float apart = -per_px * static_cast<float>(dx * dx + dy * dy);
          left.add(weight_of, apart, first, now);
          right.add(weight_of, apart, second, next);
          now = next;
        }
      }
      u8* const out = a.dst + (static_cast<i64>(y) * a.w + 2 * pair) * 3;
      left.put(out);
      if (2 * pair + 1 < a.w) right.put(out + 3);
    });
  }
}

// The bilateral filter. p0 = sigma_colour on the 0-255 scale, for the sum over the channels; p1 = sigma_px in [0.1, 8].
template <class Team>
QPT_FN void bilateral(Team& team, OpArgs a) {
  bilateral_filter(team, a, parameter(a.params[0], 1.0f, 765.0f), parameter(a.params[1], 0.1f, 8.0f));
}

// Adds gaussian_noise of p0 = std, then filters with p1 = sigma_colour and p2 = sigma_px.
template <class Team>
QPT_FN void denoise(Team& team, OpArgs a) {
  Scratch scratch{static_cast<u8*>(a.scratch)};
  u8* noisy = scratch.take<u8>(static_cast<i64>(a.h) * a.w * 3);
  OpArgs first = a, second = a;
  first.dst = noisy;
  second.src = noisy;
  first.scratch = scratch.next;
  second.scratch = scratch.next + noise_bytes(a.h, a.w, team.blocks());
  gaussian_noise(team, first);
  team.sync();  // noisy pixels, written by all, are read by all; bilateral_filter first reads the block's own rows
  bilateral_filter(team, second, parameter(a.params[1], 1.0f, 765.0f), parameter(a.params[2], 0.1f, 8.0f));
}

// The padded image, in floats for a team of threads; the sums of a row of a team of one.
QPT_FN i64 bilateral_bytes(i32 h, i32 w, i32 blocks) {
  if (blocks != kSoloBlocks) return taken_bytes<FloatPixel>(static_cast<i64>(h) * (w + 1 + 2 * kMaxBilateral));
  const i64 padded = static_cast<i64>(h) * (w + 2 * kMaxBilateral);
  return taken_bytes<u8>(3 * padded) + taken_bytes<float>(w) + taken_bytes<float>(static_cast<i64>(3) * w);
}

QPT_FN i64 denoise_bytes(i32 h, i32 w, i32 blocks) {
  return taken_bytes<u8>(static_cast<i64>(h) * w * 3) + noise_bytes(h, w, blocks) + bilateral_bytes(h, w, blocks);
}

}  // namespace qpt
