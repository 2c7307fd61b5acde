// Scalar mathematics of the degradation ops, with the same bits on CPU and GPU: only IEEE + - * / sqrt and an explicit
// fma(). exp, log, sin and cos are Taylor series on a reduced range; libm's and the GPU's own differ in the last bit.
// Functions are branch-free, so that loops vectorise. tests/cpp/scalar_math.cpp measures the errors.
#pragma once
#include "team.h"

namespace qpt {

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
QPT_INLINE float fma(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}
QPT_INLINE float square_root(float x) {
  return __fsqrt_rn(x);
}
QPT_INLINE u32 float_bits(float x) {
  return __float_as_uint(x);
}
QPT_INLINE float bits_float(u32 x) {
  return __uint_as_float(x);
}
QPT_INLINE float absolute(float x) {
  return fabsf(x);
}
#else
QPT_INLINE float fma(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
QPT_INLINE float square_root(float x) {
  return __builtin_sqrtf(x);
}
QPT_INLINE u32 float_bits(float x) {
  u32 bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}
QPT_INLINE float bits_float(u32 bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
QPT_INLINE float absolute(float x) {
  return __builtin_fabsf(x);
}
#endif

template <class T>
QPT_INLINE T minimum(T a, T b) {
  return a < b ? a : b;
}
template <class T>
QPT_INLINE T maximum(T a, T b) {
  return a > b ? a : b;
}
template <class T>
QPT_INLINE T clamp(T x, T low, T high) {
  return minimum(maximum(x, low), high);
}

// Returns the nearest integer, halves to even, for |x| < 2^22: adding 1.5 * 2^23 leaves no room for fraction bits.
QPT_INLINE float nearest(float x) {
  return (x + 12582912.0f) - 12582912.0f;
}

// Clamps to [0, 255] and rounds halves to even. After adding 2^23 the low mantissa bits are the integer.
QPT_INLINE u8 to_u8(float x) {
  return static_cast<u8>(float_bits(clamp(x, 0.0f, 255.0f) + 8388608.0f));
}

// Returns the smallest integer >= x, for 0 <= x < 2^31.
QPT_INLINE i32 ceil_to_int(float x) {
  const i32 whole = static_cast<i32>(x);
  return whole + (static_cast<float>(whole) < x ? 1 : 0);
}

// Returns e^x for x <= 0, and 0 below -87: x = n ln 2 + r with |r| <= 0.35, and the Taylor series of e^r to r^8.
QPT_INLINE float exponential(float x) {
  const float bounded = maximum(x, -87.0f);
  const float n = nearest(bounded * 1.44269504f);
  float r = fma(n, -0.693359375f, bounded);  // ln 2 = 0.693359375 - 2.12194440e-4
  r = fma(n, 2.12194440e-4f, r);
  float p = 2.48015873e-5f;
  p = fma(p, r, 1.98412698e-4f);
  p = fma(p, r, 1.38888889e-3f);
  p = fma(p, r, 8.33333333e-3f);
  p = fma(p, r, 4.16666667e-2f);
  p = fma(p, r, 1.66666667e-1f);
  p = fma(p, r, 0.5f);
  p = fma(p, r, 1.0f);
  p = fma(p, r, 1.0f);
  const float power = p * bits_float(static_cast<u32>(static_cast<i32>(n) + 127) << 23);
  return x < -87.0f ? 0.0f : power;
}

// Returns 2^x for -126 < x < 126 with a relative error of 3e-6, for the many weights of a filter: a minimax quartic on
// [-1/2, 1/2], to whose exponent x's integer part is added, which is in the low bits of the sum with 1.5 * 2^23.
QPT_INLINE float quick_power_of_two(float x) {
  const float shifted = x + 12582912.0f;
  const float r = x - (shifted - 12582912.0f);
  float p = 9.5701e-3f;
  p = fma(p, r, 5.591786e-2f);
  p = fma(p, r, 2.4024744e-1f);
  p = fma(p, r, 6.931218e-1f);
  p = fma(p, r, 9.999993e-1f);
  return bits_float(float_bits(p) + (float_bits(shifted) << 23));
}

// Returns ln x for normal x > 0: x = 2^e m with m in [sqrt(1/2), sqrt(2)), and ln m = 2 artanh(s) for s = (m - 1)/(m +
// 1), |s| <= 0.172.
QPT_INLINE float natural_log(float x) {
  const u32 bits = float_bits(x);
  const i32 exponent = static_cast<i32>(bits - 0x3F3504F3u) >> 23;  // arithmetic shift: floor
  const float m = bits_float(bits - (static_cast<u32>(exponent) << 23));
  const float e = static_cast<float>(exponent);
  const float s = (m - 1.0f) / (m + 1.0f);
  const float s2 = s * s;
  float p = 0.222222222f;
  p = fma(p, s2, 0.285714286f);
  p = fma(p, s2, 0.4f);
  p = fma(p, s2, 0.666666667f);
  const float tail = fma(p * s2, s, e * -2.12194440e-4f);
  return fma(e, 0.693359375f, fma(2.0f, s, tail));
}

struct SinCos {
  float sin, cos;
};

// Returns the sine and cosine of an angle in turns, |turns| < 2^20: the quadrant is exact, and the rest is a Taylor
// series on [-pi/4, pi/4].
QPT_INLINE SinCos sin_cos_turns(float turns) {
  const float quarters = turns * 4.0f;
  const float n = nearest(quarters);
  const float x = (quarters - n) * 1.57079633f;
  const float x2 = x * x;
  float s = 2.75573192e-6f;
  s = fma(s, x2, -1.98412698e-4f);
  s = fma(s, x2, 8.33333333e-3f);
  s = fma(s, x2, -1.66666667e-1f);
  s = fma(s * x2, x, x);
  float c = 2.48015873e-5f;
  c = fma(c, x2, -1.38888889e-3f);
  c = fma(c, x2, 4.16666667e-2f);
  c = fma(c, x2, -0.5f);
  c = fma(c, x2, 1.0f);
  const i32 quadrant = static_cast<i32>(n) & 3;
  const float a = (quadrant & 1) ? c : s;
  const float b = (quadrant & 1) ? s : c;
  return {(quadrant & 2) ? -a : a, ((quadrant + 1) & 2) ? -b : b};
}

QPT_INLINE SinCos sin_cos_degrees(float degrees) {
  return sin_cos_turns(degrees / 360.0f);
}

}  // namespace qpt
