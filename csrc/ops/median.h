// The median filter (texture family): each channel's median over a square window, borders replicated, as in
// cv2.medianBlur. The median is found bit by bit from the highest, from the number of smaller values in the window. A
// team of threads counts for 32 samples at once, on bit planes; cpu/simd.h has fast forms for x86. Listed in table.h.
#pragma once
#include "op.h"

namespace qpt {

constexpr i32 kMaxMedianRadius = 7;

// An image as eight planes of bits. Bit j of word k of row y of plane b is bit b of sample 32 k + j of the row, whose
// borders are padded by `radius` replicated pixels.
struct BitPlanes {
  u32* words;  // [8, h, stride]
  i32 h, stride;
  QPT_INLINE u32* row(i32 plane, i32 y) const { return words + (static_cast<i64>(plane) * h + y) * stride; }
};

// Words of a padded row; two more can be read.
QPT_INLINE i32 plane_stride(i32 samples, i32 radius) {
  return (samples + 6 * radius + 31) / 32 + 2;
}

// Writes a span of rows of the planes.
template <class Team>
QPT_FN void fill_planes(const Team& team, const u8* src, i32 samples, i32 radius, Span rows, BitPlanes planes) {
  each(team, rows, planes.stride, [&](i32 y, i32 k) {
    const u8* row = src + static_cast<i64>(y) * samples;
    u32 plane[8] = {};
    QPT_UNROLL(1)
    for (i32 j = 0; j < 32; j += 4) {
      u32 four = 0;
      for (i32 i = 3; i >= 0; --i) {
        const i32 at = 32 * k + j + i - 3 * radius, beyond = at - samples;  // a negative remainder is not wanted
        const i32 inside = at < 0 ? (at + 3 * kMaxMedianRadius) % 3 : beyond >= 0 ? samples - 3 + beyond % 3 : at;
        four = four << 8 | row[inside];
      }
      // The product brings bit 8 i to bit 24 + i; no two of its terms meet.
      for (i32 b = 0; b < 8; ++b) plane[b] |= ((four >> b & 0x01010101u) * 0x01020408u >> 24 & 15u) << j;
    }
    for (i32 b = 0; b < 8; ++b) planes.row(b, y)[k] = plane[b];
  });
}

// Returns, for each bit, the bit of `table` that the bits of a, b and c number: a's is worth 4. One instruction of a
// GPU.
template <u32 table>
QPT_INLINE u32 logic(u32 a, u32 b, u32 c) {
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
  u32 result;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(result) : "r"(a), "r"(b), "r"(c), "n"(table));
  return result;
#else
  u32 result = 0;
  for (u32 number = 0; number < 8; ++number)
    if (table >> number & 1) result |= (number & 4 ? a : ~a) & (number & 2 ? b : ~b) & (number & 1 ? c : ~c);
  return result;
#endif
}

// Returns 32 bits of a number of 64, from bit `shift` mod 32 on.
QPT_INLINE u32 bits_from(u32 low, u32 high, i32 shift) {
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
  return __funnelshift_r(low, high, shift);
#else
  return static_cast<u32>((static_cast<u64>(high) << 32 | low) >> (shift & 31));
#endif
}

// Returns (a < b) of two numbers' bits and of what is below them, for 32 pairs of numbers at once.
QPT_INLINE u32 less_bits(u32 a, u32 b, u32 below) {
  return logic<0x8E>(a, b, below);  // not a and b, or a == b and below
}

// Does the same with the opposite of `below`.
QPT_INLINE u32 less_bits_not(u32 a, u32 b, u32 not_below) {
  return logic<0x4D>(a, b, not_below);
}

// Adds two masks to one bit of 32 counters and returns the carries.
QPT_INLINE u32 add_bits(u32& sum, u32 a, u32 b) {
  const u32 carry = logic<0xE8>(sum, a, b);  // two of three
  sum = logic<0x96>(sum, a, b);              // the exclusive or
  return carry;
}

// Adds four masks to 32 counters of eight bits.
QPT_INLINE void add_four(u32 (&count)[8], const u32 (&mask)[4]) {
  const u32 first = add_bits(count[0], mask[0], mask[1]), second = add_bits(count[0], mask[2], mask[3]);
  u32 carry = add_bits(count[1], first, second);
  for (i32 b = 2; b < 8; ++b) {
    const u32 next = count[b] & carry;
    count[b] ^= carry;
    carry = next;
  }
}

