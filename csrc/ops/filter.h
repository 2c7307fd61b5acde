// Correlation of an image with a small kernel, on which all blurs are built. Borders are reflect-101
// (cv2.BORDER_REFLECT_101). The output is computed in bands of kBand rows from a ring buffer of float rows: every row
// enters the ring once, in order, and row y is in slot y mod the number of slots. Sums run over the kernel in raster
// order with one fma per tap, whichever member computes them. On x86 a team of one uses the rows of cpu/simd.h, which
// give the same bytes. Used by blur.h; box.h and bilateral.h use reflect101.
#pragma once
#include "op.h"

namespace qpt {

constexpr i32 kMaxRadius = 24;  // of any kernel; sigma <= 8 px
constexpr i32 kMaxTaps = 2 * kMaxRadius + 1;
constexpr i32 kMaxLineRadius = 40;  // of a kernel along rows, then along columns; sigma <= 20 px, cut off at 2 sigma
constexpr i32 kMaxLineTaps = 2 * kMaxLineRadius + 1;
constexpr i32 kBand = 4;  // output rows between barriers

// Maps position i to [0, n) by mirroring about the centres of the first and last element, as often as needed.
QPT_INLINE i32 reflect101(i32 i, i32 n) {
  if (n == 1) return 0;
  const i32 period = 2 * (n - 1);
  i = (i < 0 ? -i : i) % period;
  return i < n ? i : period - i;
}

// Does the same for a window of n elements that starts at `origin` in a side of `full` elements. A position that the
// window does not hold becomes its last element; the results that depend on it are within the halo and do not count.
QPT_INLINE i32 reflect101(i32 i, i32 n, i32 origin, i32 full) {
  return clamp(reflect101(i + origin, full) - origin, 0, n - 1);
}

struct Kernel {
  const float* weight;  // [rows, columns]
  const i32* first;     // [rows] first and last column with a weight other than 0; first > last if there is none
  const i32* last;      // [rows]
  i32 rows, columns;
  i32 step;  // samples from one column to the next: the channels of a pixel
};

QPT_INLINE void store(float* out, float value) {
  *out = value;
}
QPT_INLINE void store(u8* out, float value) {
  *out = to_u8(value);
}

// Returns sample i of an output row, the sum of weight[dy, dx] * base[row_at[dy] + step dx + i].
QPT_INLINE float correlate_sample(Kernel kernel, const float* base, const i32* row_at, i32 i) {
  float sum = 0.0f;
  for (i32 dy = 0; dy < kernel.rows; ++dy) {
    const float* weight = kernel.weight + dy * kernel.columns;
    const float* row = base + row_at[dy] + i;
    const i32 last = kernel.last[dy];
    for (i32 dx = kernel.first[dy]; dx <= last; ++dx) sum = fma(weight[dx], row[kernel.step * dx], sum);
  }
  return sum;
}

// Writes out[r, i] for `rows` rows of `samples` samples; row r reads the rows at row_at[r * kernel.rows ...]. Out is
// float or u8.
template <class Team, class Out>
QPT_FN void correlate_rows(const Team& team, Kernel kernel, const float* base, const i32* row_at, i32 rows, i32 samples,
                           Out* out, i64 out_stride) {
#if QPT_SIMD_ROWS
  if constexpr (Team::kSolo) {
    for (i32 r = 0; r < rows; ++r) {
      const i32* const at = row_at + r * kernel.rows;
      Out* const row = out + r * out_stride;
      const i32 done = simd::correlate_row(kernel, base, at, samples, row);
      for (i32 i = done; i < samples; ++i) store(row + i, correlate_sample(kernel, base, at, i));
    }
    return;
  }
#endif
  each(team, rows, samples, [&](i32 r, i32 i) {
    store(out + r * out_stride + i, correlate_sample(kernel, base, row_at + r * kernel.rows, i));
  });
}

// Reads an image of `kChannels` bytes per pixel: sample i of row y as a float.
template <i32 kChannels>
struct Samples {
  static constexpr i32 channels = kChannels;
  const u8* src;  // [h, w, kChannels]
  i32 per_row;
  QPT_INLINE explicit Samples(OpArgs a) : src(a.src), per_row(kChannels * a.w) {}
  QPT_INLINE float operator()(i32 y, i32 i) const { return src[static_cast<i64>(y) * per_row + i]; }
};

// Writes rows [y, y + rows) of `from` as floats with `radius` pixels of border on each side; row y goes to slot
// (y mod slots) of out. from(y, i) is sample i of row y, and From::channels is the number of samples per pixel.
template <class Team, class From>
QPT_FN void load_padded(const Team& team, OpArgs a, From from, i32 y, i32 rows, i32 radius, i32 slots, float* out) {
  constexpr i32 channels = From::channels;
  const i32 samples = channels * a.w, border = channels * radius, stride = samples + 2 * border;
  each(team, rows, samples,
       [&](i32 r, i32 i) { out[static_cast<i64>((y + r) % slots) * stride + border + i] = from(y + r, i); });
  each(team, rows, 2 * border, [&](i32 r, i32 i) {
    const i32 pixel = i / channels, channel = i - channels * pixel;
    const i32 x = pixel < radius ? pixel - radius : a.w + pixel - radius;
    out[static_cast<i64>((y + r) % slots) * stride + channels * (x + radius) + channel] =
        from(y + r, channels * reflect101(x, a.w, a.left, a.full_w) + channel);
  });
}

// Writes to row_at[r, t] the place in the ring of source row y + r + t - radius.
template <class Team>
QPT_FN void list_rows(const Team& team, OpArgs a, i32 y, i32 rows, i32 radius, i32 slots, i32 stride, i32* row_at) {
  const i32 taps = 2 * radius + 1;
  each(team, rows, taps, [&](i32 r, i32 t) {
    const i32 row = minimum(y + r, a.h - 1) + t - radius;
    row_at[r * taps + t] = reflect101(row, a.h, a.top, a.full_h) % slots * stride;
  });
}

// Returns the number of rows that the ring must hold. The rows that a band at y reads, mirrored ones included, lie
// between y - radius and y + kBand - 1 + radius; a ring for fewer rows holds the whole source.
QPT_INLINE i32 ring_rows(i32 h, i32 radius) {
  return minimum(h, kBand + 2 * radius);
}

// Correlates src with a (2 radius + 1)^2 kernel; writes dst.
template <class Team>
QPT_FN void correlate_2d(const Team& team, OpArgs a, Kernel kernel, i32 radius, Scratch scratch) {
  const i32 samples = 3 * a.w, stride = samples + 6 * radius, slots = ring_rows(a.h, radius);
  i32* row_at = scratch.take<i32>(kBand * kMaxTaps);
  float* ring = scratch.take<float>(static_cast<i64>(slots) * stride);
  i32 loaded = 0;
  for (i32 y = 0; y < a.h; y += kBand) {
    const i32 rows = minimum(kBand, a.h - y);
    const i32 needed = minimum(y + kBand + radius, a.h);
    load_padded(team, a, Samples<3>(a), loaded, needed - loaded, radius, slots, ring);
    loaded = needed;
    list_rows(team, a, y, rows, radius, slots, stride, row_at);
    team.sync();  // ring rows and row_at, written by all, are read by all
    correlate_rows(team, kernel, ring, row_at, rows, samples, a.dst + static_cast<i64>(y) * samples,
                   static_cast<i64>(samples));
    team.sync();  // all have read this band's ring rows and row_at, which the next band overwrites
  }
}

// Correlates `from`, which load_padded reads, with one kernel of 2 radius + 1 taps along rows, then along columns, with
// floats between. Row y of the result goes to out + (y / kBand) * band_step + (y % kBand) * samples, as float or u8: a
// band_step of samples kBand stores the whole image, 0 a single band. finish(y, rows) is called after every band, whose
// samples all members may then read. taps: 2 radius + 1 weights. zeros: as many i32 zeros, the spans of a one-column
// kernel. last: the number 2 radius, the span of a one-row kernel.
template <class Team, class From, class Out, class Finish>
QPT_FN void correlate_separable(const Team& team, OpArgs a, From from, const float* taps, const i32* zeros,
                                const i32* last, i32 radius, Scratch scratch, Out* out, i64 band_step, Finish finish) {
  constexpr i32 channels = From::channels;
  const i32 samples = channels * a.w, stride = samples + 2 * channels * radius, slots = ring_rows(a.h, radius);
  const Kernel along_row{taps, zeros, last, 1, 2 * radius + 1, channels};
  const Kernel along_column{taps, zeros, zeros, 2 * radius + 1, 1, channels};
  i32* row_at = scratch.take<i32>(kBand * kMaxLineTaps);
  i32* padded_at = scratch.take<i32>(kBand);
  float* ring = scratch.take<float>(static_cast<i64>(slots) * samples);
  float* padded = scratch.take<float>(static_cast<i64>(kBand) * stride);
  each(team, kBand, [&](i32 r) { padded_at[r] = r * stride; });
  i32 loaded = 0;
  for (i32 y = 0; y < a.h; y += kBand) {
    const i32 rows = minimum(kBand, a.h - y);
    const i32 needed = minimum(y + kBand + radius, a.h);
    list_rows(team, a, y, rows, radius, slots, samples, row_at);
    while (loaded < needed) {
      const i32 count = minimum(kBand, needed - loaded);
      load_padded(team, a, from, loaded, count, radius, kBand, padded);
      team.sync();  // padded rows, written by all, are read by all
      // 1. Along rows, into the ring. `loaded` is a multiple of kBand except on the last, shorter band.
      for (i32 r = 0; r < count; ++r)
        correlate_rows(team, along_row, padded, padded_at + (loaded + r) % kBand, 1, samples,
                       ring + static_cast<i64>((loaded + r) % slots) * samples, static_cast<i64>(0));
      loaded += count;
      if (loaded < needed) team.sync();  // all have read padded, which the next rows overwrite
    }
    team.sync();  // ring rows and row_at, written by all, are read by all; all have finished the previous band
    // 2. Along columns, to the output.
    correlate_rows(team, along_column, ring, row_at, rows, samples, out + (y / kBand) * band_step,
                   static_cast<i64>(samples));
    team.sync();  // finish reads what all wrote; the next band overwrites ring rows and row_at, which all have read
    finish(y, rows);
  }
}

}  // namespace qpt
