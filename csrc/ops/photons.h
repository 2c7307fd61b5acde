// Noise of counted photons (texture family): Poisson per sample, per pixel, and that of a camera at a high ISO number.
// Counts are drawn by inversion of the exact distribution. Listed in table.h; definitions in
// qpt/degradations/op_table.py.
#pragma once
#include "colour.h"
#include "noise.h"

namespace qpt {

constexpr i32 kGuides = 64;

// A Poisson distribution as a table: the cumulative probabilities of the counts from `first` on follow the record, as
// far as 24 bits of a uniform number tell them apart. guide[g]: the first of them that exceeds g / kGuides.
struct PhotonRecord {
  i32 first;
  u16 guide[kGuides];
};

struct PhotonRange {
  i32 first, last;
};

// The counts that matter: both tails beyond are together less than 2^-26, for means up to 4,096.
QPT_INLINE PhotonRange photon_range(float mean) {
  const float spread = square_root(mean);
  return {static_cast<i32>(maximum(mean - 5.5f * spread, 0.0f)), static_cast<i32>(mean + 6.0f * spread) + 8};
}

QPT_INLINE i32 record_bytes(float mean) {
  const PhotonRange range = photon_range(mean);
  const i32 bytes = static_cast<i32>(sizeof(PhotonRecord) + sizeof(float)) + 4 * (range.last - range.first);
  return (bytes + 63) / 64 * 64;
}

// Masses from the mode outwards, so that nothing underflows; their sums in whole units of 2^-24 of the mode's, exact.
QPT_INLINE void fill_record(PhotonRecord* record, float mean) {
  const PhotonRange range = photon_range(mean);
  float* cumulative = reinterpret_cast<float*>(record + 1);
  const i32 mode = static_cast<i32>(mean), counts = range.last - range.first + 1;
  float mass = 16777216.0f;
  for (i32 k = mode; k >= range.first; --k) {
    cumulative[k - range.first] = mass;
    mass = k > 0 ? mass * (static_cast<float>(k) / mean) : mass;
  }
  mass = 16777216.0f;
  for (i32 k = mode + 1; k <= range.last; ++k) {
    mass *= mean / static_cast<float>(k);
    cumulative[k - range.first] = mass;
  }
  i64 sum = 0;
  for (i32 i = 0; i < counts; ++i) {
    sum += static_cast<i32>(cumulative[i] + 0.5f);
    cumulative[i] = static_cast<float>(sum);
  }
  const float total = static_cast<float>(sum);
  for (i32 i = 0; i < counts; ++i) cumulative[i] /= total;
  record->first = range.first;
  // guide[g] counts the probabilities that are at most g / kGuides: first those that become so at g, then their sums.
  for (i32 g = 0; g < kGuides; ++g) record->guide[g] = 0;
  for (i32 i = 0; i < counts; ++i) {
    const float scaled = cumulative[i] * static_cast<float>(kGuides);
    const i32 whole = static_cast<i32>(scaled);
    const i32 g = whole + (static_cast<float>(whole) < scaled ? 1 : 0);
    if (g < kGuides) ++record->guide[g];
  }
  for (i32 g = 1; g < kGuides; ++g) record->guide[g] = static_cast<u16>(record->guide[g] + record->guide[g - 1]);
}

// The smallest count whose cumulative probability exceeds u in [0, 1). The last one's is 1.
QPT_INLINE i32 count_photons(const PhotonRecord* record, float u) {
  const float* cumulative = reinterpret_cast<const float*>(record + 1);
  i32 i = record->guide[static_cast<i32>(u * static_cast<float>(kGuides))];
  i += u >= cumulative[i] ? 1 : 0;  // mostly enough, and no branch to be mispredicted
  while (u >= cumulative[i]) ++i;
  return record->first + i;
}

// Room for the records of a group of values.
QPT_INLINE i32 photon_arena(i32 h, i32 w) {
  return static_cast<i32>(minimum(static_cast<i64>(12) * h * w + 32768, static_cast<i64>(393216)));
}

// put(i, count) for every element of the window, `channels` a pixel: count is Poisson with mean peak value(i) / 255.
// The values' tables do not all fit in scratch, so that groups of values follow one another; which group a value is in
// changes nothing.
template <i32 channels, class Team, class Value, class Put>
QPT_FN void with_photons(const Team& team, OpArgs a, u32 tag, float peak, Value value, Put put) {
  Scratch scratch{static_cast<u8*>(a.scratch)};
  const i32 room = photon_arena(a.h, a.w);
  u8* arena = scratch.take<u8>(room);
  i32* place = scratch.take<i32>(256);  // of a value's record in the arena; 0 starts a group
  a.scratch = scratch.next;
  const auto mean = [&](i32 x) { return peak * static_cast<float>(x) / 255.0f; };
  team.once([&] {
    i32 used = 0;
    for (i32 x = 0; x < 256; ++x) {
      const i32 bytes = record_bytes(mean(x));
      if (used + bytes > room) used = 0;
      place[x] = used;
      used += bytes;
    }
  });
  team.sync();  // places, written by one member, are read by all
  for (i32 low = 0, high = 0; low < 256; low = high) {
    for (high = low + 1; high < 256 && place[high] != 0;) ++high;
    each(team, high - low,
         [&](i32 i) { fill_record(reinterpret_cast<PhotonRecord*>(arena + place[low + i]), mean(low + i)); });
    // The barriers of with_uniforms lie between the records, written by all, and their reading, and after it.
    with_uniforms<channels>(team, a, tag, [&](i32 first, i32 count, const float* uniform) {
      each(team, count, [&](i32 i) {
        const i32 x = value(first + i);
        if (x < low || x >= high) return;
        put(first + i, count_photons(reinterpret_cast<const PhotonRecord*>(arena + place[x]), uniform[i]));
      });
    });
  }
}

constexpr float kMaxPeak = 4096.0f;

// Photons per sample, Poisson with mean p0 * x / 255, scaled back. p0 = peak, the photons of value 255.
template <class Team>
QPT_FN void poisson_noise(Team& team, OpArgs a) {
  const float peak = parameter(a.params[0], 1.0f, kMaxPeak);
  with_photons<3>(
      team, a, kTagPoisson, peak, [&](i32 i) { return a.src[i]; },
      [&](i32 i, i32 photons) { a.dst[i] = to_u8(static_cast<float>(photons) * 255.0f / peak); });
}

// One count per pixel for the three channels: x + 255 k / p0 - Y, k Poisson with mean p0 Y / 255, Y the rounded ITU-R
// 601 luma. p0 = peak, the photons of value 255.
template <class Team>
QPT_FN void poisson_noise_grey(Team& team, OpArgs a) {
  const float peak = parameter(a.params[0], 1.0f, kMaxPeak);
  with_photons<1>(
      team, a, kTagPoissonGrey, peak, [&](i32 p) { return rounded_luma(a.src + static_cast<i64>(3) * p); },
      [&](i32 p, i32 photons) {
        const u8* src = a.src + static_cast<i64>(3) * p;
        u8* dst = a.dst + static_cast<i64>(3) * p;
        const float noise = static_cast<float>(photons) * 255.0f / peak - static_cast<float>(rounded_luma(src));
        for (i32 c = 0; c < 3; ++c) dst[c] = to_u8(static_cast<float>(src[c]) + noise);
      });
}

QPT_FN i64 photon_bytes(i32 h, i32 w) {
  return taken_bytes<u8>(photon_arena(h, w)) + taken_bytes<i32>(256) + noise_bytes(h, w);
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

// HLS hue of one pixel turned by `turned` sixths, HLS lightness L raised by share (1 - L); saturation stays, so chroma
// goes with the room that the lightness leaves it.
QPT_INLINE void disturb(const u8* src, u8* dst, float turned, float share) {
  const float r = src[0], g = src[1], b = src[2];
  const float most = maximum(maximum(r, g), b), least = minimum(minimum(r, g), b), chroma = most - least;
  const float twice = most + least, moved = twice + share * (510.0f - twice);  // 510 L
  const float room = minimum(twice, 510.0f - twice), moved_room = minimum(moved, 510.0f - moved);
  const float scale = moved_room / maximum(room, 1.0f), new_chroma = scale * chroma;
  const float hue = hue_times_chroma(r, g, b, most, chroma) + forward_sixths(turned) * chroma;
  write_hexcone(dst, scale * hue, 0.5f * (moved - new_chroma), new_chroma);
}

constexpr float kMaxLight = 127.5f;  // mean photons of iso_noise: the largest spread there is, of black and white
constexpr i32 kLightBytes = 1024;    // of its record, which takes 692

// HLS hue plus a normal number of p0 p1 turns; HLS lightness L plus (k / 255) (1 - L), k Poisson with mean p1 times the
// standard deviation of the image's lightness on the 0-255 scale. p0 = colour_shift, p1 = intensity.
template <class Team>
QPT_FN void iso_noise(Team& team, OpArgs a) {
  const float intensity = parameter(a.params[1], 0.0f, 1.0f);
  const float std = 6.0f * parameter(a.params[0], 0.0f, 1.0f) * intensity;
  Scratch scratch{static_cast<u8*>(a.scratch)};
  PhotonRecord* light = reinterpret_cast<PhotonRecord*>(scratch.take<u8>(kLightBytes));
  float* share = scratch.take<float>(kNoiseElements * kNoiseBlocks);
  const float spread = lightness_std(team, a, scratch.take<u64>(2 * kMaxMembers));
  a.scratch = scratch.next;
  team.once([&] { fill_record(light, minimum(intensity * spread, kMaxLight)); });
  with_normals<1>(team, a, kTagHue, [&](i32 first, i32 count, const float* normal) {
    fill_numbers(
        team, a, kTagLuminance, first / kNoiseElements, noise_blocks(count),
        [](Philox4 words) { return four_uniforms(words); }, share);
    team.sync();  // uniform numbers, written by all, and the record, written by one, are read by all
    each(team, count, [&](i32 p) { share[p] = static_cast<float>(count_photons(light, share[p])) / 255.0f; });
    // A member keeps its pixels, so their shares need no barrier.
    const i64 start = static_cast<i64>(3) * first;
    each(team, count, [&](i32 p) { disturb(a.src + start + 3 * p, a.dst + start + 3 * p, std * normal[p], share[p]); });
  });
}

QPT_FN i64 iso_bytes(i32 h, i32 w) {
  return taken_bytes<u8>(kLightBytes) + taken_bytes<float>(kNoiseElements * kNoiseBlocks) +
         taken_bytes<u64>(2 * kMaxMembers) + noise_bytes(h, w);
}

}  // namespace qpt
