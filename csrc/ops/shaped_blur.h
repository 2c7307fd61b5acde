// The other kernels of Real-ESRGAN (texture family): generalised Gaussian, plateau, and the circular low-pass filter,
// which causes ringing. The first two are 21 x 21, the largest of that paper's sizes. Listed in table.h; parameters in
// qpt/degradations/rows/texture.py.
#pragma once
#include "blur.h"

namespace qpt {

constexpr i32 kShapedRadius = 10;

// The distance from the centre in sigmas along two axes, of which the first is turned by p2 = angle_deg
// counter-clockwise as seen.
struct ShapedKernel {
  float sigma_x, sigma_y, beta;
  SinCos angle;

  QPT_INLINE explicit ShapedKernel(const float* params)
      : sigma_x(parameter(params[0], 0.05f, 8.0f)),
        sigma_y(parameter(params[1], 0.05f, 8.0f)),
        beta(parameter(params[3], 0.1f, 8.0f)),
        angle(sin_cos_degrees(parameter(params[2], -36000.0f, 36000.0f))) {}

  // Returns beta ln(distance^2) of (dx, dy). The centre has -80: e^-80 is 0 beside the other terms.
  QPT_INLINE float log_power(i32 dy, i32 dx) const {
    const float x = static_cast<float>(dx), y = static_cast<float>(dy);
    const float u = (x * angle.cos - y * angle.sin) / sigma_x;  // image y points down
    const float v = (x * angle.sin + y * angle.cos) / sigma_y;
    const float square = u * u + v * v;
    return dx == 0 && dy == 0 ? -80.0f : beta * natural_log(maximum(square, 1e-30f));
  }
};

// Blurs with weights exp(-distance^(2 beta) / 2): beta = 1 is the Gaussian, a smaller beta gives a sharper peak and
// longer tails, a larger one a flat top. p0 = sigma_x_px, p1 = sigma_y_px, p2 = angle_deg, p3 = beta. Weights below
// 1e-6 of the peak are set to 0, as in gaussian_blur_aniso.
template <class Team>
QPT_FN void generalised_blur(Team& team, OpArgs a) {
  const ShapedKernel shape(a.params);
  Scratch scratch{static_cast<u8*>(a.scratch)};
  const auto kernel = build_kernel(team, kShapedRadius, scratch, [&](i32 dy, i32 dx) {
    const float t = shape.log_power(dy, dx), small = exponential(t < 0.0f ? t : -t);
    const float q = 0.5f * (t < 0.0f ? small : 1.0f / maximum(small, 1e-30f));
    return q < 13.8f ? exponential(-q) : 0.0f;
  });
  correlate_2d(team, a, kernel, kShapedRadius, scratch);
}

// Blurs with weights 1 / (1 + distance^(2 beta)): a flat top, and tails that fall like a power. The parameters are
// those of generalised_blur.
template <class Team>
QPT_FN void plateau_blur(Team& team, OpArgs a) {
  const ShapedKernel shape(a.params);
  Scratch scratch{static_cast<u8*>(a.scratch)};
  const auto kernel = build_kernel(team, kShapedRadius, scratch, [&](i32 dy, i32 dx) {
    const float t = shape.log_power(dy, dx), small = exponential(t < 0.0f ? t : -t);
    return (t < 0.0f ? 1.0f : small) / (1.0f + small);
  });
  correlate_2d(team, a, kernel, kShapedRadius, scratch);
}

// Returns J1(x) / x for x >= 0, the Bessel function of the first kind and order 1 over its argument: Abramowitz and
// Stegun 9.4.4 and 9.4.6, errors below 1e-7.
QPT_INLINE float bessel_j1_over(float x) {
  if (x <= 3.0f) {
    const float s = x * x / 9.0f;
    float p = 0.00001109f;
    p = fma(p, s, -0.00031761f);
    p = fma(p, s, 0.00443319f);
    p = fma(p, s, -0.03954289f);
    p = fma(p, s, 0.21093573f);
    p = fma(p, s, -0.56249985f);
    return fma(p, s, 0.5f);
  }
  const float s = 3.0f / x;
  float amplitude = -0.00020033f;
  amplitude = fma(amplitude, s, 0.00113653f);
  amplitude = fma(amplitude, s, -0.00249511f);
  amplitude = fma(amplitude, s, 0.00017105f);
  amplitude = fma(amplitude, s, 0.01659667f);
  amplitude = fma(amplitude, s, 0.00000156f);
  amplitude = fma(amplitude, s, 0.79788456f);
  float phase = -0.00029166f;
  phase = fma(phase, s, 0.00079824f);
  phase = fma(phase, s, 0.00074348f);
  phase = fma(phase, s, -0.00637879f);
  phase = fma(phase, s, 0.00005650f);
  phase = fma(phase, s, 0.12499612f);
  phase = fma(phase, s, -2.35619449f);
  return amplitude * sin_cos_turns((x + phase) * 0.159154943f).cos / (x * square_root(x));
}

// Filters with the circular low-pass of cutoff c = p0 radians per pixel, truncated at p1 = radius_px: weights
// c^2 J1(c r) / (2 pi c r), divided by their sum.
template <class Team>
QPT_FN void sinc_filter(Team& team, OpArgs a) {
  const float cutoff = parameter(a.params[0], 0.1f, 3.14159265f);
  const i32 radius = static_cast<i32>(parameter(a.params[1], 0.0f, static_cast<float>(kMaxRadius)) + 0.5f);
  Scratch scratch{static_cast<u8*>(a.scratch)};
  const auto kernel = build_kernel(team, radius, scratch, [&](i32 dy, i32 dx) {
    return bessel_j1_over(cutoff * square_root(static_cast<float>(dx * dx + dy * dy)));
  });
  correlate_2d(team, a, kernel, radius, scratch);
}

}  // namespace qpt
