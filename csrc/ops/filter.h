// Correlation of an image with a small kernel, on which all blurs are built. Borders are reflect-101
// (cv2.BORDER_REFLECT_101). Sums run over the kernel in raster order with one fma per tap, whoever computes them.
//
// A team of one computes the output in bands of kBand rows from a ring buffer of float rows, which stays in its cache:
// every row enters the ring once, in order, and row y is in slot y mod the number of slots. On x86 it uses the rows of
// cpu/simd.h, which give the same bytes. A team of threads keeps all rows, so that its blocks share them and no thread
// waits within a pass; a thread computes several outputs from sums in registers (correlate_run). Used by blur.h;
// box.h and bilateral.h use reflect101.
#pragma once
#include "op.h"
#include "runs.h"

namespace qpt {

constexpr i32 kMaxRadius = 24;  // of any kernel; sigma <= 8 px
constexpr i32 kMaxTaps = 2 * kMaxRadius + 1;
constexpr i32 kMaxLineRadius = 40;  // of a kernel along rows, then along columns; sigma <= 20 px, cut off at 2 sigma
constexpr i32 kMaxLineTaps = 2 * kMaxLineRadius + 1;
constexpr i32 kBand = 4;    // output rows of a band of a team of one
constexpr i32 kStrip = 16;  // rows that a block of threads computes between barriers

// The outputs that one thread computes at once with a kernel of one column: rows and columns of a tile.
constexpr i32 kTileRows = 4, kTileColumns = 4;
// The samples from one column of a tile to the next. 32 threads next to each other read samples next to each other, and
// what a thread reads is at constant distances.
constexpr i32 kApart = 32;
constexpr i32 kSlack = kApart * kTileColumns;  // samples after an array that may be read and do not count

// Zeros before and after the weights of a kernel of one column, so that every row of the image adds to all rows of a
// tile. Adding a product with zero changes no sum.
template <class Team>
constexpr i32 kZeroRows = Team::kSolo ? 0 : kTileRows - 1;

// Maps position i to [0, n) by mirroring about the centres of the first and last element, as often as needed.
QPT_INLINE i32 reflect101(i32 i, i32 n) {
  if (n == 1) return 0;
  const i32 period = 2 * (n - 1);
  if (i < 0) i = -i;
  if (i >= period) i %= period;  // seldom: a division takes longer than all the rest
  return i < n ? i : period - i;
}

// Does the same for a window of n elements that starts at `origin` in a side of `full` elements. A position that the
// window does not hold becomes its last element; the results that depend on it are within the halo and do not count.
QPT_INLINE i32 reflect101(i32 i, i32 n, i32 origin, i32 full) {
  return clamp(reflect101(i + origin, full) - origin, 0, n - 1);
}

struct Kernel {
  const float* weight;  // [rows, columns]
  const i32* first;     // [rows] first and last column with a weight other than 0; first > last if there is none.
  const i32* last;
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
    const i32 done = simd::correlate_rows(kernel, base, row_at, rows, samples, out, out_stride);
    each(team, rows, samples - done, [&](i32 r, i32 i) {
      store(out + r * out_stride + done + i, correlate_sample(kernel, base, row_at + r * kernel.rows, done + i));
    });
    return;
  }
#endif
  each(team, rows, samples, [&](i32 r, i32 i) {
    store(out + r * out_stride + i, correlate_sample(kernel, base, row_at + r * kernel.rows, i));
  });
}

// Returns the number of tasks in a row of samples, each of kColumns outputs, and the first sample of a task.
template <i32 kColumns>
QPT_INLINE i32 tasks_of(i32 samples) {
  return (samples + kApart * kColumns - 1) / (kApart * kColumns) * kApart;
}
template <i32 kColumns>
QPT_INLINE i32 first_sample(i32 task) {
  return task / kApart * (kApart * kColumns) + task % kApart;
}

