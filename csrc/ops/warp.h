// Ops that read pixels at other positions: zoom and a trail of motion (texture family), spatial jitter (geometry
// family), shifted and magnified channels (colour family). A position beyond the border reads the nearest pixel of the
// image (replicated border). Listed in table.h; parameters in qpt/degradations/rows.
#pragma once
#include "blur.h"
#include "noise.h"
#include "team_maxima.h"

namespace qpt {

constexpr i32 kZoomViews = 16;

constexpr i32 kZoomPadding = 4;  // samples after a row: a neighbour for its last pixel, and one more that vectors read

// Returns the pixel to the left of (above) what a view shows at i of n, and how far right of it (below) that is, [0,
// 1). inverse: of the view's factor. The position is always inside, since views are enlarged.
struct ZoomPlace {
  i32 whole;
  float beyond;
};
QPT_INLINE ZoomPlace zoom_place(float inverse, i32 i, i32 n) {
  const float centre = 0.5f * static_cast<float>(n - 1);
  const float at = centre + (static_cast<float>(i) - centre) * inverse;
  const i32 whole = minimum(static_cast<i32>(at), n - 1);
  return {whole, at - static_cast<float>(whole)};
}

// The mean of 16 views enlarged about the image's centre by factors 1 to p0 = zoom in equal steps, bilinear: first
// between two rows, then between two pixels.
template <class Team>
QPT_FN void zoom_blur(Team& team, OpArgs a) {
  const float zoom = parameter(a.params[0], 1.0f, 2.0f);
  const float step = (zoom - 1.0f) / static_cast<float>(kZoomViews - 1);
  const i32 samples = 3 * a.w;
  Scratch scratch{static_cast<u8*>(a.scratch)};
  float* inverse = scratch.take_own<float>(team, kZoomViews);  // of the views' factors
  each(team, kZoomViews, [&](i32 v) { inverse[v] = 1.0f / (1.0f + step * static_cast<float>(v)); });
  team.sync();                  // inverse factors, one member each, are read by all
  if constexpr (Team::kSolo) {  // row by row: all views of a row between two rows, in loops over its samples
    const i32 stride = spread_stride(samples + kZoomPadding), places = spread_stride(a.w);
    i32* left_at = scratch.take<i32>(static_cast<i64>(kZoomViews) * places);
    float* right = scratch.take<float>(static_cast<i64>(kZoomViews) * places);
    float* rows = scratch.take<float>(static_cast<i64>(kZoomViews) * stride);
    for (i32 v = 0; v < kZoomViews; ++v) {
      for (i32 x = 0; x < a.w; ++x) {
        const ZoomPlace place = zoom_place(inverse[v], x, a.w);
        left_at[v * places + x] = v * stride + 3 * place.whole;
        right[v * places + x] = place.beyond;
      }
      for (i32 i = 0; i < kZoomPadding; ++i) rows[v * stride + samples + i] = 0.0f;
    }
    for (i32 y = 0; y < a.h; ++y) {
      for (i32 v = 0; v < kZoomViews; ++v) {
        const ZoomPlace place = zoom_place(inverse[v], y, a.h);
        const u8* const above = a.src + static_cast<i64>(place.whole) * samples;
        const u8* const below = a.src + static_cast<i64>(minimum(place.whole + 1, a.h - 1)) * samples;
        const float share = place.beyond;
        float* const row = rows + v * stride;
        QPT_INDEPENDENT
        for (i32 i = 0; i < samples; ++i) {
          const float upper = above[i], lower = below[i];
          row[i] = upper + share * (lower - upper);
        }
      }
      u8* const to = a.dst + static_cast<i64>(y) * samples;
      for (i32 x = 0; x < a.w; ++x) {
        float sum[4] = {};
#if QPT_SIMD_ROWS
        simd::sum_views(kZoomViews, rows, left_at + x, right + x, places, sum);
#else
        for (i32 v = 0; v < kZoomViews; ++v) {
          const float* at = rows + left_at[v * places + x];
          const float share = right[v * places + x];
          for (i32 c = 0; c < 3; ++c) sum[c] += at[c] + share * (at[c + 3] - at[c]);
        }
#endif
        for (i32 c = 0; c < 3; ++c) to[3 * x + c] = to_u8(sum[c] / static_cast<float>(kZoomViews));
      }
    }
  } else {  // a thread computes what a pixel needs of the rows itself, and waits for none
    each(team, rows_of(team, a), a.w, [&](i32 y, i32 x) {
      float sum[3] = {};
      QPT_UNROLL(1)
      for (i32 v = 0; v < kZoomViews; ++v) {
        const ZoomPlace row = zoom_place(inverse[v], y, a.h), column = zoom_place(inverse[v], x, a.w);
        // At the right and lower border the weight of what lies beyond is 0.
        const i32 across = column.whole < a.w - 1 ? 3 : 0;
        const u8* const above = a.src + static_cast<i64>(row.whole) * samples + 3 * column.whole;
        const u8* const below = above + (row.whole < a.h - 1 ? samples : 0);
        for (i32 c = 0; c < 3; ++c) {
          const float upper = above[c], upper_next = above[c + across];
          const float lower = below[c], lower_next = below[c + across];
          const float here = upper + row.beyond * (lower - upper);
          const float next = upper_next + row.beyond * (lower_next - upper_next);
          sum[c] += here + column.beyond * (next - here);
        }
      }
      for (i32 c = 0; c < 3; ++c)
        a.dst[(static_cast<i64>(y) * a.w + x) * 3 + c] = to_u8(sum[c] / static_cast<float>(kZoomViews));
    });
  }
}

// The views' factors; of a team of one the places and rows of all views.
QPT_FN i64 zoom_bytes(i32, i32 w, i32 blocks) {
  if (blocks != kSoloBlocks) return own_bytes<float>(kZoomViews, blocks);
  const i64 places = kZoomViews * static_cast<i64>(spread_stride(w));
  return taken_bytes<float>(kZoomViews) + taken_bytes<i32>(places) + taken_bytes<float>(places) +
         taken_bytes<float>(kZoomViews * static_cast<i64>(spread_stride(3 * w + kZoomPadding)));
}

// Maps a word to an integer in [-reach, reach].
QPT_INLINE i32 offset_within(u32 word, i32 reach) {
  const u64 choices = 2 * static_cast<u64>(reach) + 1;
  return static_cast<i32>((word * choices) >> 32) - reach;
}

// Moves green by p0 = shift_px in the direction p1 = angle_deg, counter-clockwise as seen; rows and columns are
// rounded.
template <class Team>
QPT_FN void colour_shift(Team& team, OpArgs a) {
  const float distance = parameter(a.params[0], 0.0f, 64.0f);
  const SinCos angle = sin_cos_degrees(parameter(a.params[1], -36000.0f, 36000.0f));
  const i32 right = static_cast<i32>(nearest(distance * angle.cos)),
            up = static_cast<i32>(nearest(distance * angle.sin));
  each(team, rows_of(team, a), a.w, [&](i32 y, i32 x) {
    const i64 at = (static_cast<i64>(y) * a.w + x) * 3;
    const i64 from = static_cast<i64>(clamp(y + up, 0, a.h - 1)) * a.w + clamp(x - right, 0, a.w - 1);
    a.dst[at] = a.src[at];
    a.dst[at + 1] = a.src[3 * from + 1];
    a.dst[at + 2] = a.src[at + 2];
  });
}

// The four pixels around a position, and the bilinear weights of the pixels on the right and below.
struct BilinearSample {
  const u8* upper_left;
  i32 across, below;  // distance in samples to the pixel on the right and below; 0 at the border
  float right, down;

