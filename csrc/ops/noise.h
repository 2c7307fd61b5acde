// Noise (texture family): Gaussian per sample, per pixel, in YCbCr and correlated; multiplicative; impulses. A draw
// depends on (seed, slot, op tag, element) only. 256 consecutive elements share 64 Philox counters: element e is word
// (e / 64) mod 4 of counter 64 (e / 256) + e mod 64, so that neighbouring elements are in neighbouring lanes and a
// window needs few counters beyond its own elements. Listed in table.h; parameters in qpt/degradations/rows/texture.py.
#pragma once
#include "../philox.h"
#include "op.h"

namespace qpt {

// The third counter word, by which different ops in the same slot draw different numbers.
constexpr u32 kTagNoise = 4;
constexpr u32 kTagNoiseGrey = 5;
constexpr u32 kTagSpeckle = 6;
constexpr u32 kTagImpulse = 7;
constexpr u32 kTagPoisson = 8;
constexpr u32 kTagYcbcr = 9;
constexpr u32 kTagGlass = 10;
constexpr u32 kTagCovariance = 11;
constexpr u32 kTagNoiseCov = 12;
constexpr u32 kTagPoissonGrey = 13;
constexpr u32 kTagJitter = 14;
constexpr u32 kTagCopiedSquare = 15;
constexpr u32 kTagBlock = 16;
constexpr u32 kTagHue = 17;
constexpr u32 kTagLuminance = 18;
constexpr u32 kTagShuffledSquare = 19;
constexpr u32 kTagJitterRounds = 48;  // and the 7 after it, one for each round
constexpr u32 kTagGlassRounds = 56;   // likewise

constexpr i32 kNoiseLanes = 64;                  // Philox counters of a block
constexpr i32 kNoiseElements = 4 * kNoiseLanes;  // elements of a block
constexpr i32 kNoiseBlocks = 12;  // blocks between barriers: 12 KiB of scratch, and whole pixels of three elements

// The elements of a window, `channels` per pixel, as runs of consecutive elements of the image: a single run if the
// window is as wide as the image, else one per row. In the window the runs follow each other.
struct Runs {
  i32 count, length;
  i32 first, step;  // run k starts at element first + k * step of the image
};

QPT_INLINE Runs runs_of(OpArgs a, i32 channels) {
  const i32 rows = a.w == a.full_w ? a.h : 1;  // of a run
  return {a.h / rows, rows * a.w * channels, (a.top * a.full_w + a.left) * channels, a.full_w * channels};
}

QPT_INLINE i32 noise_blocks(i32 elements) {
  return (elements + kNoiseElements - 1) / kNoiseElements;
}

// Returns the four words of a counter of this op.
QPT_INLINE Philox4 op_words(const OpArgs& a, u32 tag, i32 counter) {
  return philox4x32_10({static_cast<u32>(counter), a.slot, tag, 0u}, static_cast<u32>(a.seed),
                       static_cast<u32>(a.seed >> 32));
}

#if QPT_SIMD_ROWS
// Writes the words of kNoiseLanes counters of this op.
QPT_INLINE void op_words(const OpArgs& a, u32 tag, i32 first, u32 (&words)[4][kNoiseLanes]) {
  simd::philox_words(static_cast<u32>(first), a.slot, tag, static_cast<u32>(a.seed), static_cast<u32>(a.seed >> 32),
                     words);
}
#endif

// Calls body(counter, words) for every counter of a span of this op, divided among the members of the block. On x86 a
// team of one computes the words of 64 counters at once.
template <class Team, class Body>
QPT_INLINE void with_words(const Team& team, const OpArgs& a, u32 tag, Span counters, Body body) {
#if QPT_SIMD_ROWS
  if constexpr (Team::kSolo) {
    u32 words[4][kNoiseLanes];
    for (i32 first = counters.first; first < counters.last; first += kNoiseLanes) {
      simd::philox_words(static_cast<u32>(first), a.slot, tag, static_cast<u32>(a.seed), static_cast<u32>(a.seed >> 32),
                         words);
      each(team, minimum(kNoiseLanes, counters.last - first),
           [&](i32 i) QPT_BODY { body(first + i, Philox4{words[0][i], words[1][i], words[2][i], words[3][i]}); });
    }
    return;
  }
#endif
  each(team, counters, [&](i32 counter) { body(counter, op_words(a, tag, counter)); });
}

// Returns the random words of elements 256 block + lane + {0, 64, 128, 192}.
QPT_INLINE Philox4 noise_words(OpArgs a, u32 tag, i32 block, i32 lane) {
  return op_words(a, tag, kNoiseLanes * block + lane);
}

// Maps a word to a uniform number in [0, 1), a multiple of 2^-24.
QPT_INLINE float to_unit(u32 word) {
  return static_cast<float>(static_cast<i32>(word >> 8)) * 0x1p-24f;
}

// The random numbers that the four words of a counter give its four elements.
struct FourNumbers {
  float values[4];
};

QPT_INLINE FourNumbers four_normals(Philox4 words) {
  const Normal2 low = normal_pair(words.x, words.y), high = normal_pair(words.z, words.w);
  return {{low.first, low.second, high.first, high.second}};
}

QPT_INLINE FourNumbers four_uniforms(Philox4 words) {
  return {{to_unit(words.x), to_unit(words.y), to_unit(words.z), to_unit(words.w)}};
}

// Writes to out[e] the number of element 256 first_block + e, for whole blocks of 256 elements.
template <class Team, class Draw>
QPT_FN void fill_numbers(const Team& team, OpArgs a, u32 tag, i32 first_block, i32 blocks, Draw draw, float* out) {
#if QPT_SIMD_ROWS
  if constexpr (Team::kSolo) {
    u32 words[4][kNoiseLanes];
    for (i32 block = 0; block < blocks; ++block) {
      op_words(a, tag, kNoiseLanes * (first_block + block), words);
      float* const at = out + kNoiseElements * block;
      each(team, kNoiseLanes, [&](i32 lane) {
        const FourNumbers four = draw(Philox4{words[0][lane], words[1][lane], words[2][lane], words[3][lane]});
        for (i32 part = 0; part < 4; ++part) at[kNoiseLanes * part + lane] = four.values[part];
      });
    }
    return;
  }
#endif
  each(team, blocks, kNoiseLanes, [&](i32 block, i32 lane) {
    const FourNumbers four = draw(noise_words(a, tag, first_block + block, lane));
    float* const at = out + kNoiseElements * block + lane;
    for (i32 part = 0; part < 4; ++part) at[kNoiseLanes * part] = four.values[part];
  });
}

// Calls body(first, count, number) for parts of the block's rows of the window, `channels` elements per pixel, that fit
// in scratch: number[i] is the random number of element first + i of the window. Parts end at multiples of
// kNoiseElements * kNoiseBlocks elements of the image; this is a multiple of 6, so a part never ends within a pixel.
template <i32 channels, class Team, class Draw, class Body>
QPT_FN void with_numbers(const Team& team, OpArgs a, u32 tag, Draw draw, Body body) {
  constexpr i32 kPart = kNoiseElements * kNoiseBlocks;
  static_assert(kPart % 6 == 0);
  float* number = Scratch{static_cast<u8*>(a.scratch)}.take_own<float>(team, kPart);
  const Span rows = rows_of(team, a);
  if (rows.first >= rows.last) return;
  a.top += rows.first;
  a.h = rows.last - rows.first;
  const Runs runs = runs_of(a, channels);
  const i32 before = rows.first * a.w * channels;  // elements of the window in the rows of other blocks
  bool again = false;
  for (i32 run = 0; run < runs.count; ++run) {
    const i32 first = runs.first + run * runs.step;
    for (i32 done = 0; done < runs.length;) {
      const i32 element = first + done, block = element / kNoiseElements, offset = element % kNoiseElements;
      const i32 count = minimum(runs.length - done, kPart - element % kPart);
      if (again) team.sync();  // all have read the numbers that are overwritten
      again = true;
      fill_numbers(team, a, tag, block, noise_blocks(offset + count), draw, number);
      team.sync();  // numbers, written by all, are read by all
      body(before + run * runs.length + done, count, static_cast<const float*>(number + offset));
      done += count;
    }
  }
}

// with_numbers for standard normal numbers, and for uniform numbers in [0, 1).
template <i32 channels, class Team, class Body>
QPT_FN void with_normals(const Team& team, OpArgs a, u32 tag, Body body) {
  with_numbers<channels>(team, a, tag, [](Philox4 words) { return four_normals(words); }, body);
}
template <i32 channels, class Team, class Body>
QPT_FN void with_uniforms(const Team& team, OpArgs a, u32 tag, Body body) {
  with_numbers<channels>(team, a, tag, [](Philox4 words) { return four_uniforms(words); }, body);
}

// Maps each sample x to x + std n. p0 = std on the 0-255 scale.
template <class Team>
QPT_FN void gaussian_noise(Team& team, OpArgs a) {
  const float std = parameter(a.params[0], 0.0f, 255.0f);
  with_normals<3>(team, a, kTagNoise, [&](i32 first, i32 count, const float* normal) {
    const u8* src = a.src + first;
    u8* dst = a.dst + first;
    each(team, count, [&](i32 i) { dst[i] = to_u8(static_cast<float>(src[i]) + std * normal[i]); });
  });
}

// Maps x to x + std n with one n per pixel for its three channels. p0 = std on the 0-255 scale.
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

// Maps each sample x to x + x std n. p0 = std, a share of the value.
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

// Adds independent noise to Y, Cb and Cr of JFIF (ITU-T T.871). The conversion is linear, so it is the noise that is
// converted to R, G and B. p0 = std on the 0-255 scale.
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

// Makes each sample black with probability density / 2 and white with density / 2. p0 = density.
template <class Team>
QPT_FN void impulse_noise(Team& team, OpArgs a) {
  const float density = parameter(a.params[0], 0.0f, 1.0f);
  with_uniforms<3>(team, a, kTagImpulse, [&](i32 first, i32 count, const float* uniform) {
    const u8* src = a.src + first;
    u8* dst = a.dst + first;
    each(team, count, [&](i32 i) {
      const u8 pulse = uniform[i] < 0.5f * density ? 0 : 255;
      dst[i] = uniform[i] < density ? pulse : src[i];
    });
  });
}

// A matrix m; m n is noise of covariance m m^T for three independent standard normal numbers n.
struct MixingMatrix {
  float m[3][3];
};

// Draws the square root of a random covariance from the words of counters 0 and 1: the columns of a uniformly random
// rotation (a quaternion of four normal numbers; Shoemake, Graphics Gems III, 1992), each times the square root of a
// uniform number.
QPT_INLINE MixingMatrix random_mixing(OpArgs a) {
  const Philox4 turn = op_words(a, kTagCovariance, 0), spread = op_words(a, kTagCovariance, 1);
  const Normal2 low = normal_pair(turn.x, turn.y), high = normal_pair(turn.z, turn.w);
  const float w = low.first, x = low.second, y = high.first, z = high.second;
  const float scale = 2.0f / maximum(w * w + x * x + y * y + z * z, 1e-12f);
  const float u = square_root(to_unit(spread.x)), v = square_root(to_unit(spread.y)),
              t = square_root(to_unit(spread.z));
  return {{{u * (1.0f - scale * (y * y + z * z)), v * scale * (x * y - w * z), t * scale * (x * z + w * y)},
           {u * scale * (x * y + w * z), v * (1.0f - scale * (x * x + z * z)), t * scale * (y * z - w * x)},
           {u * scale * (x * z - w * y), v * scale * (y * z + w * x), t * (1.0f - scale * (x * x + y * y))}}};
}

// Adds Gaussian noise that is correlated between the channels by a covariance drawn from the row's seed. p0 = std on
// the 0-255 scale, the largest that the noise can have along a direction in colour space.
template <class Team>
QPT_FN void gaussian_noise_cov(Team& team, OpArgs a) {
  const float std = parameter(a.params[0], 0.0f, 255.0f);
  const MixingMatrix mixing = random_mixing(a);
  with_normals<3>(team, a, kTagNoiseCov, [&](i32 first, i32 count, const float* normal) {
    const u8* src = a.src + first;
    u8* dst = a.dst + first;
    each(team, count / 3, [&](i32 p) {
      const float n0 = normal[3 * p], n1 = normal[3 * p + 1], n2 = normal[3 * p + 2];
      for (i32 c = 0; c < 3; ++c) {
        const float noise = mixing.m[c][0] * n0 + mixing.m[c][1] * n1 + mixing.m[c][2] * n2;
        dst[3 * p + c] = to_u8(static_cast<float>(src[3 * p + c]) + std * noise);
      }
    });
  });
}

QPT_FN i64 noise_bytes(i32, i32, i32 blocks) {
  return own_bytes<float>(kNoiseElements * kNoiseBlocks, blocks);
}

}  // namespace qpt
