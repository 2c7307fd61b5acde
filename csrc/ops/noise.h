// Noise (texture family): Gaussian per sample, per pixel and in YCbCr, multiplicative, impulses, photon counts. A draw
// depends on (seed, slot, op tag, element) only. 256 consecutive elements share 64 Philox counters: element e is word
// (e / 64) mod 4 of counter 64 (e / 256) + e mod 64, which keeps neighbours in neighbouring lanes and a crop's draws
// local. Listed in table.h; definitions in qpt/degradations.py.
#pragma once
#include "../philox.h"
#include "op.h"

namespace qpt {

// Third counter word, so that different ops in the same slot draw differently.
constexpr u32 kTagNoise = 4;
constexpr u32 kTagNoiseGrey = 5;
constexpr u32 kTagSpeckle = 6;
constexpr u32 kTagImpulse = 7;
constexpr u32 kTagPoisson = 8;
constexpr u32 kTagYcbcr = 9;
constexpr u32 kTagGlass = 10;

constexpr i32 kNoiseLanes = 64;                  // Philox counters of a block
constexpr i32 kNoiseElements = 4 * kNoiseLanes;  // elements of a block
constexpr i32 kNoiseBlocks = 12;  // blocks between barriers: 12 KiB of scratch, whole pixels of three elements

// What a window holds of the image's elements, `channels` a pixel: runs of consecutive ones, a single run if the window
// is as wide as the image, else one a row. In the window they follow each other.
struct Runs {
  i32 count, length;
  i32 first, step;  // run k starts at element first + k * step of the image
};

QPT_INLINE Runs runs_of(OpArgs a, i32 channels) {
  const i32 rows = a.w == a.full_w ? a.h : 1;  // of a run
  return {a.h / rows, rows * a.w * channels, (a.top * a.full_w + a.left) * channels, a.full_w * channels};
}

// Random words of elements 256 block + lane + {0, 64, 128, 192}.
QPT_INLINE Philox4 noise_words(OpArgs a, u32 tag, i32 block, i32 lane) {
  return philox4x32_10({static_cast<u32>(kNoiseLanes * block + lane), a.slot, tag, 0u}, static_cast<u32>(a.seed),
                       static_cast<u32>(a.seed >> 32));
}

// body(i, word) for every sample i of the window.
template <class Team, class Body>
QPT_FN void with_words(const Team& team, OpArgs a, u32 tag, Body body) {
  const Runs runs = runs_of(a, 3);
  // Blocks that a run touches: one more where it may start inside one.
  const i32 blocks = (runs.length - 1) / kNoiseElements + (runs.count == 1 && runs.first == 0 ? 1 : 2);
  each(team, runs.count * blocks, kNoiseLanes, [&](i32 index, i32 lane) {
    const i32 run = index / blocks, first = runs.first + run * runs.step;
    const i32 block = first / kNoiseElements + index % blocks;
    const Philox4 words = noise_words(a, tag, block, lane);
    const i32 at = kNoiseElements * block + lane - first, start = run * runs.length;
    const auto sample = [&](i32 i, u32 word) {
      if (i >= 0 && i < runs.length) body(start + i, word);
    };
    sample(at, words.x);
    sample(at + kNoiseLanes, words.y);
    sample(at + 2 * kNoiseLanes, words.z);
    sample(at + 3 * kNoiseLanes, words.w);
  });
}

// A word as a uniform number in [0, 1), a multiple of 2^-24.
QPT_INLINE float unit(u32 word) {
  return static_cast<float>(static_cast<i32>(word >> 8)) * 0x1p-24f;
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

// body(first, count, normal) for parts of the window, `channels` elements a pixel, as large as fit in scratch:
// normal[i] is that of element first + i of the window. Parts end at multiples of kNoiseElements * kNoiseBlocks in the
// image, which is a multiple of 3, so the elements of a pixel are never parted.
template <i32 channels, class Team, class Body>
QPT_FN void with_normals(const Team& team, OpArgs a, u32 tag, Body body) {
  constexpr i32 kPart = kNoiseElements * kNoiseBlocks;
  static_assert(kPart % 3 == 0);
  const Runs runs = runs_of(a, channels);
  float* normal = Scratch{static_cast<u8*>(a.scratch)}.take<float>(kPart);
  for (i32 run = 0; run < runs.count; ++run) {
    const i32 first = runs.first + run * runs.step;
    for (i32 done = 0; done < runs.length;) {
      const i32 element = first + done, block = element / kNoiseElements, offset = element % kNoiseElements;
      const i32 count = minimum(runs.length - done, kPart - element % kPart);
      fill_normals(team, a, tag, block, (offset + count - 1) / kNoiseElements + 1, normal);
      team.sync();  // normals, written by all, are read by all
      body(run * runs.length + done, count, static_cast<const float*>(normal + offset));
      team.sync();  // all have read the normals that the next ones overwrite
      done += count;
    }
  }
}

// x + std * n per sample. p0 = std on the 0-255 scale.
template <class Team>
QPT_FN void gaussian_noise(Team& team, OpArgs a) {
  const float std = parameter(a.params[0], 0.0f, 255.0f);
  with_normals<3>(team, a, kTagNoise, [&](i32 first, i32 count, const float* normal) {
    const u8* src = a.src + first;
    u8* dst = a.dst + first;
    each(team, count, [&](i32 i) { dst[i] = to_u8(static_cast<float>(src[i]) + std * normal[i]); });
  });
}

// x + std * n with one n per pixel for the three channels. p0 = std on the 0-255 scale.
template <class Team>
QPT_FN void gaussian_noise_grey(Team& team, OpArgs a) {
  const float std = parameter(a.params[0], 0.0f, 255.0f);
  with_normals<1>(team, a, kTagNoiseGrey, [&](i32 first, i32 count, const float* normal) {
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

// x + x * std * n per sample. p0 = std, a share of the value.
template <class Team>
QPT_FN void speckle_noise(Team& team, OpArgs a) {
  const float std = parameter(a.params[0], 0.0f, 4.0f);
  with_normals<3>(team, a, kTagSpeckle, [&](i32 first, i32 count, const float* normal) {
    const u8* src = a.src + first;
    u8* dst = a.dst + first;
    each(team, count, [&](i32 i) {
      const float x = src[i];
      dst[i] = to_u8(x + x * (std * normal[i]));
    });
  });
}

// Independent noise on Y, Cb and Cr of JFIF (ITU-T T.871), brought to R, G and B, which is linear. p0 = std on the
// 0-255 scale.
template <class Team>
QPT_FN void gaussian_noise_ycbcr(Team& team, OpArgs a) {
  const float std = parameter(a.params[0], 0.0f, 255.0f);
  with_normals<3>(team, a, kTagYcbcr, [&](i32 first, i32 count, const float* normal) {
    const u8* src = a.src + first;
    u8* dst = a.dst + first;
    each(team, count / 3, [&](i32 p) {
      const float luma = std * normal[3 * p], cb = std * normal[3 * p + 1], cr = std * normal[3 * p + 2];
      dst[3 * p] = to_u8(static_cast<float>(src[3 * p]) + (luma + 1.402f * cr));
      dst[3 * p + 1] = to_u8(static_cast<float>(src[3 * p + 1]) + (luma - 0.344136286f * cb - 0.714136286f * cr));
      dst[3 * p + 2] = to_u8(static_cast<float>(src[3 * p + 2]) + (luma + 1.772f * cb));
    });
  });
}

// Black with probability density / 2, white with density / 2, per sample. p0 = density.
template <class Team>
QPT_FN void impulse_noise(Team& team, OpArgs a) {
  const float density = parameter(a.params[0], 0.0f, 1.0f);
  with_words(team, a, kTagImpulse, [&](i32 i, u32 word) {
    const float u = unit(word);
    a.dst[i] = u >= density ? a.src[i] : static_cast<u8>(u < 0.5f * density ? 0 : 255);
  });
}

// The Poisson distributions of the 256 values, each from its mode outwards, so that nothing underflows.
struct PhotonTable {
  float* mass;        // [256] probability of the mode
  float* cumulative;  // [256] probability of at most the mode
  float peak;         // photons of value 255
};

constexpr float kLeastMass = 1e-10f;  // beyond it a tail holds no 24-bit uniform number

template <class Team>
QPT_FN PhotonTable photon_table(const Team& team, float peak, Scratch scratch) {
  const PhotonTable table{scratch.take<float>(256), scratch.take<float>(256), peak};
  each(team, 256, [&](i32 value) {
    const float mean = peak * static_cast<float>(value) / 255.0f;
    const i32 mode = static_cast<i32>(mean);
    float below = 1.0f, above = 0.0f, mass = 1.0f;  // relative to the mode's
    for (i32 k = mode; k > 0 && mass > kLeastMass; --k) {
      mass *= static_cast<float>(k) / mean;
      below += mass;
    }
    mass = 1.0f;
    for (i32 k = mode + 1; mass > kLeastMass; ++k) {
      mass *= mean / static_cast<float>(k);
      above += mass;
    }
    table.mass[value] = 1.0f / (below + above);
    table.cumulative[value] = below / (below + above);
  });
  return table;
}

// Photons counted for a value: the smallest k whose cumulative probability exceeds u, sought from the mode.
QPT_INLINE i32 count_photons(const PhotonTable& table, i32 value, float u) {
  const float mean = table.peak * static_cast<float>(value) / 255.0f;
  i32 k = static_cast<i32>(mean);
  float mass = table.mass[value], cumulative = table.cumulative[value];
  while (u >= cumulative && mass > kLeastMass) {
    ++k;
    mass *= mean / static_cast<float>(k);
    cumulative += mass;
  }
  while (k > 0 && u < cumulative - mass && mass > kLeastMass) {
    cumulative -= mass;
    mass *= static_cast<float>(k) / mean;
    --k;
  }
  return k;
}

// Photons per sample, Poisson with mean p0 * x / 255, scaled back. p0 = peak, the photons of value 255.
template <class Team>
QPT_FN void poisson_noise(Team& team, OpArgs a) {
  const PhotonTable table =
      photon_table(team, parameter(a.params[0], 1.0f, 4096.0f), Scratch{static_cast<u8*>(a.scratch)});
  team.sync();  // the table, written by all, is read by all
  with_words(team, a, kTagPoisson, [&](i32 i, u32 word) {
    const i32 photons = count_photons(table, a.src[i], unit(word));
    a.dst[i] = to_u8(static_cast<float>(photons) * 255.0f / table.peak);
  });
}

QPT_FN i64 noise_bytes(i32, i32) {
  return taken_bytes<float>(kNoiseElements * kNoiseBlocks);  // more than a PhotonTable
}

}  // namespace qpt
