// Noise (texture family): Gaussian per sample and per pixel. A draw depends on (seed, slot, op tag, element) only.
// 256 consecutive elements share 64 Philox counters: element e is word (e / 64) mod 4 of counter 64 (e / 256) + e mod
// 64, which keeps neighbours in neighbouring lanes and a crop's draws local. Listed in table.h; definitions in
// qpt/degradations.py.
#pragma once
#include "../philox.h"
#include "op.h"

namespace qpt {

// Third counter word, so that different ops in the same slot draw differently.
constexpr u32 kTagNoise = 4;
constexpr u32 kTagNoiseGrey = 5;

constexpr i32 kNoiseLanes = 64;                  // Philox counters of a block
constexpr i32 kNoiseElements = 4 * kNoiseLanes;  // elements of a block
constexpr i32 kNoiseBlocks = 16;                 // blocks between barriers: 16 KiB of scratch

struct Normal4 {
  float n0, n1, n2, n3;
};

// Standard normals of elements 256 block + lane + {0, 64, 128, 192}.
QPT_INLINE Normal4 normals(OpArgs a, u32 tag, i32 block, i32 lane) {
  const Philox4 words = philox4x32_10({static_cast<u32>(kNoiseLanes * block + lane), a.slot, tag, 0u},
                                      static_cast<u32>(a.seed), static_cast<u32>(a.seed >> 32));
  const Normal2 low = normal_pair(words.x, words.y), high = normal_pair(words.z, words.w);
  return {low.first, low.second, high.first, high.second};
}

// out[e] = standard normal of element e; out has room for a multiple of 256 elements.
template <class Team>
QPT_FN void fill_normals(const Team& team, OpArgs a, u32 tag, i32 first_block, i32 blocks, float* out) {
  each(team, blocks, kNoiseLanes, [&](i32 block, i32 lane) {
    const Normal4 n = normals(a, tag, first_block + block, lane);
    float* const at = out + kNoiseElements * block + lane;
    at[0] = n.n0;
    at[kNoiseLanes] = n.n1;
    at[2 * kNoiseLanes] = n.n2;
    at[3 * kNoiseLanes] = n.n3;
  });
}

// x + std * n per sample. p0 = std on the 0-255 scale.
template <class Team>
QPT_FN void gaussian_noise(Team& team, OpArgs a) {
  const float std = parameter(a.params[0], 0.0f, 255.0f);
  const i32 samples = a.h * a.w * 3, blocks = (samples + kNoiseElements - 1) / kNoiseElements;
  float* normal = Scratch{static_cast<u8*>(a.scratch)}.take<float>(kNoiseElements * kNoiseBlocks);
  for (i32 block = 0; block < blocks; block += kNoiseBlocks) {
    fill_normals(team, a, kTagNoise, block, minimum(kNoiseBlocks, blocks - block), normal);
    team.sync();  // normals, written by all, are read by all
    const u8* src = a.src + kNoiseElements * block;
    u8* dst = a.dst + kNoiseElements * block;
    each(team, minimum(kNoiseElements * kNoiseBlocks, samples - kNoiseElements * block),
         [&](i32 i) { dst[i] = to_u8(static_cast<float>(src[i]) + std * normal[i]); });
    team.sync();  // all have read the normals that the next blocks overwrite
  }
}

// x + std * n with one n per pixel for the three channels. p0 = std on the 0-255 scale.
template <class Team>
QPT_FN void gaussian_noise_grey(Team& team, OpArgs a) {
  const float std = parameter(a.params[0], 0.0f, 255.0f);
  const i32 pixels = a.h * a.w, blocks = (pixels + kNoiseElements - 1) / kNoiseElements;
  float* normal = Scratch{static_cast<u8*>(a.scratch)}.take<float>(kNoiseElements * kNoiseBlocks);
  for (i32 block = 0; block < blocks; block += kNoiseBlocks) {
    fill_normals(team, a, kTagNoiseGrey, block, minimum(kNoiseBlocks, blocks - block), normal);
    team.sync();  // normals, written by all, are read by all
    const u8* src = a.src + 3 * kNoiseElements * block;
    u8* dst = a.dst + 3 * kNoiseElements * block;
    each(team, minimum(kNoiseElements * kNoiseBlocks, pixels - kNoiseElements * block), [&](i32 p) {
      const float noise = std * normal[p];
      dst[3 * p] = to_u8(static_cast<float>(src[3 * p]) + noise);
      dst[3 * p + 1] = to_u8(static_cast<float>(src[3 * p + 1]) + noise);
      dst[3 * p + 2] = to_u8(static_cast<float>(src[3 * p + 2]) + noise);
    });
    team.sync();  // all have read the normals that the next blocks overwrite
  }
}

}  // namespace qpt