// The medians that one thread computes: in 32 samples of so many rows below each other, whose windows have most rows in
// common, so that a row is shifted into place once for all of them. Three rows would execute 5 % less, but a block
// often has just more tasks of three rows than threads, and ends with most of them idle.
constexpr i32 kMedianRows = 2;

// Finds bit `kBit` of the medians of samples 32 k to 32 k + 31 of rows y, y + 1, ..., whose higher bits are known.
template <i32 kBit>
QPT_INLINE void median_bit(BitPlanes planes, i32 radius, i32 y, i32 k, u32 (&median)[kMedianRows][8]) {
  const i32 taps = 2 * radius + 1, half = taps * taps / 2;
  const i64 step = static_cast<i64>(planes.h) * planes.stride;
  u32 count[kMedianRows][8] = {};  // bit b of the number of smaller values in the windows
  i32 at = y - radius;
  const u32* line = planes.row(0, clamp(at, 0, planes.h - 1)) + k;
  QPT_UNROLL(1)
  for (i32 dy = 0; dy < taps + kMedianRows - 1; ++dy, ++at) {
    const auto is_in = [&](i32 r) { return dy >= r && dy < taps + r; };  // whether row dy is in the window of row r
    // The windows' samples of one column start 3 dx bits after word k: in this word for dx up to 10, then in the next.
    const u32* word = line;
    QPT_UNROLL(1)
    for (i32 dx = 0; dx < taps; ++word) {
      u32 low[8], high[8];
      for (i32 b = kBit; b < 8; ++b) {
        low[b] = word[b * step];
        high[b] = word[b * step + 1];
      }
      const i32 end = dx == 0 ? minimum(taps, 11) : taps;
      u32 less[kMedianRows][4];  // values of four columns, below the median so far and a one
      const auto compare = [&](i32 x) {
        const i32 shift = 3 * (dx + x);
        const u32 lowest = bits_from(low[kBit], high[kBit], shift);  // which is compared with a one
        for (i32 r = 0; r < kMedianRows; ++r) less[r][x] = kBit == 7 ? ~lowest : lowest;
        for (i32 b = kBit + 1; b < 8; ++b) {
          const u32 value = bits_from(low[b], high[b], shift);
          for (i32 r = 0; r < kMedianRows; ++r)
            less[r][x] =
                b == kBit + 1 ? less_bits_not(value, median[r][b], lowest) : less_bits(value, median[r][b], less[r][x]);
        }
      };
      const auto add = [&] {
        for (i32 r = 0; r < kMedianRows; ++r)
          if (is_in(r)) add_four(count[r], less[r]);
      };
      QPT_UNROLL(1)
      for (; dx + 4 <= end; dx += 4) {
        for (i32 x = 0; x < 4; ++x) compare(x);
        add();
      }
      if (dx == end) continue;
      for (i32 x = 1; x < 4; ++x)
        for (i32 r = 0; r < kMedianRows; ++r) less[r][x] = 0;
      compare(0);
      if (dx + 1 < end) compare(1);
      if (dx + 2 < end) compare(2);
      add();
      dx = end;
    }
    if (at >= 0 && at < planes.h - 1) line += planes.stride;
  }
  for (i32 r = 0; r < kMedianRows; ++r) {
    u32 above_half = 0;
    for (i32 b = 0; b < 8; ++b) above_half = less_bits((half >> b & 1) ? ~0u : 0u, count[r][b], above_half);
    median[r][kBit] = ~above_half;
  }
}

// Computes the medians of a span of rows of the planes; the rows above and below them are the first and the last.
template <class Team>
QPT_FN void median_words(const Team& team, BitPlanes planes, i32 radius, Span rows, i32 samples, u8* dst) {
  each(team, (rows.last - rows.first + kMedianRows - 1) / kMedianRows, (samples + 31) / 32, [&](i32 group, i32 k) {
    const i32 y = rows.first + kMedianRows * group;
    u32 median[kMedianRows][8];
    median_bit<7>(planes, radius, y, k, median);
    median_bit<6>(planes, radius, y, k, median);
    median_bit<5>(planes, radius, y, k, median);
    median_bit<4>(planes, radius, y, k, median);
    median_bit<3>(planes, radius, y, k, median);
    median_bit<2>(planes, radius, y, k, median);
    median_bit<1>(planes, radius, y, k, median);
    median_bit<0>(planes, radius, y, k, median);
    const i32 count = minimum(samples - 32 * k, 32);
    for (i32 r = 0; r < kMedianRows; ++r) {
      if (y + r >= rows.last) break;
      u8* out = dst + static_cast<i64>(y + r) * samples + 32 * k;
      QPT_UNROLL(1)
      for (i32 j = 0; j < count; j += 4) {
        u32 four = 0;  // the product brings bit i to bit 8 i
        for (i32 b = 0; b < 8; ++b) four |= ((median[r][b] >> j & 15u) * 0x00204081u & 0x01010101u) << b;
        for (i32 i = 0; i < 4 && j + i < count; ++i) out[j + i] = static_cast<u8>(four >> 8 * i);
      }
    }
  });
}