// Computes kRows x kColumns outputs, whose columns are kApart samples from each other, with `taps` weights along y,
// with zeros before and after them. The weights that meet a row slide through registers. row_of(j) is the row of the
// source that meets weight j for the first row of the tile, from the tile's first sample on; it may be any row if the
// rows 0 to taps + kRows - 2 are `stride` apart from `inside` on, else inside is null. put(r, k, sum) takes a sum.
// Samples beyond the end of a row may be read.
template <i32 kRows, i32 kColumns, class RowOf, class Put>
QPT_INLINE void correlate_column_tile(const float* weight, i32 taps, const float* inside, i32 stride, RowOf row_of,
                                      Put put) {
  float sum[kRows][kColumns], w[kRows];
  for (i32 r = 0; r < kRows; ++r) {
    w[r] = 0.0f;
    for (i32 k = 0; k < kColumns; ++k) sum[r][k] = 0.0f;
  }
  const float* row = inside;
  QPT_UNROLL(4)
  for (i32 j = 0; j < taps + kRows - 1; ++j) {
    if (inside == nullptr) row = row_of(j);
    for (i32 r = kRows - 1; r > 0; --r) w[r] = w[r - 1];
    w[0] = weight[j];
    for (i32 k = 0; k < kColumns; ++k) {
      const float x = row[k * kApart];
      for (i32 r = 0; r < kRows; ++r) sum[r][k] = fma(w[r], x, sum[r][k]);
    }
    if (inside != nullptr) row += stride;
  }
  for (i32 r = 0; r < kRows; ++r)
    for (i32 k = 0; k < kColumns; ++k) put(r, k, sum[r][k]);
}

// Returns a row of a source that has all h rows, `stride` apart. A tile may have rows below the image, which are
// computed in vain.
QPT_INLINE const float* source_row(const OpArgs& a, const float* source, i32 stride, i32 radius, i32 y) {
  const i32 row = minimum(y, a.h - 1 + radius);
  const bool inside = row >= 0 && row < a.h;
  return source + static_cast<i64>(inside ? row : reflect101(row, a.h, a.top, a.full_h)) * stride;
}

// Correlates rows [y, y + rows) with 2 radius + 1 weights along y, zeros before and after them; the samples of row y +
// r go to out + r * samples. The source has all h rows, `samples` apart and kSlack samples after the last.
template <class Team, class Out>
QPT_FN void correlate_columns(const Team& team, OpArgs a, const float* weight, i32 radius, const float* source, i32 y,
                              i32 rows, i32 samples, Out* out) {
  const i32 taps = 2 * radius + 1;
  each(team, (rows + kTileRows - 1) / kTileRows, tasks_of<kTileColumns>(samples), [&](i32 group, i32 task) {
    const i32 top = kTileRows * group, first = y + top - radius, i = first_sample<kTileColumns>(task);
    const bool inside = first >= 0 && first + taps + kTileRows - 1 <= a.h;
    correlate_column_tile<kTileRows, kTileColumns>(
        weight, taps, inside ? source + static_cast<i64>(first) * samples + i : nullptr, samples,
        [&](i32 j) { return source_row(a, source, samples, radius, first + j) + i; },
        [&](i32 r, i32 k, float sum) {
          const i32 at = i + k * kApart;
          if (top + r < rows && at < samples) store(out + static_cast<i64>(top + r) * samples + at, sum);
        });
  });
}

// Reads an image of `kChannels` bytes per pixel: sample i of row y as a float, or the samples of a pixel.
template <i32 kChannels>
struct Samples {
  static constexpr i32 channels = kChannels;
  static constexpr bool kByPixel = false;
  const u8* src;  // [h, w, kChannels]
  i32 per_row;
  QPT_INLINE explicit Samples(OpArgs a) : src(a.src), per_row(kChannels * a.w) {}
  QPT_INLINE float operator()(i32 y, i32 i) const { return src[static_cast<i64>(y) * per_row + i]; }
  QPT_INLINE void pixel(i32 y, i32 x, float* out) const {
    const u8* from = src + static_cast<i64>(y) * per_row + kChannels * x;
    for (i32 c = 0; c < kChannels; ++c) out[c] = from[c];
  }
};

// Writes rows [y, y + rows) of `from` as floats with `radius` pixels of border on each side; row y goes to slot
// (y mod slots) of out. from(y, i) is sample i of row y, from.pixel(y, x, out) writes those of a pixel, and
// From::channels is their number. A team of one goes by samples, for vectors, unless From::kByPixel: then those of a
// pixel have computations in common.
template <class Team, class From>
QPT_FN void load_padded(const Team& team, OpArgs a, From from, i32 y, i32 rows, i32 radius, i32 slots, float* out) {
  constexpr i32 channels = From::channels;
  const i32 samples = channels * a.w, border = channels * radius, stride = samples + 2 * border;
  const auto slot_of = [&](i32 row) { return out + static_cast<i64>(row < slots ? row : row % slots) * stride; };
  if constexpr (!Team::kSolo) {
    each(team, rows, a.w + 2 * radius, [&](i32 r, i32 padded) {
      const i32 x = padded - radius, inside = x >= 0 && x < a.w ? x : reflect101(x, a.w, a.left, a.full_w);
      from.pixel(y + r, inside, slot_of(y + r) + channels * padded);
    });
  } else {
    for (i32 r = 0; r < rows; ++r) {
      float* row = slot_of(y + r) + border;  // once for a row, or the compiler makes no vectors of the loop
      if constexpr (From::kByPixel)
        each(team, a.w, [&](i32 x) QPT_BODY { from.pixel(y + r, x, row + channels * x); });
      else
        each(team, samples, [&](i32 i) { row[i] = from(y + r, i); });
    }
    for (i32 r = 0; r < rows; ++r) {
      float* row = slot_of(y + r) + border;
      for (i32 pixel = 0; pixel < 2 * radius; ++pixel) {
        const i32 x = pixel < radius ? pixel - radius : a.w + pixel - radius;
        const i32 inside = reflect101(x, a.w, a.left, a.full_w);
        for (i32 c = 0; c < channels; ++c) row[channels * x + c] = row[channels * inside + c];
      }
    }
  }
}

