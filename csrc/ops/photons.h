// Noise of counted photons (texture family): Poisson per sample, per pixel, and that of a camera at a high ISO number.
// Counts are drawn by inversion of the exact distribution with a guide table (Chen and Asau, 1974). Listed in table.h;
// parameters in qpt/degradations/rows/texture.py.
#pragma once
#include "colour.h"
#include "noise.h"

namespace qpt {

constexpr i32 kGuides = 64;

// A Poisson distribution. The cumulative probabilities of the counts from `first` on follow it in memory, as far as 24
// bits of a uniform number tell them apart.
struct PoissonTable {
  i32 first;
  u16 guide[kGuides];  // guide[g]: place of the first cumulative probability that exceeds g / kGuides
};

struct CountRange {
  i32 first, last;
};

// Returns the range of the counts that are drawn. The probability outside it is less than 2^-26, for means up to 4,096.
QPT_INLINE CountRange count_range(float mean) {
  const float spread = square_root(mean);
  return {static_cast<i32>(maximum(mean - 5.5f * spread, 0.0f)), static_cast<i32>(mean + 6.0f * spread) + 8};
}

QPT_INLINE i32 poisson_bytes(float mean) {
  const CountRange range = count_range(mean);
  const i32 bytes = static_cast<i32>(sizeof(PoissonTable) + sizeof(float)) + 4 * (range.last - range.first);
  return (bytes + 63) / 64 * 64;
}

// Computes a distribution: probability masses from the mode outwards, so that none underflows, and their sums in
// integer units of 2^-24 of the mode's mass, which are exact.
QPT_INLINE void fill_poisson(PoissonTable* poisson, float mean) {
  const CountRange range = count_range(mean);
  float* cumulative = reinterpret_cast<float*>(poisson + 1);
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
  poisson->first = range.first;
  // guide[g] is the number of cumulative probabilities that are at most g / kGuides: first the number above
  // (g - 1) / kGuides, then the sum over all guides up to g.
  for (i32 g = 0; g < kGuides; ++g) poisson->guide[g] = 0;
  for (i32 i = 0; i < counts; ++i) {
    const float scaled = cumulative[i] * static_cast<float>(kGuides);
    const i32 whole = static_cast<i32>(scaled);
    const i32 g = whole + (static_cast<float>(whole) < scaled ? 1 : 0);
    if (g < kGuides) ++poisson->guide[g];
  }
  for (i32 g = 1; g < kGuides; ++g) poisson->guide[g] = static_cast<u16>(poisson->guide[g] + poisson->guide[g - 1]);
}

// Returns the smallest count whose cumulative probability exceeds u in [0, 1). That of the last count is 1.
QPT_INLINE i32 count_photons(const PoissonTable* poisson, float u) {
  const float* cumulative = reinterpret_cast<const float*>(poisson + 1);
  i32 i = poisson->guide[static_cast<i32>(u * static_cast<float>(kGuides))];
  i += u >= cumulative[i] ? 1 : 0;  // one step is mostly enough, and this one has no branch to mispredict
  while (u >= cumulative[i]) ++i;
  return poisson->first + i;
}

// Returns the bytes for the distributions of a range of values.
QPT_INLINE i32 poisson_arena(i32 h, i32 w) {
  return static_cast<i32>(minimum(static_cast<i64>(12) * h * w + 32768, static_cast<i64>(393216)));
}

// Calls put(i, count) for every element of the window, `channels` per pixel; count is Poisson with mean peak value(i) /
// 255. Scratch does not hold the distributions of all 256 values at a large peak, so values are processed in ranges,
// each in a pass over the window; the result does not depend on the ranges.
template <i32 channels, class Team, class Value, class Put>
QPT_FN void with_photons(const Team& team, OpArgs a, u32 tag, float peak, Value value, Put put) {
  Scratch scratch{static_cast<u8*>(a.scratch)};
  const i32 room = poisson_arena(a.h, a.w);
  u8* arena = scratch.take<u8>(room);
  i32* place = scratch.take_own<i32>(team, 256);  // where a value's distribution starts in the arena; 0 starts a range
  a.scratch = scratch.next;
  const auto mean = [&](i32 x) { return peak * static_cast<float>(x) / 255.0f; };
  team.once([&] {
    i32 used = 0;
    for (i32 x = 0; x < 256; ++x) {
      const i32 bytes = poisson_bytes(mean(x));
      if (used + bytes > room) used = 0;
      place[x] = used;
      used += bytes;
    }
  });
  team.sync();  // places, written by one member, are read by all
  for (i32 low = 0, high = 0; low < 256; low = high) {
    for (high = low + 1; high < 256 && place[high] != 0;) ++high;
    if (low > 0) team.sync_team();  // all have read the distributions and the numbers that are overwritten
    each(team, share(team, high - low),
         [&](i32 i) { fill_poisson(reinterpret_cast<PoissonTable*>(arena + place[low + i]), mean(low + i)); });
    team.sync_team();  // distributions, written by all, are read by all
    with_uniforms<channels>(team, a, tag, [&](i32 first, i32 count, const float* uniform) {
      each(team, count, [&](i32 i) {
        const i32 x = value(first + i);
        if (x < low || x >= high) return;
        put(first + i, count_photons(reinterpret_cast<const PoissonTable*>(arena + place[x]), uniform[i]));
      });
    });
  }
}

constexpr float kMaxPeak = 4096.0f;

// Replaces each sample x by a Poisson count with mean p0 x / 255, scaled back. p0 = peak, the photons of value 255.
template <class Team>
QPT_FN void poisson_noise(Team& team, OpArgs a) {
  const float peak = parameter(a.params[0], 1.0f, kMaxPeak);
  with_photons<3>(
      team, a, kTagPoisson, peak, [&](i32 i) { return a.src[i]; },
      [&](i32 i, i32 photons) { a.dst[i] = to_u8(static_cast<float>(photons) * 255.0f / peak); });
}

// Maps x to x + 255 k / p0 - Y with one count k per pixel for its three channels, Poisson with mean p0 Y / 255; Y is
// the rounded ITU-R 601 luma. p0 = peak, the photons of value 255.
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

QPT_FN i64 photon_bytes(i32 h, i32 w, i32 blocks) {
  return taken_bytes<u8>(poisson_arena(h, w)) + own_bytes<i32>(256, blocks) + noise_bytes(h, w, blocks);
}

// Returns the standard deviation over the image of the HLS lightness (max + min) / 2, in grey levels, from integer sums
// of max + min and of its square.
template <class Team>
QPT_FN float lightness_std(const Team& team, OpArgs a, Scratch scratch) {
  const Span rows = rows_of(team, a);
  u64 sum = 0, squares = 0;
  for (i32 y = rows.first; y < rows.last; ++y) {
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
  TeamSum total(team, scratch);
  sum = total.of(sum);
  squares = total.of(squares);
  // First the variance about the integer part of the mean, in integers that fit 64 bits; then the mean's fraction.
  const u64 pixels = static_cast<u64>(a.h) * static_cast<u64>(a.w), whole = sum / pixels;
  const float count = static_cast<float>(static_cast<i64>(pixels));
  const float fraction = static_cast<float>(static_cast<i64>(sum - whole * pixels)) / count;
  const u64 about = squares + whole * whole * pixels - 2 * whole * sum;
  const float variance = static_cast<float>(static_cast<i64>(about)) / count - fraction * fraction;
  return 0.5f * square_root(maximum(variance, 0.0f));
}

// Turns the HLS hue of one pixel by `turned` sixths and raises its HLS lightness L by share (1 - L). The saturation
// stays, so the chroma is scaled by the largest chroma that each lightness allows.
QPT_INLINE void iso_pixel(const u8* src, u8* dst, float turned, float share) {
  const float r = src[0], g = src[1], b = src[2];
  const float most = maximum(maximum(r, g), b), least = minimum(minimum(r, g), b), chroma = most - least;
  const float twice = most + least, moved = twice + share * (510.0f - twice);  // 510 L
  const float room = minimum(twice, 510.0f - twice), moved_room = minimum(moved, 510.0f - moved);
  const float scale = moved_room / maximum(room, 1.0f), new_chroma = scale * chroma;
  const float hue = hue_times_chroma(r, g, b, most, chroma) + forward_sixths(turned) * chroma;
  write_hexcone(dst, scale * hue, 0.5f * (moved - new_chroma), new_chroma);
}

constexpr float kMaxIsoMean = 127.5f;  // photons: the standard deviation of a half black, half white image, the largest
constexpr i32 kIsoTableBytes = 1024;   // of its distribution, which takes 692

// Adds to the HLS hue a normal number of p0 p1 turns, and to the HLS lightness L (k / 255) (1 - L); k is Poisson, its
// mean p1 times the standard deviation of the image's lightness on the 0-255 scale. p0 = colour_shift, p1 = intensity.
template <class Team>
QPT_FN void iso_noise(Team& team, OpArgs a) {
  const float intensity = parameter(a.params[1], 0.0f, 1.0f);
  const float std = 6.0f * parameter(a.params[0], 0.0f, 1.0f) * intensity;
  Scratch scratch{static_cast<u8*>(a.scratch)};
  PoissonTable* poisson = reinterpret_cast<PoissonTable*>(scratch.take_own<u8>(team, kIsoTableBytes));
  float* uniform = scratch.take_own<float>(team, kNoiseElements * kNoiseBlocks);
  const float spread = lightness_std(team, a, Scratch{scratch.take<u8>(team_sum_bytes(team.blocks()))});
  a.scratch = scratch.next;
  team.once([&] { fill_poisson(poisson, minimum(intensity * spread, kMaxIsoMean)); });
  with_normals<1>(team, a, kTagHue, [&](i32 first, i32 count, const float* normal) {
    const i32 offset = first % kNoiseElements;
    fill_numbers(
        team, a, kTagLuminance, first / kNoiseElements, noise_blocks(offset + count),
        [](Philox4 words) { return four_uniforms(words); }, uniform);
    float* const share = uniform + offset;
    team.sync();  // uniform numbers, written by all, and the distribution, written by one, are read by all
    each(team, count, [&](i32 p) { share[p] = static_cast<float>(count_photons(poisson, share[p])) / 255.0f; });
    // Not synced: a member has the same pixels in this loop and reads only the shares that it wrote itself.
    const i64 start = static_cast<i64>(3) * first;
    each(team, count,
         [&](i32 p) { iso_pixel(a.src + start + 3 * p, a.dst + start + 3 * p, std * normal[p], share[p]); });
  });
}

QPT_FN i64 iso_bytes(i32 h, i32 w, i32 blocks) {
  return own_bytes<u8>(kIsoTableBytes, blocks) + own_bytes<float>(kNoiseElements * kNoiseBlocks, blocks) +
         team_sum_bytes(blocks) + noise_bytes(h, w, blocks);
}

}  // namespace qpt
