// The inner loop of correlation for a team of threads: a thread computes several rows of a channel's samples in several
// pixels next to each other. A sample moves on from pixel to pixel, so a step along the kernel loads one sample, and
// one vector of weights. Used by filter.h, which says in what order sums are formed.
#pragma once
#include "op.h"

namespace qpt {

// The outputs of one thread: rows and pixels with a kernel of several rows, pixels with a kernel along a row. More of
// the latter took registers that glass_shuffle needs for what it keeps through a blur.
constexpr i32 kRunRows = 2, kRunPixels = 14, kLinePixels = 6;

// The weights of a kernel's column in rows j, j - 1, ... of the kernel, which meet one row of the image for kRows rows
// of output. A GPU loads them at once.
template <i32 kRows>
struct alignas(4 * kRows) Weights {
  float of_row[kRows];
};

// A square kernel for runs: what row j of the image has to do with kRunRows rows of output, the first of which it meets
// with row j of the kernel.
struct RunKernel {
  const Weights<kRunRows>* weight;  // [taps + kRunRows - 1, taps], 0 for rows that the kernel has not
  const i32 *first, *last;          // [taps + kRunRows - 1] the columns that have a weight other than 0
  i32 taps;
};

// Returns the number of tasks in a row of samples, `kChannels` per pixel, each of kPixels outputs of one channel; and
// the first sample of a task.
template <i32 kChannels, i32 kPixels>
QPT_INLINE i32 runs_in(i32 samples) {
  return (samples + kChannels * kPixels - 1) / (kChannels * kPixels) * kChannels;
}
template <i32 kChannels, i32 kPixels>
QPT_INLINE i32 start_of_run(i32 task) {
  return task / kChannels * (kChannels * kPixels) + task % kChannels;
}

// Computes kRows rows of kPixels outputs, kStep samples from each other, as the sum over `rows` rows. row_of(j) is
// the source's row j, from the sample that meets column 0 of the kernel for the first output on; it may be any row if
// the rows are `stride` apart from `inside` on, else inside is null. weights: those of the columns of row 0, and `taps`
// further on those of the next row; those in span_of(j) are used. put(r, k, sum) takes a sum. Samples beyond the end of
// a row may be read.
template <i32 kRows, i32 kPixels, i32 kStep, class RowOf, class SpanOf, class Put>
QPT_INLINE void correlate_run(i32 rows, const float* inside, i32 stride, RowOf row_of, const Weights<kRows>* weights,
                              i32 taps, SpanOf span_of, Put put) {
  float sum[kRows][kPixels];
  for (i32 r = 0; r < kRows; ++r)
    for (i32 k = 0; k < kPixels; ++k) sum[r][k] = 0.0f;
  const float* row = inside;
  QPT_UNROLL(1)
  for (i32 j = 0; j < rows; ++j) {
    if (inside == nullptr) row = row_of(j);
    const Span span = span_of(j);
    const float* sample = row + kStep * span.first;
    const Weights<kRows>* weight = weights + span.first;
    weights += taps;
    if (inside != nullptr) row += stride;
    float x[kPixels];
    for (i32 k = 1; k < kPixels; ++k) x[k] = sample[kStep * (k - 1)];
    QPT_UNROLL(4)  // x moves through registers
    for (i32 left = span.last - span.first; left > 0; --left, sample += kStep, ++weight) {
      for (i32 k = 1; k < kPixels; ++k) x[k - 1] = x[k];
      x[kPixels - 1] = sample[kStep * (kPixels - 1)];
      const Weights<kRows> w = *weight;
      for (i32 r = 0; r < kRows; ++r)
        for (i32 k = 0; k < kPixels; ++k) sum[r][k] = fma(w.of_row[r], x[k], sum[r][k]);
    }
  }
  for (i32 r = 0; r < kRows; ++r)
    for (i32 k = 0; k < kPixels; ++k) put(r, k, sum[r][k]);
}

}  // namespace qpt