  QPT_INLINE float channel(i32 c) const {
    const u8* at = upper_left + c;
    const float upper = at[0] + right * static_cast<float>(at[across] - at[0]);
    const float lower = at[below] + right * static_cast<float>(at[below + across] - at[below]);
    return upper + down * (lower - upper);
  }
};

// Returns the sample at a position, which is clamped to the image.
QPT_INLINE BilinearSample bilinear_at(const OpArgs& a, float y, float x) {
  const float row = clamp(y, 0.0f, static_cast<float>(a.h - 1)), column = clamp(x, 0.0f, static_cast<float>(a.w - 1));
  const i32 whole_row = static_cast<i32>(row), whole_column = static_cast<i32>(column);
  return {a.src + (static_cast<i64>(whole_row) * a.w + whole_column) * 3, whole_column < a.w - 1 ? 3 : 0,
          whole_row < a.h - 1 ? 3 * a.w : 0, column - static_cast<float>(whole_column),
          row - static_cast<float>(whole_row)};
}

// Magnifies red about the image's centre by 1 + p0 and blue by 1 - p0, bilinear; green stays. p0 = ratio.
template <class Team>
QPT_FN void chromatic_aberration(Team& team, OpArgs a) {
  const float ratio = parameter(a.params[0], -0.25f, 0.25f);
  const float red = 1.0f / (1.0f + ratio), blue = 1.0f / (1.0f - ratio);
  const float centre_y = 0.5f * static_cast<float>(a.h - 1), centre_x = 0.5f * static_cast<float>(a.w - 1);
  each(team, rows_of(team, a), a.w, [&](i32 y, i32 x) {
    const i64 at = (static_cast<i64>(y) * a.w + x) * 3;
    const float from_y = static_cast<float>(y) - centre_y, from_x = static_cast<float>(x) - centre_x;
    a.dst[at] = to_u8(bilinear_at(a, centre_y + from_y * red, centre_x + from_x * red).channel(0));
    a.dst[at + 1] = a.src[at + 1];
    a.dst[at + 2] = to_u8(bilinear_at(a, centre_y + from_y * blue, centre_x + from_x * blue).channel(2));
  });
}

// Reads every pixel, bilinear, at a distance that is normal in rows and in columns with standard deviation sqrt(5) p0.
// p0 = std_px. Elements 2 p and 2 p + 1 of the noise belong to pixel p.
template <class Team>
QPT_FN void spatial_jitter(Team& team, OpArgs a) {
  const float std = 2.23606798f * parameter(a.params[0], 0.0f, 8.0f);
  with_normals<2>(team, a, kTagJitter, [&](i32 first, i32 count, const float* normal) {
    each(team, count / 2, [&](i32 i) {
      const i32 p = first / 2 + i, y = p / a.w;
      const BilinearSample from = bilinear_at(a, static_cast<float>(y) + std * normal[2 * i],
                                              static_cast<float>(p - y * a.w) + std * normal[2 * i + 1]);
      u8* to = a.dst + static_cast<i64>(3) * p;
      to[0] = to_u8(from.channel(0));
      to[1] = to_u8(from.channel(1));
      to[2] = to_u8(from.channel(2));
    });
  });
}

constexpr i32 kMaxRounds = 8;

// Reads every pixel, bilinear, at a distance that is normal in rows and in columns with standard deviation p0, and
// again from the result, p1 times in all, each rounded to 8 bits. p0 = std_px, p1 = rounds. Elements 2 p and 2 p + 1 of
// a round's noise belong to pixel p. p2 = 1: a round also moves the picture down by d and left by d, where d is the
// largest distance right less the largest one down, each rounded up.
template <class Team>
QPT_FN void repeated_jitter(Team& team, OpArgs a) {
  a.top = a.left = 0;  // the image is whole
  a.full_h = a.h;
  a.full_w = a.w;
  // Parameters are read again where they are needed: kept through the noise, they would cost it GPU registers.
  const auto rounds = [&] {
    return static_cast<i32>(parameter(a.params[1], 1.0f, static_cast<float>(kMaxRounds)) + 0.5f);
  };
  const auto scratch_after_numbers = [&] {
    Scratch scratch{static_cast<u8*>(a.scratch)};
    scratch.take_own<float>(team, kNoiseElements * kNoiseBlocks);  // the numbers of with_normals
    return scratch;
  };
  // The image that so many rounds from the last one reads or writes; the last one writes to dst.
  const auto image = [&](i32 rounds_left) {
    return rounds_left % 2 == 0 ? a.dst : scratch_after_numbers().next + team_maxima_bytes(team.blocks());
  };
  i32 moved = 0;
  // Passes 2 r and 2 r + 1 have the numbers of round r: the first finds the largest, the second reads the pixels.
  QPT_UNROLL(1)
  for (i32 pass = parameter(a.params[2], 0.0f, 1.0f) >= 0.5f ? 0 : 1; pass < 2 * rounds();
       pass += parameter(a.params[2], 0.0f, 1.0f) >= 0.5f ? 1 : 2) {
    Pair most{-8.0f, -8.0f};  // a normal number is larger
    with_normals<2>(
        team, a, kTagJitterRounds + static_cast<u32>(pass / 2), [&](i32 first, i32 count, const float* normal) {
          const i32 left = rounds() - pass / 2;
          const float std = parameter(a.params[0], 0.0f, 8.0f);
          OpArgs from = a;
          if (pass > 1) from.src = image(left);
          u8* const to = image(left - 1);
          each(team, count / 2, [&](i32 i) {
            if (pass % 2 == 0) {
              most = {maximum(most.first, normal[2 * i]), maximum(most.second, normal[2 * i + 1])};
              return;
            }
            const i32 p = first / 2 + i, y = p / a.w;
            const BilinearSample at = bilinear_at(from, static_cast<float>(y - moved) + std * normal[2 * i],
                                                  static_cast<float>(p - y * a.w + moved) + std * normal[2 * i + 1]);
            for (i32 c = 0; c < 3; ++c) to[static_cast<i64>(3) * p + c] = to_u8(at.channel(c));
          });
        });
    if (pass % 2 == 1) {
      if (pass + 1 < 2 * rounds()) team.sync_team();  // the round's image, written by all, is read by all
      continue;
    }
    most = team_maxima(team, scratch_after_numbers(), most);
    const auto padding = [&](float largest) {
      return ceil_to_int(parameter(a.params[0], 0.0f, 8.0f) * (largest < 0.0f ? -largest : largest));
    };
    moved = padding(most.second) - padding(most.first);
  }
}

QPT_FN i64 jitter_bytes(i32 h, i32 w, i32 blocks) {
  return own_bytes<float>(kNoiseElements * kNoiseBlocks, blocks) + taken_bytes<u8>(static_cast<i64>(h) * w * 3) +
         team_maxima_bytes(blocks);
}

constexpr i32 kMaxTrail = 24, kTrailTaps = 2 * kMaxTrail + 1;

// The mean of 2 p0 + 1 pixels in a line that starts at the pixel itself, each step 1 px long and rounded to whole
// pixels, weighted by exp(-i^2 / 2 p1^2) for the i-th. The line runs at p2 = angle_deg, counter-clockwise as seen. p0 =
// radius_px, p1 = sigma_px.
template <class Team>
QPT_FN void motion_trail(Team& team, OpArgs a) {
  const i32 taps = 2 * static_cast<i32>(parameter(a.params[0], 0.0f, static_cast<float>(kMaxTrail)) + 0.5f) + 1;
  const float sigma = parameter(a.params[1], 0.1f, 64.0f);
  const SinCos angle = sin_cos_degrees(parameter(a.params[2], -36000.0f, 36000.0f));
  Scratch scratch{static_cast<u8*>(a.scratch)};
  float* weight = scratch.take_own<float>(team, kTrailTaps);
  i32 *down = scratch.take_own<i32>(team, kTrailTaps), *right = scratch.take_own<i32>(team, kTrailTaps);
  each(team, taps, [&](i32 i) {
    weight[i] = GaussianTap{sigma}(i);
    down[i] = ceil_to_int(static_cast<float>(-i) * angle.sin - 0.5f);  // image y points down
    right[i] = ceil_to_int(static_cast<float>(i) * angle.cos - 0.5f);
  });
  team.sync();  // weights and steps, written by all, are read by all
  float total = 0.0f;
  for (i32 i = 0; i < taps; ++i) total += weight[i];
  if constexpr (Team::kSolo) {
    // Tap by tap over rows of samples, for vectors, with the borders replicated: the same sums in the same order.
    const i32 samples = 3 * a.w, border = 3 * (kTrailTaps - 1), stride = samples + 2 * border;
    u8* padded = scratch.take<u8>(static_cast<i64>(a.h) * stride);
    float* sums = scratch.take<float>(samples);
    for (i32 y = 0; y < a.h; ++y) {
      const u8* const row = a.src + static_cast<i64>(y) * samples;
      u8* const to = padded + static_cast<i64>(y) * stride;
      each(team, samples, [&](i32 i) { to[border + i] = row[i]; });
      for (i32 i = 0; i < border; ++i) {
        to[i] = row[i % 3];
        to[border + samples + i] = row[samples - 3 + i % 3];
      }
    }
    for (i32 y = 0; y < a.h; ++y) {
      each(team, samples, [&](i32 i) { sums[i] = 0.0f; });
      for (i32 tap = 0; tap < taps; ++tap) {
        const float w = weight[tap];
        const u8* const from =
            padded + static_cast<i64>(clamp(y + down[tap], 0, a.h - 1)) * stride + border + 3 * right[tap];
        each(team, samples, [&](i32 i) { sums[i] = fma(w, static_cast<float>(from[i]), sums[i]); });
      }
      u8* const to = a.dst + static_cast<i64>(y) * samples;
      each(team, samples, [&](i32 i) { to[i] = to_u8(sums[i] / total); });
    }
    return;
  }
  each(team, rows_of(team, a), a.w, [&](i32 y, i32 x) {
    float r = 0.0f, g = 0.0f, b = 0.0f;
    for (i32 i = 0; i < taps; ++i) {
      const u8* from =
          a.src + (static_cast<i64>(clamp(y + down[i], 0, a.h - 1)) * a.w + clamp(x + right[i], 0, a.w - 1)) * 3;
      r = fma(weight[i], static_cast<float>(from[0]), r);
      g = fma(weight[i], static_cast<float>(from[1]), g);
      b = fma(weight[i], static_cast<float>(from[2]), b);
    }
    u8* to = a.dst + (static_cast<i64>(y) * a.w + x) * 3;
    to[0] = to_u8(r / total);
    to[1] = to_u8(g / total);
    to[2] = to_u8(b / total);
  });
}

QPT_FN i64 trail_bytes(i32 h, i32 w, i32 blocks) {
  const i64 padded = 3 * (static_cast<i64>(w) + 2 * (kTrailTaps - 1));
  return own_bytes<float>(kTrailTaps, blocks) + 2 * own_bytes<i32>(kTrailTaps, blocks) +
         (blocks == kSoloBlocks ? taken_bytes<u8>(h * padded) + taken_bytes<float>(3 * static_cast<i64>(w)) : 0);
}

}  // namespace qpt
