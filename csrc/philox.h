// Philox 4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC
// 2011), and normal variates from it. A draw is a pure function of (seed, slot, op, element), so no result depends on
// the order or the number of threads. Used by every op that draws; exposed to Python, where tests compare it with the
// published known answers.
#pragma once
#include "scalar_math.h"

namespace qpt {

struct Philox4 {
  u32 x, y, z, w;
};

// Returns the four random words of a counter under a two-word key.
QPT_INLINE Philox4 philox4x32_10(Philox4 counter, u32 key0, u32 key1) {
  QPT_UNROLL(10)
  for (i32 round = 0; round < 10; ++round) {
    const u64 product0 = static_cast<u64>(0xD2511F53u) * counter.x;
    const u64 product1 = static_cast<u64>(0xCD9E8D57u) * counter.z;
    counter = {static_cast<u32>(product1 >> 32) ^ counter.y ^ key0, static_cast<u32>(product1),
               static_cast<u32>(product0 >> 32) ^ counter.w ^ key1, static_cast<u32>(product0)};
    key0 += 0x9E3779B9u;  // golden ratio
    key1 += 0xBB67AE85u;  // sqrt(3) - 1
  }
  return counter;
}

struct Normal2 {
  float first, second;
};

// Turns two words into two N(0, 1) variates by Box and Muller's method. It uses 24 bits of each, so |n| <= sqrt(48 ln
// 2) = 5.77.
QPT_INLINE Normal2 normal_pair(u32 radius_word, u32 angle_word) {
  const float u = static_cast<float>(static_cast<i32>((radius_word >> 8) + 1u)) * 0x1p-24f;  // (0, 1]
  const float radius = square_root(-2.0f * natural_log(u));
  const SinCos angle = sin_cos_turns(static_cast<float>(static_cast<i32>(angle_word >> 8)) * 0x1p-24f);
  return {radius * angle.cos, radius * angle.sin};
}

}  // namespace qpt
