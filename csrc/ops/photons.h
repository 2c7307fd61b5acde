// Noise of counted photons (texture family): Poisson per sample, per pixel, and that of a camera at a high ISO number.
// Counts are drawn by inversion of the exact distribution. Listed in table.h; definitions in qpt/degradations.py.
#pragma once
#include "colour.h"
#include "noise.h"

namespace qpt {

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
  with_words(team, a, kTagPoisson, a.h * a.w * 3, [&](i32 i, u32 word) {
    const i32 photons = count_photons(table, a.src[i], unit(word));
    a.dst[i] = to_u8(static_cast<float>(photons) * 255.0f / table.peak);
  });
}

// One count per pixel for the three channels: x + 255 k / p0 - Y, k Poisson with mean p0 Y / 255, Y the rounded ITU-R
// 601 luma. p0 = peak, the photons of value 255.
template <class Team>
QPT_FN void poisson_noise_grey(Team& team, OpArgs a) {
  const PhotonTable table =
      photon_table(team, parameter(a.params[0], 1.0f, 4096.0f), Scratch{static_cast<u8*>(a.scratch)});
  team.sync();  // the table, written by all, is read by all
  with_words(team, a, kTagPoissonGrey, a.h * a.w, [&](i32 p, u32 word) {
    const u8* src = a.src + static_cast<i64>(3) * p;
    u8* dst = a.dst + static_cast<i64>(3) * p;
    const i32 luma = rounded_luma(src);
    const float noise =
        static_cast<float>(count_photons(table, luma, unit(word))) * 255.0f / table.peak - static_cast<float>(luma);
    for (i32 c = 0; c < 3; ++c) dst[c] = to_u8(static_cast<float>(src[c]) + noise);
  });
}

constexpr i32 kCounts = 256;  // a mean of at most 127.5 never gives more

// cumulative[k] = probability of at most k photons of a mean in [0, 127.5], k < kCounts. By one member: a chain of sums
// from the mode outwards, so that nothing underflows.
template <class Team>
QPT_FN void fill_cumulative(const Team& team, float mean, float* cumulative) {
  team.once([&] {
    const i32 mode = static_cast<i32>(mean);
    float mass = 1.0f;  // relative to the mode's
    for (i32 k = mode; k >= 0; --k) {
      cumulative[k] = mass;
      mass *= static_cast<float>(k) / maximum(mean, 1e-6f);
    }
    mass = 1.0f;
    for (i32 k = mode + 1; k < kCounts; ++k) {
      mass *= mean / static_cast<float>(k);
      cumulative[k] = mass;
    }
    float sum = 0.0f;
    for (i32 k = 0; k < kCounts; ++k) {
      sum += cumulative[k];
      cumulative[k] = sum;
    }
    for (i32 k = 0; k < kCounts; ++k) cumulative[k] /= sum;
  });
}

// Standard deviation over the image of the HLS lightness (max + min) / 2, in levels: from whole sums of max + min and
// of its square.
template <class Team>
QPT_FN float lightness_std(const Team& team, OpArgs a, u64* partial) {
  u64 sum = 0, squares = 0;
  for (i32 y = 0; y < a.h; ++y) {
    const u8* row = a.src + static_cast<i64>(y) * a.w * 3;
    u32 row_sum = 0;  // <= 510 w
    u64 row_squares = 0;
    for (i32 x = team.rank(); x < a.w; x += team.size()) {
      const u32 r = row[3 * x], g = row[3 * x + 1], b = row[3 * x + 2];
      const u32 twice = maximum(maximum(r, g), b) + minimum(minimum(r, g), b);
      row_sum += twice;
      row_squares += twice * twice;
    }
    sum += row_sum;
    squares += row_squares;
  }
  partial[2 * team.rank()] = sum;
  partial[2 * team.rank() + 1] = squares;
  team.sync();  // partial sums, two per member, are read by all; integers, so order does not matter
  sum = squares = 0;
  for (i32 member = 0; member < team.size(); ++member) {
    sum += partial[2 * member];
    squares += partial[2 * member + 1];
  }
  // About the whole part of the mean, where everything is an integer that fits; then its fraction.
  const u64 pixels = static_cast<u64>(a.h) * static_cast<u64>(a.w), whole = sum / pixels;
  const float count = static_cast<float>(static_cast<i64>(pixels));
  const float fraction = static_cast<float>(static_cast<i64>(sum - whole * pixels)) / count;
  const u64 about = squares + whole * whole * pixels - 2 * whole * sum;
  const float variance = static_cast<float>(static_cast<i64>(about)) / count - fraction * fraction;
  return 0.5f * square_root(maximum(variance, 0.0f));
}

