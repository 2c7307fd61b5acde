// Half-precision numbers one at a time, for any processor. Included by contrastive.cpp, contrastive_forward.cpp
// and contrastive_portable.cpp only; internal to each, because code compiled for a wider instruction set must not be
// linked into theirs.
#pragma once
#include "contrastive.h"

namespace qpt {
namespace contrastive {
namespace {

inline float from_half(u16 half) {
  const u32 sign = static_cast<u32>(half & 0x8000u) << 16, exponent = (half >> 10) & 0x1Fu, fraction = half & 0x3FFu;
  u32 bits = sign;
  if (exponent == 31) {
    bits |= 0x7F800000u | fraction << 13;
  } else if (exponent != 0) {
    bits |= (exponent + 112) << 23 | fraction << 13;
  } else {
    const float value = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // subnormal: fraction * 2^-24, exact
    u32 magnitude;
    __builtin_memcpy(&magnitude, &value, sizeof value);
    bits |= magnitude;
  }
  float out;
  __builtin_memcpy(&out, &bits, sizeof bits);
  return out;
}

// A float16 or bfloat16 as float32; exact.
inline float widen(u16 half, i32 dtype) {
  if (dtype == kFloat16) return from_half(half);
  const u32 bits = static_cast<u32>(half) << 16;
  float out;
  __builtin_memcpy(&out, &bits, sizeof bits);
  return out;
}

inline float element(const Side& side, i64 row, i64 d) {
  if (side.dtype == kFloat32) return static_cast<const float*>(side.data)[row * side.stride + d];
  return widen(static_cast<const u16*>(side.data)[row * side.stride + d], side.dtype);
}

}  // namespace
}  // namespace contrastive
}  // namespace qpt