// The median over a window of 2 radius + 1 pixels a side. p0 = radius_px, an integer in [0, 7].
template <class Team>
QPT_FN void median_blur(Team& team, OpArgs a) {
  const i32 radius = static_cast<i32>(parameter(a.params[0], 0.0f, static_cast<float>(kMaxMedianRadius)) + 0.5f);
  const i32 taps = 2 * radius + 1, half = taps * taps / 2, samples = 3 * a.w, stride = samples + 6 * radius;
  Scratch scratch{static_cast<u8*>(a.scratch)};
  if constexpr (!Team::kSolo) {
    const Span own = rows_of(team, a);
    const i32 words = plane_stride(samples, radius);
    const BitPlanes planes{scratch.take<u32>(static_cast<i64>(8) * a.h * words), a.h, words};
    fill_planes(team, a.src, samples, radius, own, planes);
    team.sync_team();  // planes, written by all, are read by all
    median_words(team, planes, radius, own, samples, a.dst);
  } else {
    u8* padded = scratch.take<u8>(static_cast<i64>(a.h) * stride);
#if QPT_SIMD_ROWS
    constexpr u8 bias = simd::kMedianBias;  // of the padded copy: AVX2 compares signed bytes
#else
    constexpr u8 bias = 0;
#endif
    each(team, a.h, samples, [&](i32 y, i32 i) {
      padded[static_cast<i64>(y) * stride + 3 * radius + i] =
          static_cast<u8>(a.src[static_cast<i64>(y) * samples + i] ^ bias);
    });
    each(team, a.h, 6 * radius, [&](i32 y, i32 i) {
      const bool left = i < 3 * radius;
      const u8* end = a.src + static_cast<i64>(y) * samples + (left ? 0 : samples - 3);
      padded[static_cast<i64>(y) * stride + (left ? i : samples + i)] = static_cast<u8>(end[i % 3] ^ bias);
    });
    // Row by row, so that every loop runs over contiguous samples. The median is the largest value with at most `half`
    // samples below it.
    u8* low = scratch.take<u8>(samples);
    u8* below = scratch.take<u8>(samples);
    for (i32 y = 0; y < a.h; ++y) {
      const u8* rows[2 * kMaxMedianRadius + 1];
      for (i32 dy = 0; dy < taps; ++dy)
        rows[dy] = padded + static_cast<i64>(clamp(y + dy - radius, 0, a.h - 1)) * stride;
#if QPT_SIMD_ROWS
      if (simd::median_row(rows, radius, samples, a.dst + static_cast<i64>(y) * samples)) continue;
#endif
      for (i32 i = 0; i < samples; ++i) low[i] = 0;
      for (i32 bit = 128; bit > 0; bit >>= 1) {
        for (i32 i = 0; i < samples; ++i) below[i] = 0;
        for (i32 dy = 0; dy < taps; ++dy)
          for (i32 dx = 0; dx < taps; ++dx) {
            const u8* p = rows[dy] + 3 * dx;
            QPT_INDEPENDENT
            for (i32 i = 0; i < samples; ++i)
              below[i] =
                  static_cast<u8>(below[i] + (static_cast<u8>(p[i] ^ bias) < static_cast<u8>(low[i] | bit) ? 1 : 0));
          }
        for (i32 i = 0; i < samples; ++i) low[i] = static_cast<u8>(low[i] | (below[i] <= half ? bit : 0));
      }
      for (i32 i = 0; i < samples; ++i) a.dst[static_cast<i64>(y) * samples + i] = low[i];
    }
  }
}

// The padded image and two rows of a team of one, else the planes.
QPT_FN i64 median_bytes(i32 h, i32 w, i32 blocks) {
  const i64 row = static_cast<i64>(3) * w;
  if (blocks != kSoloBlocks) return taken_bytes<u32>(static_cast<i64>(8) * h * plane_stride(3 * w, kMaxMedianRadius));
  return taken_bytes<u8>(h * (row + 6 * kMaxMedianRadius)) + 2 * taken_bytes<u8>(row);
}

}  // namespace qpt
