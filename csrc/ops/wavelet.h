// The 9/7 wavelet of Cohen, Daubechies and Feauveau by lifting (Daubechies and Sweldens, 1998), as in JPEG 2000 (ITU-T
// T.800, annex F), scaled to be nearly orthonormal. The transform is in place; after a level the low half comes first.
// Signals are mirrored about the centres of their end samples, and a signal of one sample stays unchanged. A team of
// one applies each lifting step to many lines at once, a thread of several all steps to some samples of a line. Used by
// jpeg2000.h.
#pragma once
#include "filter.h"

namespace qpt {

constexpr i32 kWaveletLevels = 5;
constexpr i32 kStripLines = 32;  // lines that are transformed together
constexpr i32 kLiftedPairs = 4;  // of a low and a high sample, that a thread computes at once
constexpr float kLowGain = 1.149604398f;

// Returns the factor of a lifting step, which changes the high half if the step is even.
QPT_INLINE constexpr float lifting_factor(i32 step) {
  return step == 0 ? -1.586134342f : step == 1 ? -0.052980118f : step == 2 ? 0.882911075f : 0.443506852f;
}

// Applies one lifting step of a team of one to a strip [n][kStripLines] whose low half comes first: it adds to the
// samples of one half, the high one if `to_high`, factor times the sum of their two neighbours in the other half.
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
}

// Transforms kLiftedPairs pairs from pair `first` on: sample(pair, odd) is sample 2 pair + odd of the signal, mirrored;
// even samples are low ones. put(k, low, high) takes the results of pair first + k. The four steps are those of lift().
template <bool kInverse, class Sample, class Put>
QPT_INLINE void lift_pairs(i32 first, Sample sample, Put put) {
  constexpr i32 kEnd = kLiftedPairs + 4;
  float low[kEnd], high[kEnd];  // of pairs first - 2 to first + kLiftedPairs + 1
  for (i32 k = kInverse ? 1 : 0; k < kEnd; ++k) low[k] = sample(first + k - 2, 0);
  for (i32 k = 0; k < (kInverse ? kEnd : kEnd - 1); ++k) high[k] = sample(first + k - 2, 1);
  const auto add_to_high = [&](i32 from, i32 to, float factor) QPT_BODY {
    for (i32 k = from; k < to; ++k) high[k] = fma(factor, low[k] + low[k + 1], high[k]);
  };
  const auto add_to_low = [&](i32 from, i32 to, float factor) QPT_BODY {
    for (i32 k = from; k < to; ++k) low[k] = fma(factor, high[k - 1] + high[k], low[k]);
  };
  // What a step changes is what the steps after it need.
  if constexpr (kInverse) {
    add_to_low(1, kEnd, -lifting_factor(3));
    add_to_high(1, kEnd - 1, -lifting_factor(2));
    add_to_low(2, kEnd - 1, -lifting_factor(1));
    add_to_high(2, kEnd - 2, -lifting_factor(0));
  } else {
    add_to_high(0, kEnd - 1, lifting_factor(0));
    add_to_low(1, kEnd - 1, lifting_factor(1));
    add_to_high(1, kEnd - 2, lifting_factor(2));
    add_to_low(2, kEnd - 2, lifting_factor(3));
  }
  for (i32 k = 0; k < kLiftedPairs; ++k) put(k, low[k + 2], high[k + 2]);
}

// Returns the place of sample i of a mirrored signal of n samples, if i is at most four beyond an end of a signal that
// is longer, which saves a division; else some place.
QPT_INLINE i32 mirrored_once(i32 i, i32 n) {
  if (n <= 4) return reflect101(i, n);
  const i32 right = i < 0 ? -i : i;
  return maximum(minimum(right, 2 * (n - 1) - right), 0);
}

// Does what transform_lines does with the `count` lines of a strip, first into `strip`, then back: line l is at from +
// l line_step.
template <bool kInverse, class Team>
QPT_FN void transform_strip(const Team& team, float* from, i32 count, i32 line_step, i32 n, i32 sample_step,
                            float* strip) {
  const i32 lows = (n + 1) / 2, highs = n / 2;
  constexpr float low_gain = kInverse ? 1.0f / kLowGain : kLowGain, high_gain = kInverse ? kLowGain : 1.0f / kLowGain;
  each(team, (lows + kLiftedPairs - 1) / kLiftedPairs, kStripLines, [&](i32 run, i32 line) {
    if (line >= count) return;
    const i32 first = kLiftedPairs * run;
    const float* const signal = from + line * line_step;
    float* const to = strip + line;
    const auto read = [=](i32 pair, i32 odd) {
      if constexpr (kInverse)
        return signal[(odd != 0 ? lows + pair : pair) * sample_step] * (odd != 0 ? high_gain : low_gain);
      else
        return signal[(2 * pair + odd) * sample_step];
    };
    const auto put = [=](i32 k, float low, float high) {
      const i32 pair = first + k;
      if (pair < lows) to[(kInverse ? 2 * pair : pair) * kStripLines] = kInverse ? low : low * low_gain;
      if (pair < highs) to[(kInverse ? 2 * pair + 1 : lows + pair) * kStripLines] = kInverse ? high : high * high_gain;
    };
    if (first >= 2 && first + kLiftedPairs + 2 <= highs)
      lift_pairs<kInverse>(first, read, put);
    else  // mirroring keeps even samples even
      lift_pairs<kInverse>(
          first, [=](i32 pair, i32 odd) { return read(mirrored_once(2 * pair + odd, n) / 2, odd); }, put);
  });
  team.sync();  // the strip, written by all, is read by all
  const auto copy = [=](i32 p, i32 line) { from[line * line_step + p * sample_step] = strip[p * kStripLines + line]; };
  // Threads next to each other write samples next to each other.
  if (sample_step == 1)
    each(team, count, n, [=](i32 line, i32 p) { copy(p, line); });
  else
    each(team, n, kStripLines, [=](i32 p, i32 line) {
      if (line < count) copy(p, line);
    });
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
    if constexpr (Team::kSolo) {
      // Place p of the strip holds sample p of the transform, which is sample 2 p or 2 (p - lows) + 1 of the signal.
      each(team, n, count, [=](i32 p, i32 line) {
        const i32 sample = inverse ? p : p < lows ? 2 * p : 2 * (p - lows) + 1;
        const float gain = !inverse ? 1.0f : p < lows ? low_gain : high_gain;
        strip[p * kStripLines + line] = from[sample * sample_step + line * line_step] * gain;
      });
      for (i32 step = 0; step < 4; ++step) {
        const i32 at = inverse ? 3 - step : step;
        const float factor = lifting_factor(at);
        lift(team, strip, n, count, (at & 1) == 0, inverse ? -factor : factor);
      }
      each(team, n, count, [=](i32 p, i32 line) {
        const i32 sample = !inverse ? p : p < lows ? 2 * p : 2 * (p - lows) + 1;
        const float gain = inverse ? 1.0f : p < lows ? low_gain : high_gain;
        from[sample * sample_step + line * line_step] = strip[p * kStripLines + line] * gain;
      });
    } else {
      if (inverse)
        transform_strip<true>(team, from, count, line_step, n, sample_step, strip);
      else
        transform_strip<false>(team, from, count, line_step, n, sample_step, strip);
      // The strip, which all have read, is overwritten.
      if (task + team.blocks() < count_of_planes * strips) team.sync();
    }
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