// Writes to row_at[r, t] the place in the ring of source row y + r + t - radius.
QPT_FN void list_rows(OpArgs a, i32 y, i32 rows, i32 radius, i32 slots, i32 stride, i32* row_at) {
  const i32 taps = 2 * radius + 1;
  i32 row = reflect101(y - radius, a.h, a.top, a.full_h), slot = row % slots;
  for (i32 j = 0; j < taps + rows - 1; ++j) {
    for (i32 r = maximum(j - taps + 1, 0); r <= minimum(j, rows - 1); ++r) row_at[r * taps + j - r] = slot * stride;
    // The next row is a neighbour of this one, or the same.
    const i32 next = reflect101(y + j + 1 - radius, a.h, a.top, a.full_h);
    slot += next - row;
    slot += slot < 0 ? slots : slot >= slots ? -slots : 0;
    row = next;
  }
}

// Returns the number of rows that the ring must hold. The rows that a band at y reads, mirrored ones included, lie
// between y - radius and y + kBand - 1 + radius; a ring for fewer rows holds the whole source.
QPT_INLINE i32 ring_rows(i32 h, i32 radius) {
  return minimum(h, kBand + 2 * radius);
}

// Correlates src with a (2 radius + 1)^2 kernel; writes dst. The kernel is a Kernel for a team of one, else a
// RunKernel.
template <class Team, class KernelOfTeam>
QPT_FN void correlate_2d(const Team& team, OpArgs a, KernelOfTeam kernel, i32 radius, Scratch scratch) {
  const i32 samples = 3 * a.w, stride = samples + 6 * radius, slots = ring_rows(a.h, radius);
  if constexpr (!Team::kSolo) {
    const Span own = rows_of(team, a);
    float* padded = scratch.take<float>(static_cast<i64>(a.h) * stride + kSlack);
    load_padded(team, a, Samples<3>(a), own.first, own.last - own.first, radius, a.h, padded);
    team.sync_team();  // padded rows, written by all, are read by all
    each(team, (own.last - own.first + kRunRows - 1) / kRunRows, runs_in<3, kRunPixels>(samples),
         [&](i32 group, i32 task) {
           const i32 y = own.first + kRunRows * group, i = start_of_run<3, kRunPixels>(task);
           const i32 first = y - radius, rows = kernel.taps + kRunRows - 1;
           const bool inside = first >= 0 && first + rows <= a.h;
           correlate_run<kRunRows, kRunPixels, 3>(
               rows, inside ? padded + static_cast<i64>(first) * stride + i : nullptr, stride,
               [&](i32 j) { return source_row(a, padded, stride, radius, first + j) + i; }, kernel.weight, kernel.taps,
               [&](i32 j) { return Span{kernel.first[j], kernel.last[j] + 1}; },
               [&](i32 r, i32 k, float sum) {
                 const i32 at = i + 3 * k;
                 if (y + r < own.last && at < samples) store(a.dst + static_cast<i64>(y + r) * samples + at, sum);
               });
         });
  } else {
    i32* row_at = scratch.take<i32>(kBand * kMaxTaps);
    float* ring = scratch.take<float>(static_cast<i64>(slots) * stride);
    i32 loaded = 0;
    for (i32 y = 0; y < a.h; y += kBand) {
      const i32 rows = minimum(kBand, a.h - y);
      const i32 needed = minimum(y + kBand + radius, a.h);
      load_padded(team, a, Samples<3>(a), loaded, needed - loaded, radius, slots, ring);
      loaded = needed;
      list_rows(a, y, rows, radius, slots, stride, row_at);
      correlate_rows(team, kernel, ring, row_at, rows, samples, a.dst + static_cast<i64>(y) * samples,
                     static_cast<i64>(samples));
    }
  }
}

