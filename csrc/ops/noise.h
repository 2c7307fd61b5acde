// Noise (texture family): Gaussian per sample and per pixel. A draw depends on (seed, slot, op tag, element) only.
// 256 consecutive elements share 64 Philox counters: element e is word
// (e / 64) mod 4 of counter 64 (e / 256) + e mod 64, which keeps neighbours in neighbouring lanes and a crop's draws
// local. Listed in table.h; definitions in qpt/degradations.py.
#pragma once
#include "../philox.h"
#include "op.h"

namespace qpt {

// Third counter word, so that different ops in the same slot draw differently.
constexpr u32 kTagNoise = 4;
constexpr u32 kTagNoiseGrey = 5;

constexpr i32 kNoiseLanes = 64;                  // Philox counters of a block
constexpr i32 kNoiseElements = 4 * kNoiseLanes;  // elements of a block
constexpr i32 kNoiseBlocks = 12;  // blocks between barriers: 12 KiB of scratch, whole pixels of three elements

QPT_INLINE i32 noise_blocks(i32 elements) {
  return (elements + kNoiseElements - 1) / kNoiseElements;
}

// Random words of elements 256 block + lane + {0, 64, 128, 192}.
QPT_INLINE Philox4 noise_words(OpArgs a, u32 tag, i32 block, i32 lane) {
  return philox4x32_10({static_cast<u32>(kNoiseLanes * block + lane), a.slot, tag, 0u}, static_cast<u32>(a.seed),
                       static_cast<u32>(a.seed >> 32));
}

// out[e] = standard normal of element 256 first_block + e; out has room for a multiple of 256 elements.
template <class Team>
QPT_FN void fill_normals(const Team& team, OpArgs a, u32 tag, i32 first_block, i32 blocks, float* out) {
  each(team, blocks, kNoiseLanes, [&](i32 block, i32 lane) {
    const Philox4 words = noise_words(a, tag, first_block + block, lane);
    const Normal2 low = normal_pair(words.x, words.y), high = normal_pair(words.z, words.w);
    float* const at = out + kNoiseElements * block + lane;
    at[0] = low.first;
    at[kNoiseLanes] = low.second;
    at[2 * kNoiseLanes] = high.first;
    at[3 * kNoiseLanes] = high.second;
  });
}

// body(first, count, normal) for runs of elements, as many as fit in scratch: normal[i] is that of element first + i.
// A run starts at a multiple of 3, so the elements of a pixel are never parted.
template <class Team, class Body>
QPT_FN void with_normals(const Team& team, OpArgs a, u32 tag, i32 elements, Body body) {
  static_assert(kNoiseBlocks % 3 == 0);
  const i32 blocks = noise_blocks(elements);
  float* normal = Scratch{static_cast<u8*>(a.scratch)}.take<float>(kNoiseElements * kNoiseBlocks);
  for (i32 block = 0; block < blocks; block += kNoiseBlocks) {
    fill_normals(team, a, tag, block, minimum(kNoiseBlocks, blocks - block), normal);
    team.sync();  // normals, written by all, are read by all
    const i32 first = kNoiseElements * block;
    body(first, minimum(kNoiseElements * kNoiseBlocks, elements - first), static_cast<const float*>(normal));
    team.sync();  // all have read the normals that the next blocks overwrite
  }
}

// x + std * n per sample. p0 = std on the 0-255 scale.
template <class Team>
QPT_FN void gaussian_noise(Team& team, OpArgs a) {
  const float std = parameter(a.params[0], 0.0f, 255.0f);
  with_normals(team, a, kTagNoise, a.h * a.w * 3, [&](i32 first, i32 count, const float* normal) {
    const u8* src = a.src + first;
    u8* dst = a.dst + first;
    each(team, count, [&](i32 i) { dst[i] = to_u8(static_cast<float>(src[i]) + std * normal[i]); });
  });
}

// x + std * n with one n per pixel for the three channels. p0 = std on the 0-255 scale.
template <class Team>
QPT_FN void gaussian_noise_grey(Team& team, OpArgs a) {
  const float std = parameter(a.params[0], 0.0f, 255.0f);
  with_normals(team, a, kTagNoiseGrey, a.h * a.w, [&](i32 first, i32 count, const float* normal) {
    const u8* src = a.src + static_cast<i64>(3) * first;
    u8* dst = a.dst + static_cast<i64>(3) * first;
    each(team, count, [&](i32 p) {
      const float noise = std * normal[p];
      dst[3 * p] = to_u8(static_cast<float>(src[3 * p]) + noise);
      dst[3 * p + 1] = to_u8(static_cast<float>(src[3 * p + 1]) + noise);
      dst[3 * p + 2] = to_u8(static_cast<float>(src[3 * p + 2]) + noise);
    });
  });
}

QPT_FN i64 noise_bytes(i32, i32) {
  return taken_bytes<float>(kNoiseElements * kNoiseBlocks);
}

}  // namespace qpt
