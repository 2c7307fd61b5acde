// The 9/7 wavelet of Cohen, Daubechies and Feauveau by lifting (Daubechies and Sweldens, 1998), as in JPEG 2000 (ITU-T
// T.800, annex F), scaled to be nearly orthonormal. The transform is in place; after a level the low half comes first.
// Signals are mirrored about the centres of their end samples, and a signal of one sample stays unchanged. Used by
// jpeg2000.h.
#pragma once
#include "op.h"

namespace qpt {

constexpr i32 kWaveletLevels = 5;
constexpr i32 kStripLines = 32;  // lines that are transformed together
constexpr float kLowGain = 1.149604398f;

// One lifting step on a strip [n][kStripLines] whose low half comes first: adds to the samples of one half, the high
// one if `to_high`, factor times the sum of their two neighbours in the other half.
template <class Team>
QPT_FN void lift(const Team& team, float* strip, i32 n, i32 lines, bool to_high, float factor) {
  const i32 lows = (n + 1) / 2, highs = n / 2;
  float *const low = strip, *const high = strip + static_cast<i64>(lows) * kStripLines;
  float* const to = to_high ? high : low;
  const float* const from = to_high ? low : high;
  const i32 shift = to_high ? 0 : -1, last = (to_high ? lows : highs) - 1;
  each(team, to_high ? highs : lows, lines, [=](i32 i, i32 line) {
    const float left = from[clamp(i + shift, 0, last) * kStripLines + line];
    const float right = from[clamp(i + shift + 1, 0, last) * kStripLines + line];
    float* const x = to + i * kStripLines + line;
    *x = fma(factor, left + right, *x);
  });
  team.sync();  // this half, written by all, is read by all in the next step
}

// Transforms the lines, of n samples, of `count` planes by one level; sample p of line l of a plane is at plane[l
// line_step + p sample_step].
template <class Team>
QPT_FN void transform_lines(const Team& team, float* planes, i32 count_of_planes, i32 plane_step, i32 lines,
                            i32 line_step, i32 n, i32 sample_step, bool inverse, float* strip) {
  if (n == 1) return;
  const i32 lows = (n + 1) / 2;
  const float low_gain = inverse ? 1.0f / kLowGain : kLowGain, high_gain = inverse ? kLowGain : 1.0f / kLowGain;
  const i32 strips = (lines + kStripLines - 1) / kStripLines;
  QPT_UNROLL(1)
  for (i32 task = team.block(); task < count_of_planes * strips; task += team.blocks()) {
    const i32 plane = task / strips, first = (task - plane * strips) * kStripLines;
    const i32 count = minimum(kStripLines, lines - first);
    float* const from = planes + static_cast<i64>(plane) * plane_step + static_cast<i64>(first) * line_step;
    // Place p of the strip holds sample p of the transform, which is sample 2 p or 2 (p - lows) + 1 of the signal.
    each(team, n, count, [=](i32 p, i32 line) {
      const i32 sample = inverse ? p : p < lows ? 2 * p : 2 * (p - lows) + 1;
      const float gain = !inverse ? 1.0f : p < lows ? low_gain : high_gain;
      strip[p * kStripLines + line] = from[sample * sample_step + line * line_step] * gain;
    });
    team.sync();  // the strip, written by all, is read by all
    QPT_UNROLL(1)
    for (i32 step = 0; step < 4; ++step) {
      const i32 at = inverse ? 3 - step : step;
      const float factor = at == 0 ? -1.586134342f : at == 1 ? -0.052980118f : at == 2 ? 0.882911075f : 0.443506852f;
      lift(team, strip, n, count, (at & 1) == 0, inverse ? -factor : factor);
    }
    each(team, n, count, [=](i32 p, i32 line) {
      const i32 sample = !inverse ? p : p < lows ? 2 * p : 2 * (p - lows) + 1;
      const float gain = inverse ? 1.0f : p < lows ? low_gain : high_gain;
      from[sample * sample_step + line * line_step] = strip[p * kStripLines + line] * gain;
    });
    // The strip, which all have read, is overwritten.
    if (task + team.blocks() < count_of_planes * strips) team.sync();
  }
  team.sync_team();  // the planes, written by all, are read by all
}

// Returns the size of the low part of a side after `level` levels.
QPT_INLINE i32 low_size(i32 size, i32 level) {
  return (size - 1) / (1 << level) + 1;
}

// Transforms `count` planes [h, w], whose rows are `stride` apart, by all levels from the finest on, or back if
// `inverse`. Strips of lines are divided among the blocks.
template <class Team>
QPT_FN void transform_planes(const Team& team, float* planes, i32 count, i32 h, i32 w, i32 stride, bool inverse,
                             float* strip) {
  QPT_UNROLL(1)
  for (i32 i = 0; i < 2 * kWaveletLevels; ++i) {  // per level along y, then along x; in reverse order if inverse
    const i32 pass = inverse ? 2 * kWaveletLevels - 1 - i : i, level = pass / 2;
    const i32 rows = low_size(h, level), columns = low_size(w, level);
    const bool along_x = pass & 1;
    transform_lines(team, planes, count, h * stride, along_x ? rows : columns, along_x ? stride : 1,
                    along_x ? columns : rows, along_x ? 1 : stride, inverse, strip);
  }
}

QPT_FN i64 strip_bytes(i32 h, i32 w, i32 blocks) {
  return own_bytes<float>(static_cast<i64>(maximum(h, w)) * kStripLines, blocks);
}

}  // namespace qpt