// The smallest k with cumulative[k] > u, by halving.
QPT_INLINE i32 count_of(const float* cumulative, float u) {
  i32 k = 0;
  for (i32 step = kCounts / 2; step > 0; step /= 2) k += u >= cumulative[k + step - 1] ? step : 0;
  return k;
}

// HLS hue of one pixel turned by `turned` sixths, HLS lightness L raised by share (1 - L); saturation stays, so chroma
// goes with the room that the lightness leaves it.
QPT_INLINE void disturb(const u8* src, u8* dst, float turned, float share) {
  const float r = src[0], g = src[1], b = src[2];
  const float most = maximum(maximum(r, g), b), least = minimum(minimum(r, g), b), chroma = most - least;
  const float twice = most + least, moved = twice + share * (510.0f - twice);  // 510 L
  const float room = minimum(twice, 510.0f - twice), moved_room = minimum(moved, 510.0f - moved);
  const float new_chroma = chroma * moved_room / maximum(room, 1.0f);
  const float value = 0.5f * (moved + new_chroma);
  const float sum = hue_sixths(r, g, b, most, chroma) + turned;
  const float sixths = sum - 6.0f * nearest(sum / 6.0f) + 6.0f;  // [3, 9]
  dst[0] = hexcone(sixths + 5.0f, value, new_chroma);
  dst[1] = hexcone(sixths + 3.0f, value, new_chroma);
  dst[2] = hexcone(sixths + 1.0f, value, new_chroma);
}

// HLS hue plus a normal number of p0 p1 turns; HLS lightness L plus (k / 255) (1 - L), k Poisson with mean p1 times the
// standard deviation of the image's lightness on the 0-255 scale. p0 = colour_shift, p1 = intensity.
template <class Team>
QPT_FN void iso_noise(Team& team, OpArgs a) {
  const float intensity = parameter(a.params[1], 0.0f, 1.0f);
  const float std = 6.0f * parameter(a.params[0], 0.0f, 1.0f) * intensity;
  Scratch scratch{static_cast<u8*>(a.scratch)};
  float* cumulative = scratch.take<float>(kCounts);
  float* share = scratch.take<float>(kNoiseElements * kNoiseBlocks);
  fill_cumulative(team, intensity * lightness_std(team, a, scratch.take<u64>(2 * kMaxMembers)), cumulative);
  a.scratch = scratch.next;
  with_normals(team, a, kTagHue, a.h * a.w, [&](i32 first, i32 count, const float* normal) {
    // The barrier before this body made the cumulative probabilities, written by one member, visible to all.
    each(team, noise_blocks(count), kNoiseLanes, [&](i32 block, i32 lane) {
      const Philox4 words = noise_words(a, kTagLuminance, first / kNoiseElements + block, lane);
      float* const at = share + kNoiseElements * block + lane;
      at[0] = static_cast<float>(count_of(cumulative, unit(words.x))) / 255.0f;
      at[kNoiseLanes] = static_cast<float>(count_of(cumulative, unit(words.y))) / 255.0f;
      at[2 * kNoiseLanes] = static_cast<float>(count_of(cumulative, unit(words.z))) / 255.0f;
      at[3 * kNoiseLanes] = static_cast<float>(count_of(cumulative, unit(words.w))) / 255.0f;
    });
    team.sync();  // shares, written by all, are read by all
    const i64 start = static_cast<i64>(3) * first;
    each(team, count, [&](i32 p) { disturb(a.src + start + 3 * p, a.dst + start + 3 * p, std * normal[p], share[p]); });
  });
}

QPT_FN i64 iso_bytes(i32 h, i32 w) {
  return taken_bytes<float>(kCounts) + taken_bytes<float>(kNoiseElements * kNoiseBlocks) +
         taken_bytes<u64>(2 * kMaxMembers) + noise_bytes(h, w);
}

}  // namespace qpt
