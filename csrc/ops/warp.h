// Ops that read pixels at other positions: zoom and glass blur (texture family), spatial jitter (geometry family),
// shifted and magnified channels (colour family). A position beyond the border reads the nearest pixel of the image
// (replicated border). Listed in table.h; parameters in qpt/degradations/rows.
#pragma once
#include "blur.h"
#include "noise.h"
#include "team_maxima.h"

namespace qpt {

constexpr i32 kZoomViews = 16;

// The first samples of the two rows that a view's row lies between, and the weight of the lower one, [0, 1).
struct SourceRows {
  i32 upper, lower;
  float below;
};
constexpr i32 kZoomPadding = 4;  // samples after a row: a neighbour for its last pixel, and one more that vectors read

// The mean of 16 views enlarged about the image's centre by factors 1 to p0 = zoom in equal steps, bilinear. Row by
// row: first interpolation between two source rows for every view, then between two pixels of each view.
template <class Team>
QPT_FN void zoom_blur(Team& team, OpArgs a) {
  const float zoom = parameter(a.params[0], 1.0f, 2.0f);
  const float step = (zoom - 1.0f) / static_cast<float>(kZoomViews - 1);
  const i32 samples = 3 * a.w, stride = spread_stride(samples + kZoomPadding), places = spread_stride(a.w);
  Scratch scratch{static_cast<u8*>(a.scratch)};
  // The pixel to the left of each position, and the weight of the next pixel, [0, 1).
  i32* left_at = scratch.take_own<i32>(team, static_cast<i64>(kZoomViews) * places);
  float* right = scratch.take_own<float>(team, static_cast<i64>(kZoomViews) * places);
  float* rows = scratch.take_own<float>(team, static_cast<i64>(kZoomViews) * stride);
  SourceRows* source = scratch.take_own<SourceRows>(team, 2 * kZoomViews);
  float* inverse = scratch.take_own<float>(team, kZoomViews);  // of the views' factors
  each(team, kZoomViews, [&](i32 v) { inverse[v] = 1.0f / (1.0f + step * static_cast<float>(v)); });
  team.sync();  // inverse factors, one member each, are read by all
  // Returns the position of the source that view v shows at i of n: always inside, since views are enlarged.
  const auto place = [&](i32 v, i32 i, i32 n) {
    const float centre = 0.5f * static_cast<float>(n - 1);
    return centre + (static_cast<float>(i) - centre) * inverse[v];
  };
  each(team, kZoomViews, a.w, [&](i32 v, i32 i) {
    const float x = place(v, i, a.w);
    const i32 whole = clamp(static_cast<i32>(x), 0, a.w - 1);
    left_at[v * places + i] = v * stride + 3 * whole;
    right[v * places + i] = x - static_cast<float>(whole);
  });
  each(team, kZoomViews, kZoomPadding, [&](i32 v, i32 i) { rows[v * stride + samples + i] = 0.0f; });
  const Span own = rows_of(team, a);
  // Where each view of row y lies: two rows in turn, as one is computed while the other is read.
  const auto find_rows = [&](i32 y) {
    each(team, kZoomViews, [&](i32 v) {
      const float at = place(v, y, a.h);
      const i32 whole = clamp(static_cast<i32>(at), 0, a.h - 1);
      SourceRows* const to = source + (y & 1) * kZoomViews + v;
      *to = {whole * samples, minimum(whole + 1, a.h - 1) * samples, at - static_cast<float>(whole)};
    });
  };
  find_rows(own.first);
  team.sync();  // the rows' places, one member each, are read by all
  for (i32 y = own.first; y < own.last; ++y) {
    if (y > own.first) team.sync();  // all have read the rows that are overwritten
    const auto between = [&](SourceRows from, i32 i) {
      const float upper = a.src[from.upper + i], lower = a.src[from.lower + i];
      return upper + from.below * (lower - upper);
    };
    if constexpr (Team::kSolo) {
      for (i32 v = 0; v < kZoomViews; ++v) {
        const SourceRows from = source[(y & 1) * kZoomViews + v];  // a copy, so that the loop vectorises
        float* const row = rows + v * stride;
        QPT_INDEPENDENT
        for (i32 i = 0; i < samples; ++i) row[i] = between(from, i);
      }
    } else {
      each(team, kZoomViews, samples,
           [&](i32 v, i32 i) { rows[v * stride + i] = between(source[(y & 1) * kZoomViews + v], i); });
    }
    find_rows(y + 1);
    team.sync();  // rows of all views, left_at and right, written by all, are read by all
    u8* const to = a.dst + static_cast<i64>(y) * samples;
#if QPT_SIMD_ROWS
    if constexpr (Team::kSolo) {
      for (i32 x = 0; x < a.w; ++x) {
        float sum[4];
        simd::sum_views(kZoomViews, rows, left_at + x, right + x, places, sum);
        for (i32 c = 0; c < 3; ++c) to[3 * x + c] = to_u8(sum[c] / static_cast<float>(kZoomViews));
      }
      continue;
    }
#endif
    each(team, a.w, [&](i32 x) {
      float sum[3] = {};
      for (i32 v = 0; v < kZoomViews; ++v) {
        const float* at = rows + left_at[v * places + x];
        const float share = right[v * places + x];
        for (i32 c = 0; c < 3; ++c) sum[c] += at[c] + share * (at[c + 3] - at[c]);
      }
      for (i32 c = 0; c < 3; ++c) to[3 * x + c] = to_u8(sum[c] / static_cast<float>(kZoomViews));
    });
  }
}

QPT_FN i64 zoom_bytes(i32, i32 w, i32 blocks) {
  const i64 places = kZoomViews * static_cast<i64>(spread_stride(w));
  return own_bytes<i32>(places, blocks) + own_bytes<float>(places, blocks) +
         own_bytes<SourceRows>(2 * kZoomViews, blocks) + own_bytes<float>(kZoomViews, blocks) +
         own_bytes<float>(kZoomViews * static_cast<i64>(spread_stride(3 * w + kZoomPadding)), blocks);
}

// Maps a word to an integer in [-reach, reach].
QPT_INLINE i32 offset_within(u32 word, i32 reach) {
  const u64 choices = 2 * static_cast<u64>(reach) + 1;
  return static_cast<i32>((word * choices) >> 32) - reach;
}

constexpr i32 kMaxGlass = 16;

// Reads every pixel from up to p0 = delta_px rows and columns away, then applies a Gaussian blur of p1 = sigma_px.
// Words x and y of counter p give the row and column offsets of pixel p.
template <class Team>
QPT_FN void glass_blur(Team& team, OpArgs a) {
  const i32 reach = static_cast<i32>(parameter(a.params[0], 0.0f, static_cast<float>(kMaxGlass)) + 0.5f);
  const float sigma = parameter(a.params[1], 0.05f, 8.0f);
  Scratch scratch{static_cast<u8*>(a.scratch)};
  u8* moved = scratch.take<u8>(static_cast<i64>(a.h) * a.w * 3);
  each(team, rows_of(team, a), a.w, [&](i32 y, i32 x) {
    const Philox4 words = op_words(a, kTagGlass, (y + a.top) * a.full_w + x + a.left);
    const i32 from_y = clamp(y + offset_within(words.x, reach), 0, a.h - 1);
    const i32 from_x = clamp(x + offset_within(words.y, reach), 0, a.w - 1);
    const u8* from = a.src + (static_cast<i64>(from_y) * a.w + from_x) * 3;
    u8* to = moved + (static_cast<i64>(y) * a.w + x) * 3;
    to[0] = from[0];
    to[1] = from[1];
    to[2] = from[2];
  });
  // Not synced: the first barrier of separable_blur comes before any member reads moved, of the block's own rows.
  a.src = moved;
  a.scratch = scratch.next;
  separable_blur(team, a, gaussian_radius(sigma), GaussianTap{sigma});
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
  const float std = parameter(a.params[0], 0.0f, 8.0f);
  const i32 rounds = static_cast<i32>(parameter(a.params[1], 1.0f, static_cast<float>(kMaxRounds)) + 0.5f);
  const bool drifts = parameter(a.params[2], 0.0f, 1.0f) >= 0.5f;
  Scratch scratch{static_cast<u8*>(a.scratch)};
  scratch.take_own<float>(team, kNoiseElements * kNoiseBlocks);  // the numbers of with_normals
  u8* other = scratch.take<u8>(static_cast<i64>(a.h) * a.w * 3);
  OpArgs from = a;
  i32 moved = 0;
  // Passes 2 r and 2 r + 1 have the numbers of round r: the first finds the largest, the second reads the pixels.
  QPT_UNROLL(1)
  for (i32 pass = 0; pass < 2 * rounds; ++pass) {
    const i32 round = pass / 2;
    const bool reads = pass % 2 == 1;
    if (!reads && !drifts) continue;
    u8* const to = (rounds - round) % 2 == 1 ? a.dst : other;
    Pair most{-8.0f, -8.0f};  // a normal number is larger
    with_normals<2>(
        team, a, kTagJitterRounds + static_cast<u32>(round), [&](i32 first, i32 count, const float* normal) {
          each(team, count / 2, [&](i32 i) {
            if (!reads) {
              most = {maximum(most.first, normal[2 * i]), maximum(most.second, normal[2 * i + 1])};
              return;
            }
            const i32 p = first / 2 + i, y = p / a.w;
            const BilinearSample at = bilinear_at(from, static_cast<float>(y - moved) + std * normal[2 * i],
                                                  static_cast<float>(p - y * a.w + moved) + std * normal[2 * i + 1]);
            for (i32 c = 0; c < 3; ++c) to[static_cast<i64>(3) * p + c] = to_u8(at.channel(c));
          });
        });
    if (reads) {
      if (pass + 1 < 2 * rounds) team.sync_team();  // the round's image, written by all, is read by all
      from.src = to;
      continue;
    }
    most = team_maxima(team, scratch, most);
    const auto padding = [&](float largest) { return ceil_to_int(std * (largest < 0.0f ? -largest : largest)); };
    moved = padding(most.second) - padding(most.first);
  }
}

QPT_FN i64 jitter_bytes(i32 h, i32 w, i32 blocks) {
  return own_bytes<float>(kNoiseElements * kNoiseBlocks, blocks) + taken_bytes<u8>(static_cast<i64>(h) * w * 3) +
         team_maxima_bytes(blocks);
}

// Where a scan that replaces pixels one after another, from the last row up and in a row from the right, finds the
// colour of pixel (y, x): it reads the pixel at a drawn offset of -reach to reach - 1 rows and columns, and one that it
// has passed has been replaced before. The scan leaves `reach` pixels out at the border. Words x and y of counter p of
// the round's tag give the offsets of pixel p.
struct Place {
  i32 y, x;
};
QPT_INLINE Place scanned_from(const OpArgs& a, u32 tag, i32 reach, i32 y, i32 x) {
  const auto scanned = [&](i32 i, i32 n) { return i > reach && i <= n - reach; };
  while (scanned(y, a.h) && scanned(x, a.w)) {
    const Philox4 words = op_words(a, tag, y * a.w + x);
    const u64 choices = 2 * static_cast<u64>(reach);
    const i32 down = static_cast<i32>((words.x * choices) >> 32) - reach;
    const i32 right = static_cast<i32>((words.y * choices) >> 32) - reach;
    y += down;
    x += right;
    if (down < 0 || (down == 0 && right <= 0)) break;
  }
  return {y, x};
}

// Blurs by p1 = sigma_px, rounded to 8 bits; scans the image p2 = rounds times with p0 = delta_px; blurs again.
template <class Team>
QPT_FN void glass_shuffle(Team& team, OpArgs a) {
  const i32 reach = static_cast<i32>(parameter(a.params[0], 1.0f, static_cast<float>(kMaxGlass)) + 0.5f);
  const float sigma = parameter(a.params[1], 0.05f, 8.0f);
  const i32 rounds = static_cast<i32>(parameter(a.params[2], 0.0f, static_cast<float>(kMaxRounds)) + 0.5f);
  Scratch scratch{static_cast<u8*>(a.scratch)};
  u8* shuffled = scratch.take<u8>(static_cast<i64>(a.h) * a.w * 3);
  OpArgs blurred = a;
  blurred.scratch = scratch.next;
  blurred.dst = rounds % 2 == 0 ? shuffled : a.dst;
  QPT_UNROLL(1)
  for (i32 pass = 0; pass < 2; ++pass) {
    separable_blur(team, blurred, gaussian_radius(sigma), GaussianTap{sigma});
    if (pass == 1) return;
    team.sync_team();  // the blurred image, written by all, is read by all
    QPT_UNROLL(1)
    for (i32 round = 0; round < rounds; ++round) {
      const u8* const from = blurred.dst;
      u8* const to = from == shuffled ? a.dst : shuffled;
      each(team, rows_of(team, a), a.w, [&](i32 y, i32 x) {
        const Place at = scanned_from(a, kTagGlassRounds + static_cast<u32>(round), reach, y, x);
        for (i32 c = 0; c < 3; ++c) to[(y * a.w + x) * 3 + c] = from[(at.y * a.w + at.x) * 3 + c];
      });
      // The round's image, written by all, is read by all. After the last one the first barrier of separable_blur comes
      // before any member reads it, of the block's own rows.
      if (round + 1 < rounds) team.sync_team();
      blurred.dst = to;
    }
    blurred.src = shuffled;
    blurred.dst = a.dst;
  }
}

QPT_FN i64 glass_shuffle_bytes(i32 h, i32 w, i32 blocks) {
  return taken_bytes<u8>(static_cast<i64>(h) * w * 3) + blur_bytes(h, w, blocks);
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

QPT_FN i64 trail_bytes(i32, i32, i32 blocks) {
  return own_bytes<float>(kTrailTaps, blocks) + 2 * own_bytes<i32>(kTrailTaps, blocks);
}

QPT_FN i64 glass_bytes(i32 h, i32 w, i32 blocks) {
  return taken_bytes<u8>(static_cast<i64>(h) * w * 3) + blur_bytes(h, w, blocks);
}

}  // namespace qpt
