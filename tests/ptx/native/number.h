// Number formats: float16, bfloat16 and TF32 beside the host's float and double, and rounding in any direction.
#pragma once

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <limits>
#include <type_traits>

#include "machine.h"

namespace ptx {

enum Rounding : u32 { kNearest, kToZero, kDown, kUp, kAway };  // .rn .rz .rm .rp .rna (ties away from zero)

constexpr u32 kNan32 = 0x7fffffff;  // what float32 arithmetic returns for nan
inline float nan32() {
  float x;
  std::memcpy(&x, &kNan32, 4);
  return x;
}

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
inline T round_integral(T x, u32 mode) {
  switch (mode) {
    case kToZero:
      return std::trunc(x);
    case kDown:
      return std::floor(x);
    case kUp:
      return std::ceil(x);
    case kAway:
      return std::round(x);
    default:
      return std::nearbyint(x);  // the host rounds to nearest even
  }
}

// x rounded to `digits` binary digits; below 2^(lowest - 1) the spacing stays; above `largest`: infinity, or `largest`
// where the direction does not go there. long double holds every float, double and 64-bit integer.
inline long double quantise(long double x, int digits, int lowest, long double largest, u32 mode) {
  if (!std::isfinite(x) || x == 0) return x;
  int e;
  std::frexp(x, &e);
  e = std::max(e, lowest);
  const long double r = std::ldexp(round_integral(std::ldexp(x, digits - e), mode), e - digits);
  if (std::fabs(r) <= largest) return r;
  const bool stays = mode == kToZero || (mode == kDown && x > 0) || (mode == kUp && x < 0);
  return std::copysign(stays ? largest : (long double)INFINITY, x);
}

struct Half {
  u16 bits;
  static constexpr int kDigits = 11, kLowest = -13;
  static constexpr long double kLargest = 65504;
  Half() = default;
  explicit Half(long double x, u32 mode = kNearest) {
    const float v = quantise(x, kDigits, kLowest, kLargest, mode);
    const u32 b = bit_cast<u32>(v), sign = b >> 16 & 0x8000;
    const float a = std::fabs(v);
    if (std::isnan(v))
      bits = 0x7fff;
    else if (std::isinf(v))
      bits = sign | 0x7c00;
    else if (a < 6.103515625e-05f)  // subnormal: a multiple of 2^-24
      bits = sign | u32(a * 16777216.0f);
    else
      bits = sign | (((b >> 23 & 255) - 112) << 10) | (b >> 13 & 1023);
  }
  operator float() const {
    const u32 sign = u32(bits & 0x8000) << 16, e = bits >> 10 & 31, f = bits & 1023;
    if (e == 31) return bit_cast<float>(sign | 0x7f800000 | f << 13);
    if (e == 0) return (sign ? -1.0f : 1.0f) * float(f) * 5.9604644775390625e-08f;
    return bit_cast<float>(sign | (e + 112) << 23 | f << 13);
  }
};

struct BFloat {
  u16 bits;
  static constexpr int kDigits = 8, kLowest = -125;
  static constexpr long double kLargest = 0x1.FEp127L;
  BFloat() = default;
  explicit BFloat(long double x, u32 mode = kNearest) {
    const float v = quantise(x, kDigits, kLowest, kLargest, mode);
    bits = std::isnan(v) ? 0x7fff : bit_cast<u32>(v) >> 16;
  }
  operator float() const { return bit_cast<float>(u32(bits) << 16); }
};

constexpr long double kLargest32 = 0x1.FFFFFEp127L, kLargest64 = 0x1.FFFFFFFFFFFFFp1023L;
inline float to_float(long double x, u32 mode) {
  return std::isnan(x) ? nan32() : float(quantise(x, 24, -125, kLargest32, mode));
}
inline double to_double(long double x, u32 mode) {
  return quantise(x, 53, -1021, kLargest64, mode);
}
inline float to_tf32(float x, u32 mode) {
  return std::isnan(x) ? nan32() : float(quantise(x, 11, -125, kLargest32, mode));
}

inline float flush(float x) {
  return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x;
}

// a * b + c rounded to odd in double, for a * b exact: a later rounding to at most 50 digits is then the only one.
inline double fma_to_odd(float a, float b, float c) {
  const double p = double(a) * double(b), s = p + double(c);
  if (!std::isfinite(s)) return s;
  const double back = s - p, error = (p - (s - back)) + (double(c) - back);
  u64 bits = bit_cast<u64>(s);
  if (error != 0 && !(bits & 1)) bits += (error > 0) == (s > 0) ? 1 : -1;
  return bit_cast<double>(bits);
}

}  // namespace ptx