// The rows whose results finish() of correlate_separable is given at once.
template <class Team>
constexpr i32 kFinishedRows = Team::kSolo ? kBand : kStrip;

// Correlates rows [y, y + rows) of `from` with 2 radius + 1 weights along x and writes them to the same rows of out,
// [h, samples]. padded: scratch of `rows` padded rows.
template <class Team, class From>
QPT_FN void correlate_lines(const Team& team, OpArgs a, From from, const float* weight, i32 radius, i32 y, i32 rows,
                            float* padded, float* out) {
  constexpr i32 channels = From::channels;
  const i32 samples = channels * a.w, stride = samples + 2 * channels * radius;
  load_padded(team, a, from, y, rows, radius, kStrip, padded);
  team.sync();  // padded rows, written by all, are read by all
  each(team, rows, runs_in<channels, kLinePixels>(samples), [&](i32 r, i32 task) {
    const i32 i = start_of_run<channels, kLinePixels>(task);
    const float* row = padded + static_cast<i64>((y + r) % kStrip) * stride + i;
    correlate_run<1, kLinePixels, channels>(
        1, row, 0, [=](i32) { return row; }, reinterpret_cast<const Weights<1>*>(weight), 0,
        [=](i32) { return Span{0, 2 * radius + 1}; },
        [&](i32, i32 k, float sum) {
          const i32 at = i + channels * k;
          if (at < samples) out[static_cast<i64>(y + r) * samples + at] = sum;
        });
  });
}

// Correlates `from`, which load_padded reads, with one kernel of 2 radius + 1 taps along rows, then along columns, with
// floats between. finish(y, rows) is called for at most kFinishedRows rows at a time, whose results, as float or u8,
// all members may then read: at out + y * samples if `whole`, else at out. taps: 2 radius + 1 weights, kZeroRows zeros
// before and after them. zeros: as many i32 zeros, the spans of a one-column kernel. last: the number 2 radius, the
// span of a one-row kernel.
template <class Team, class From, class Out, class Finish>
QPT_FN void correlate_separable(const Team& team, OpArgs a, From from, const float* taps, const i32* zeros,
                                const i32* last, i32 radius, Scratch scratch, Out* out, bool whole, Finish finish) {
  constexpr i32 channels = From::channels;
  const i32 samples = channels * a.w, stride = samples + 2 * channels * radius, slots = ring_rows(a.h, radius);
  if constexpr (!Team::kSolo) {
    const Span own = rows_of(team, a);
    float* lines = scratch.take<float>(static_cast<i64>(a.h) * samples + kSlack);
    float* padded = scratch.take_own<float>(team, static_cast<i64>(kStrip) * stride + kSlack);
    for (i32 y = own.first; y < own.last; y += kStrip) {
      if (y > own.first) team.sync();  // all have read the padded rows that are overwritten
      correlate_lines(team, a, from, taps, radius, y, minimum(kStrip, own.last - y), padded, lines);
    }
    team.sync_team();  // lines, written by all, are read by all
    for (i32 y = own.first; y < own.last; y += kStrip) {
      const i32 rows = minimum(kStrip, own.last - y);
      if (y > own.first && !whole) team.sync();  // all have read the results that are overwritten
      correlate_columns(team, a, taps, radius, lines, y, rows, samples,
                        whole ? out + static_cast<i64>(y) * samples : out);
      if (!whole) team.sync();  // results, written by all, are read by all
      finish(y, rows);
    }
  } else {
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
      list_rows(a, y, rows, radius, slots, samples, row_at);
      while (loaded < needed) {
        const i32 count = minimum(kBand, needed - loaded);
        load_padded(team, a, from, loaded, count, radius, kBand, padded);
        // 1. Along rows, into the ring. `loaded` is a multiple of kBand except on the last, shorter band.
        for (i32 r = 0; r < count; ++r)
          correlate_rows(team, along_row, padded, padded_at + (loaded + r) % kBand, 1, samples,
                         ring + static_cast<i64>((loaded + r) % slots) * samples, static_cast<i64>(0));
        loaded += count;
      }
      // 2. Along columns, to the output.
      correlate_rows(team, along_column, ring, row_at, rows, samples, whole ? out + static_cast<i64>(y) * samples : out,
                     static_cast<i64>(samples));
      finish(y, rows);
    }
  }
}

}  // namespace qpt
