// Blurs (texture family): Gaussian, rotated Gaussian, motion, defocus. Each builds its weights, whose sum is 1, in
// scratch and correlates with them (filter.h), as OpenCV's getGaussianKernel and filter2D do with BORDER_REFLECT_101.
// Sources are in qpt/degradations/rows/texture.py. Listed in table.h.
#pragma once
#include "filter.h"

namespace qpt {

// Builds a (2 radius + 1)^2 kernel: the weights weight(dy, dx), dy and dx in [-radius, radius], divided by their sum,
// which must be positive, and the span of columns of every row outside which the weights are 0. Returns a Kernel for a
// team of one, else a RunKernel.
template <class Team, class Weight>
QPT_FN auto build_kernel(const Team& team, i32 radius, Scratch& scratch, Weight weight) {
  const i32 taps = 2 * radius + 1;
  float* weights = scratch.take_own<float>(team, taps * taps);
  float* row_sum = scratch.take_own<float>(team, kMaxTaps);
  i32* first = scratch.take_own<i32>(team, kMaxTaps);
  i32* last = scratch.take_own<i32>(team, kMaxTaps);
  each(team, taps, taps,
       [&](i32 row, i32 column) { weights[row * taps + column] = weight(row - radius, column - radius); });
  team.sync();  // weights, written by all, are read row by row
  each(team, taps, [&](i32 row) {
    float sum = 0.0f;
    i32 from = taps, to = -1;
    for (i32 column = 0; column < taps; ++column) {
      const float w = weights[row * taps + column];
      sum += w;
      if (w != 0.0f) {
        from = minimum(from, column);
        to = column;
      }
    }
    row_sum[row] = sum;
    first[row] = from;
    last[row] = to;
  });
  team.sync();  // row sums, one member each, are read by all
  float total = 0.0f;
  for (i32 row = 0; row < taps; ++row) total += row_sum[row];
  // Not synced: the first barrier of correlate_2d comes before any member reads the kernel.
  if constexpr (Team::kSolo) {
    for (i32 i = 0; i < taps * taps; ++i) weights[i] /= total;
    return Kernel{weights, first, last, taps, taps, 3};
  } else {
    const i32 rows = taps + kRunRows - 1;
    Weights<kRunRows>* of_rows = scratch.take_own<Weights<kRunRows>>(team, rows * taps);
    i32* run_first = scratch.take_own<i32>(team, kMaxTaps + kRunRows - 1);
    i32* run_last = scratch.take_own<i32>(team, kMaxTaps + kRunRows - 1);
    each(team, rows, taps, [&](i32 j, i32 column) {
      for (i32 r = 0; r < kRunRows; ++r) {
        const i32 row = j - r;
        of_rows[j * taps + column].of_row[r] = row >= 0 && row < taps ? weights[row * taps + column] / total : 0.0f;
      }
    });
    each(team, rows, [&](i32 j) {
      i32 from = taps, to = -1;
      for (i32 row = maximum(j - kRunRows + 1, 0); row <= minimum(j, taps - 1); ++row) {
        from = minimum(from, first[row]);
        to = maximum(to, last[row]);
      }
      run_first[j] = from;
      run_last[j] = to;
    });
    return RunKernel{of_rows, run_first, run_last, taps};
  }
}

// Blurs along rows and columns with a kernel of 2 radius + 1 taps: tap(t) for t in [-radius, radius], divided by their
// sum. from, out, whole and finish are those of correlate_separable.
template <class Team, class From, class Tap, class Out, class Finish>
QPT_FN void separable_blur(const Team& team, OpArgs a, From from, i32 radius, Tap tap, Scratch scratch, Out* out,
                           bool whole, Finish finish) {
  constexpr i32 kZeros = kZeroRows<Team>;
  const i32 taps = 2 * radius + 1;
  float* raw = scratch.take_own<float>(team, kMaxLineTaps);
  float* weight = scratch.take_own<float>(team, kMaxLineTaps + 2 * kZeros) + kZeros;
  i32* zeros = scratch.take_own<i32>(team, kMaxLineTaps);
  i32* last = scratch.take_own<i32>(team, 1);
  each(team, kZeros, [&](i32 i) { weight[i - kZeros] = weight[taps + i] = 0.0f; });
  each(team, taps, [&](i32 t) {
    raw[t] = tap(t - radius);
    zeros[t] = 0;
  });
  team.once([&] { last[0] = taps - 1; });
  team.sync();  // raw, zeros and last, written by some, are read by all
  float total = 0.0f;
  for (i32 t = 0; t < taps; ++t) total += raw[t];
  // Not synced: the first barrier of correlate_separable comes before any member reads weight.
  each(team, taps, [&](i32 t) { weight[t] = raw[t] / total; });
  correlate_separable(team, a, from, weight, zeros, last, radius, scratch, out, whole, finish);
}

// Does the same from src to dst, rounded.
template <class Team, class Tap>
QPT_FN void separable_blur(const Team& team, OpArgs a, i32 radius, Tap tap) {
  separable_blur(team, a, Samples<3>(a), radius, tap, Scratch{static_cast<u8*>(a.scratch)}, a.dst, true,
                 [](i32, i32) {});
}

struct GaussianTap {
  float sigma;
  QPT_INLINE float operator()(i32 t) const {
    const float x = static_cast<float>(t) / sigma;
    return exponential(-0.5f * x * x);
  }
};
QPT_INLINE i32 gaussian_radius(float sigma) {
  return minimum(ceil_to_int(3.0f * sigma), kMaxRadius);
}

// Gaussian blur along rows and columns: weights exp(-x^2 / 2 sigma^2), radius ceil(3 sigma). p0 = sigma_px in (0, 8].
template <class Team>
QPT_FN void gaussian_blur(Team& team, OpArgs a) {
  const float sigma = parameter(a.params[0], 0.05f, 8.0f);
  separable_blur(team, a, gaussian_radius(sigma), GaussianTap{sigma});
}

// Gaussian blur of p0 = sigma_x_px along an axis that is turned by p2 = angle_deg counter-clockwise and p1 = sigma_y_px
// across it; radius ceil(3 max sigma). Weights below 1e-6 of the peak are set to 0: together they change a sample by
// less than 0.01 grey level.
template <class Team>
QPT_FN void gaussian_blur_aniso(Team& team, OpArgs a) {
  const float sigma_x = parameter(a.params[0], 0.05f, 8.0f), sigma_y = parameter(a.params[1], 0.05f, 8.0f);
  const SinCos angle = sin_cos_degrees(parameter(a.params[2], -36000.0f, 36000.0f));
  const i32 radius = gaussian_radius(maximum(sigma_x, sigma_y));
  Scratch scratch{static_cast<u8*>(a.scratch)};
  const auto kernel = build_kernel(team, radius, scratch, [&](i32 dy, i32 dx) {
    const float x = static_cast<float>(dx), y = static_cast<float>(dy);
    const float u = (x * angle.cos - y * angle.sin) / sigma_x;  // image y points down
    const float v = (x * angle.sin + y * angle.cos) / sigma_y;
    const float q = 0.5f * (u * u + v * v);
    return q < 13.8f ? exponential(-q) : 0.0f;
  });
  correlate_2d(team, a, kernel, radius, scratch);
}

// The mean along a segment of p0 = length_px centred on the pixel, at p1 = angle_deg counter-clockwise: 2 ceil(length)
// + 1 equally spaced points, both ends included, each distributed bilinearly to its four pixels.
template <class Team>
QPT_FN void motion_blur(Team& team, OpArgs a) {
  const float length = parameter(a.params[0], 0.0f, 2.0f * kMaxRadius);
  const SinCos angle = sin_cos_degrees(parameter(a.params[1], -36000.0f, 36000.0f));
  const i32 radius = ceil_to_int(0.5f * length);
  const i32 half = maximum(ceil_to_int(length), 1);  // points on each side of the middle one
  const float step = 0.5f * length / static_cast<float>(half);
  Scratch scratch{static_cast<u8*>(a.scratch)};
  const auto kernel = build_kernel(team, radius, scratch, [&](i32 dy, i32 dx) {
    float sum = 0.0f;
    for (i32 i = -half; i <= half; ++i) {
      const float s = step * static_cast<float>(i);
      const float x = s * angle.cos - static_cast<float>(dx), y = -s * angle.sin - static_cast<float>(dy);
      const float along = 1.0f - (x < 0.0f ? -x : x), across = 1.0f - (y < 0.0f ? -y : y);
      sum += maximum(along, 0.0f) * maximum(across, 0.0f);
    }
    return sum;
  });
  correlate_2d(team, a, kernel, radius, scratch);
}

// The mean over a disk of p0 = radius_px with an anti-aliased edge: weight clip(radius + 1/2 - distance, 0, 1).
template <class Team>
QPT_FN void defocus_blur(Team& team, OpArgs a) {
  const float disk = parameter(a.params[0], 0.0f, kMaxRadius - 1.0f);
  const i32 radius = ceil_to_int(disk) + 1;
  Scratch scratch{static_cast<u8*>(a.scratch)};
  const auto kernel = build_kernel(team, radius, scratch, [&](i32 dy, i32 dx) {
    const float distance = square_root(static_cast<float>(dx * dx + dy * dy));
    return clamp(disk + 0.5f - distance, 0.0f, 1.0f);
  });
  correlate_2d(team, a, kernel, radius, scratch);
}

// Scratch for the largest kernel: weights and spans; of a team of one the list of rows, the ring buffer, the rows that
// enter it, else all rows and those that enter them.
QPT_FN i64 blur_bytes(i32 h, i32 w, i32 blocks) {
  const i64 padded = 3 * (static_cast<i64>(w) + 2 * kMaxRadius);
  if (blocks != kSoloBlocks)
    return own_bytes<float>(kMaxTaps * kMaxTaps, blocks) + 5 * own_bytes<float>(kMaxTaps + 2 * kTileRows, blocks) +
           own_bytes<Weights<kRunRows>>((kMaxTaps + kRunRows - 1) * kMaxTaps, blocks) +
           taken_bytes<float>(h * padded + kSlack) + own_bytes<float>(kStrip * padded + kSlack, blocks);
  const i64 ring = ring_rows(h, kMaxRadius) * padded;
  return taken_bytes<float>(kMaxTaps * kMaxTaps) + 3 * taken_bytes<float>(kMaxTaps) +
         taken_bytes<i32>(kBand * kMaxLineTaps) + taken_bytes<i32>(kBand) + taken_bytes<float>(ring) +
         taken_bytes<float>(kBand * padded);
}

}  // namespace qpt
