// The median filter (texture family): each channel's median over a square window, borders replicated, as in
// cv2.medianBlur. The median is found bit by bit, from the number of smaller values in the window; cpu/simd.h has
// faster forms for x86. Listed in table.h.
#pragma once
#include "op.h"

namespace qpt {

constexpr i32 kMaxMedianRadius = 7;

// The median over a window of 2 radius + 1 pixels a side. p0 = radius_px, an integer in [0, 7].
template <class Team>
QPT_FN void median_blur(Team& team, OpArgs a) {
  const i32 radius = static_cast<i32>(parameter(a.params[0], 0.0f, static_cast<float>(kMaxMedianRadius)) + 0.5f);
  const i32 taps = 2 * radius + 1, half = taps * taps / 2, samples = 3 * a.w, stride = samples + 6 * radius;
  Scratch scratch{static_cast<u8*>(a.scratch)};
  u8* padded = scratch.take<u8>(static_cast<i64>(a.h) * stride);
#if QPT_SIMD_ROWS
  constexpr u8 bias = Team::kSolo ? simd::kMedianBias : 0;  // of the padded copy: AVX2 compares signed bytes
#else
  constexpr u8 bias = 0;
#endif
  const Span own = rows_of(team, a);
  each(team, own, samples, [&](i32 y, i32 i) {
    padded[static_cast<i64>(y) * stride + 3 * radius + i] =
        static_cast<u8>(a.src[static_cast<i64>(y) * samples + i] ^ bias);
  });
  each(team, own, 6 * radius, [&](i32 y, i32 i) {
    const bool left = i < 3 * radius;
    const u8* end = a.src + static_cast<i64>(y) * samples + (left ? 0 : samples - 3);
    padded[static_cast<i64>(y) * stride + (left ? i : samples + i)] = static_cast<u8>(end[i % 3] ^ bias);
  });
  team.sync_team();  // padded rows, written by all, are read by all
  const auto row_of = [&](i32 y, i32 dy) {
    return padded + static_cast<i64>(clamp(y + dy - radius, 0, a.h - 1)) * stride;
  };
  // The median is the largest value with at most `half` samples below it.
  if constexpr (Team::kSolo) {  // row by row, so that every loop runs over contiguous samples
    u8* low = scratch.take<u8>(samples);
    u8* below = scratch.take<u8>(samples);
    for (i32 y = 0; y < a.h; ++y) {
#if QPT_SIMD_ROWS
      const u8* rows[2 * kMaxMedianRadius + 1];
      for (i32 dy = 0; dy < taps; ++dy) rows[dy] = row_of(y, dy);
      if (simd::median_row(rows, radius, samples, a.dst + static_cast<i64>(y) * samples)) continue;
#endif
      for (i32 i = 0; i < samples; ++i) low[i] = 0;
      for (i32 bit = 128; bit > 0; bit >>= 1) {
        for (i32 i = 0; i < samples; ++i) below[i] = 0;
        for (i32 dy = 0; dy < taps; ++dy)
          for (i32 dx = 0; dx < taps; ++dx) {
            const u8* p = row_of(y, dy) + 3 * dx;
            QPT_INDEPENDENT
            for (i32 i = 0; i < samples; ++i)
              below[i] =
                  static_cast<u8>(below[i] + (static_cast<u8>(p[i] ^ bias) < static_cast<u8>(low[i] | bit) ? 1 : 0));
          }
        for (i32 i = 0; i < samples; ++i) low[i] = static_cast<u8>(low[i] | (below[i] <= half ? bit : 0));
      }
      for (i32 i = 0; i < samples; ++i) a.dst[static_cast<i64>(y) * samples + i] = low[i];
    }
  } else {
    each(team, own, samples, [&](i32 y, i32 i) {
      i32 low = 0;
      for (i32 bit = 128; bit > 0; bit >>= 1) {
        i32 below = 0;
        for (i32 dy = 0; dy < taps; ++dy) {
          const u8* p = row_of(y, dy) + i;
          for (i32 dx = 0; dx < taps; ++dx) below += p[3 * dx] < (low | bit) ? 1 : 0;
        }
        low |= below <= half ? bit : 0;
      }
      a.dst[static_cast<i64>(y) * samples + i] = static_cast<u8>(low);
    });
  }
}

// The padded image and two rows.
QPT_FN i64 median_bytes(i32 h, i32 w, i32) {
  const i64 row = static_cast<i64>(3) * w;
  return taken_bytes<u8>(h * (row + 6 * kMaxMedianRadius)) + 2 * taken_bytes<u8>(row);
}

}  // namespace qpt
