// JPEG (texture family): the lossy part of libjpeg-turbo's baseline 4:2:0 round trip, as Pillow's save(quality=q) and
// load give it: JFIF YCbCr rounded to 8 bits, h2v2 average with alternating bias, integer DCT (dct.h), quantisation by
// the ITU-T T.81 tables scaled by quality, the inverses, triangle ("fancy") chroma upsampling, RGB. Entropy coding is
// lossless and left out. Everything is computed in integers, but for a quotient in `requantise` that is exact. Listed
// in table.h.
#pragma once
#include "dct.h"
#include "op.h"

namespace qpt {

// The quantisation tables of ITU-T T.81 annex K.1, row by row: luminance, then chrominance.
QPT_CONSTANT u8 kQuantTables[128] = {
    16,  11,  10,  16,  24, 40, 51, 61, 12,  12,  14,  19,  26,  58, 60, 55, 14, 13, 16, 24,  40,  57, 69, 56, 14, 17,
    22,  29,  51,  87,  80, 62, 18, 22, 37,  56,  68,  109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87,
    103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,  17,  18, 24, 47, 99, 99, 99, 99,  18,  21, 26, 66, 99, 99,
    99,  99,  24,  26,  56, 99, 99, 99, 99,  99,  47,  66,  99,  99, 99, 99, 99, 99, 99, 99,  99,  99, 99, 99, 99, 99,
    99,  99,  99,  99,  99, 99, 99, 99, 99,  99,  99,  99,  99,  99, 99, 99, 99, 99, 99, 99,  99,  99, 99, 99};

constexpr i32 kTileMcus = 16;                  // 16 x 16 px units that are transformed between barriers
constexpr i32 kTileLanes = kTileMcus * 6 * 8;  // one lane per row or column of an 8 x 8 block

// The three planes, padded to whole 16 x 16 units. Chroma exists at full size and at half size, which is the coded one.
struct Planes {
  u8 *luma, *cb, *cr;     // [high, wide]
  u8 *half_cb, *half_cr;  // [high / 2, wide / 2]
  i32 wide, high;
};

QPT_INLINE i32 round_up16(i32 x) {
  return (x + 15) / 16 * 16;
}

// Converts RGB to YCbCr in 16-bit fixed point, replicates luma into the padding and halves the chroma. Whole units are
// the block's own, so that it reads no other's planes.
template <class Team>
QPT_FN void to_planes(const Team& team, OpArgs a, Planes planes) {
  const Span own = share(team, planes.high, 16), rows{minimum(own.first, a.h), minimum(own.last, a.h)};
  each(team, rows, a.w, [&](i32 y, i32 x) {
    const u8* p = a.src + (static_cast<i64>(y) * a.w + x) * 3;
    const i32 r = p[0], g = p[1], b = p[2];
    const i64 at = static_cast<i64>(y) * planes.wide + x;
    planes.luma[at] = static_cast<u8>((19595 * r + 38470 * g + 7471 * b + 32768) >> 16);
    planes.cb[at] = static_cast<u8>((-11059 * r - 21709 * g + 32768 * b + (128 << 16) + 32767) >> 16);
    planes.cr[at] = static_cast<u8>((32768 * r - 27439 * g - 5329 * b + (128 << 16) + 32767) >> 16);
  });
  team.sync();  // the planes' image part, written by all, is read below for padding and averages
  each(team, rows, planes.wide - a.w, [&](i32 y, i32 x) {
    u8* row = planes.luma + static_cast<i64>(y) * planes.wide;
    row[a.w + x] = row[a.w - 1];
  });
  each(team, Span{maximum(own.first, a.h), own.last}, planes.wide, [&](i32 y, i32 x) {
    planes.luma[static_cast<i64>(y) * planes.wide + x] =
        planes.luma[static_cast<i64>(a.h - 1) * planes.wide + minimum(x, a.w - 1)];
  });
  // Sums of 2 x 2 with bias 1, 2, 1, 2... along a row, as libjpeg's h2v2_downsample has them. An odd last row counts
  // twice; the rows below repeat the last average.
  const i32 half_h = (a.h + 1) / 2, whole = a.w / 2;
  const auto halve = [&](i32 y, i32 x, i32 x0, i32 x1) {
    const i32 source = minimum(y, half_h - 1);
    const i64 row0 = static_cast<i64>(2 * source) * planes.wide;
    const i64 row1 = static_cast<i64>(minimum(2 * source + 1, a.h - 1)) * planes.wide;
    const i64 at = static_cast<i64>(y) * (planes.wide / 2) + x;
    const i32 bias = 1 + (x & 1);
    planes.half_cb[at] = static_cast<u8>(
        (planes.cb[row0 + x0] + planes.cb[row0 + x1] + planes.cb[row1 + x0] + planes.cb[row1 + x1] + bias) >> 2);
    planes.half_cr[at] = static_cast<u8>(
        (planes.cr[row0 + x0] + planes.cr[row0 + x1] + planes.cr[row1 + x0] + planes.cr[row1 + x1] + bias) >> 2);
  };
  const Span half{own.first / 2, own.last / 2};
  each(team, half, whole, [&](i32 y, i32 x) { halve(y, x, 2 * x, 2 * x + 1); });
  each(team, half, planes.wide / 2 - whole,
       [&](i32 y, i32 x) { halve(y, whole + x, minimum(2 * (whole + x), a.w - 1), a.w - 1); });
}

// Quantises and restores a coefficient: sign(x) * ((|x| + 4 q) / (8 q)) * q, with inverse = 1 / (8 q) as a float. Half
// a unit is added, so that the quotient is at least 1 / (16 q) from an integer. The roundings, below 2^-22 of it,
// cannot reach one as long as |x| + 4 q < 2^20, and coefficients are below 2^15.
QPT_INLINE i32 requantise(i32 x, i32 q, float inverse) {
  const i32 rounded = (x < 0 ? -x : x) + 4 * q;
  const i32 level = static_cast<i32>((static_cast<float>(rounded) + 0.5f) * inverse);
  return (x < 0 ? -level : level) * q;
}

struct Block {
  u8* pixels;
  i32 stride;
};

// Returns block `block` of a tile of `mcus` units at unit row my, unit column mx. The blocks of a tile are those of
// upper luma, lower luma, Cb, Cr.
QPT_INLINE Block find_block(Planes planes, i32 my, i32 mx, i32 mcus, i32 block) {
  if (block < 4 * mcus) {
    const i32 lower = block >= 2 * mcus ? 1 : 0;
    const i32 column = block - lower * 2 * mcus;
    return {planes.luma + static_cast<i64>(16 * my + 8 * lower) * planes.wide + 16 * mx + 8 * column, planes.wide};
  }
  const bool red = block >= 5 * mcus;
  const i32 column = block - (red ? 5 : 4) * mcus, stride = planes.wide / 2;
  return {(red ? planes.half_cr : planes.half_cb) + static_cast<i64>(8 * my) * stride + 8 * (mx + column), stride};
}

// Reads the blocks of a tile into `lanes`: element k of row r of a block is at [k * kTileLanes + 8 * block + r]. Their
// samples are centred on 0.
template <class Team>
QPT_INLINE void load_blocks(const Team& team, Planes planes, i32 my, i32 mx, i32 mcus, i32* lanes) {
#if QPT_SIMD_ROWS
  if constexpr (Team::kSolo) {
    for (i32 block = 0; block < 6 * mcus; ++block) {
      const Block at = find_block(planes, my, mx, mcus, block);
      simd::load_block(at.pixels, at.stride, lanes + 8 * block, kTileLanes);
    }
    return;
  }
#endif
  each(team, 6 * mcus, 8, [&](i32 block, i32 r) {
    const Block at = find_block(planes, my, mx, mcus, block);
    const u8* p = at.pixels + static_cast<i64>(r) * at.stride;
    for (i32 k = 0; k < 8; ++k) lanes[k * kTileLanes + 8 * block + r] = p[k] - 128;
  });
}

// Writes them back.
template <class Team>
QPT_INLINE void store_blocks(const Team& team, Planes planes, i32 my, i32 mx, i32 mcus, const i32* lanes) {
#if QPT_SIMD_ROWS
  if constexpr (Team::kSolo) {
    for (i32 block = 0; block < 6 * mcus; ++block) {
      const Block at = find_block(planes, my, mx, mcus, block);
      simd::store_block(lanes + 8 * block, kTileLanes, at.pixels, at.stride);
    }
    return;
  }
#endif
  each(team, 6 * mcus, 8, [&](i32 block, i32 r) {
    const Block at = find_block(planes, my, mx, mcus, block);
    u8* p = at.pixels + static_cast<i64>(r) * at.stride;
    for (i32 k = 0; k < 8; ++k) p[k] = static_cast<u8>(clamp(lanes[k * kTileLanes + 8 * block + r] + 128, 0, 255));
  });
}

// Transposes the blocks of a tile.
template <class Team>
QPT_INLINE void transpose_blocks(const Team& team, i32 blocks, const i32* in, i32* out) {
#if QPT_SIMD_ROWS
  if constexpr (Team::kSolo) {
    for (i32 block = 0; block < blocks; ++block) simd::transpose_block(in + 8 * block, out + 8 * block, kTileLanes);
    return;
  }
#endif
  each(team, blocks, 8, [&](i32 block, i32 lane) {
    for (i32 k = 0; k < 8; ++k) out[k * kTileLanes + 8 * block + lane] = in[lane * kTileLanes + 8 * block + k];
  });
}

// Applies DCT, quantisation and inverse DCT to one tile, in place. by_row and by_column hold element k of lane l at
// [k * kTileLanes + l]. A lane is (block, row) in the first and (block, column) in the second, so every 1-D transform
// runs over contiguous lanes.
template <class Team>
QPT_FN void transform_tile(const Team& team, Planes planes, i32 my, i32 mx, i32 mcus, const i32* quant,
                           const float* inverse, i32* by_row, i32* by_column) {
  const i32 blocks = 6 * mcus;
  // A member has the same lanes in every loop below, so only the transpositions need barriers.
  load_blocks(team, planes, my, mx, mcus, by_row);
  each(team, 8 * blocks, [&](i32 lane) {
    store_eight(by_row + lane, kTileLanes, forward_dct<true>(load_eight(by_row + lane, kTileLanes)));
  });
  team.sync();  // rows of a block, transformed by their members, are read by the members of its columns
  transpose_blocks(team, blocks, by_row, by_column);
  each(team, blocks, 8, [&](i32 block, i32 column) QPT_BODY {
    i32* lane = by_column + 8 * block + column;
    const i32 table = (block < 4 * mcus ? 0 : 64) + column;
    const auto again = [&](i32 x, i32 row) { return requantise(x, quant[table + 8 * row], inverse[table + 8 * row]); };
    Eight x = forward_dct<false>(load_eight(lane, kTileLanes));
    x = {again(x.v0, 0), again(x.v1, 1), again(x.v2, 2), again(x.v3, 3),
         again(x.v4, 4), again(x.v5, 5), again(x.v6, 6), again(x.v7, 7)};
    store_eight(lane, kTileLanes, inverse_dct<true>(x));
  });
  team.sync();  // columns of a block, restored by their members, are read by those of its rows; all have read by_row
  transpose_blocks(team, blocks, by_column, by_row);
  each(team, 8 * blocks, [&](i32 lane) {
    store_eight(by_row + lane, kTileLanes, inverse_dct<false>(load_eight(by_row + lane, kTileLanes)));
  });
  store_blocks(team, planes, my, mx, mcus, by_row);
}

// Brings halved chroma to full size: weights 9 3 3 1 / 16, halves rounded down and up in turn, as libjpeg-turbo's
// h2v2_fancy_upsample has them. Images up to 4 px wide repeat pixels.
template <class Team>
QPT_FN void upsample(const Team& team, OpArgs a, Planes planes) {
  const i32 half_h = (a.h + 1) / 2, half_w = (a.w + 1) / 2, stride = planes.wide / 2;
  if (half_w <= 2) {
    each(team, rows_of(team, a), a.w, [&](i32 y, i32 x) {
      const i64 to = static_cast<i64>(y) * planes.wide + x, from = static_cast<i64>(y / 2) * stride + x / 2;
      planes.cb[to] = planes.half_cb[from];
      planes.cr[to] = planes.half_cr[from];
    });
    return;
  }
  // left, right: the neighbouring columns, or the column itself at an edge.
  const auto widen = [&](const u8* half, u8* full, i32 y, i32 x, i32 left, i32 right) {
    const u8* near = half + static_cast<i64>(y / 2) * stride;
    const u8* far = half + static_cast<i64>(clamp(y / 2 + ((y & 1) ? 1 : -1), 0, half_h - 1)) * stride;
    const i32 sum = 3 * near[x] + far[x];
    u8* out = full + static_cast<i64>(y) * planes.wide + 2 * x;
    out[0] = static_cast<u8>((3 * sum + 3 * near[left] + far[left] + 8) >> 4);
    out[1] = static_cast<u8>((3 * sum + 3 * near[right] + far[right] + 7) >> 4);
  };
  each_in_runs<32>(team, rows_of(team, a), half_w - 2, [&](i32 y, i32 x) {
    widen(planes.half_cb, planes.cb, y, x + 1, x, x + 2);
    widen(planes.half_cr, planes.cr, y, x + 1, x, x + 2);
  });
  each(team, rows_of(team, a), 2, [&](i32 y, i32 side) {
    const i32 x = side ? half_w - 1 : 0, left = side ? x - 1 : 0, right = side ? x : 1;
    widen(planes.half_cb, planes.cb, y, x, left, right);
    widen(planes.half_cr, planes.cr, y, x, left, right);
  });
}

// The JPEG round trip. p0 = quality, 1 to 100.
template <class Team>
QPT_FN void jpeg(Team& team, OpArgs a) {
  const i32 quality = static_cast<i32>(parameter(a.params[0], 1.0f, 100.0f) + 0.5f);
  const i32 percent = quality < 50 ? 5000 / quality : 200 - 2 * quality;
  Scratch scratch{static_cast<u8*>(a.scratch)};
  Planes planes;
  planes.wide = round_up16(a.w);
  planes.high = round_up16(a.h);
  const i64 area = static_cast<i64>(planes.wide) * planes.high;
  i32* quant = scratch.take_own<i32>(team, 128);
  float* inverse = scratch.take_own<float>(team, 128);
  i32* by_row = scratch.take_own<i32>(team, 8 * kTileLanes);
  i32* by_column = scratch.take_own<i32>(team, 8 * kTileLanes);
  planes.luma = scratch.take<u8>(area);
  planes.cb = scratch.take<u8>(area);
  planes.cr = scratch.take<u8>(area);
  planes.half_cb = scratch.take<u8>(area / 4);
  planes.half_cr = scratch.take<u8>(area / 4);

  each(team, 128, [&](i32 i) {
    quant[i] = clamp((kQuantTables[i] * percent + 50) / 100, 1, 255);
    inverse[i] = 1.0f / static_cast<float>(8 * quant[i]);
  });
  to_planes(team, a, planes);
  team.sync();  // quant, inverse and the padded planes, written by all, are read by blocks
  const Span units = share(team, planes.high / 16);
  for (i32 my = units.first; my < units.last; ++my)
    for (i32 mx = 0; mx < planes.wide / 16; mx += kTileMcus)
      transform_tile(team, planes, my, mx, minimum(kTileMcus, planes.wide / 16 - mx), quant, inverse, by_row,
                     by_column);
  team.sync_team();  // restored planes, written unit by unit, are read across units
  upsample(team, a, planes);
  team.sync();  // full-size chroma, written by all, is read per pixel
  each(team, rows_of(team, a), a.w, [&](i32 y, i32 x) {
    const i64 at = static_cast<i64>(y) * planes.wide + x;
    const i32 luma = planes.luma[at], cb = planes.cb[at] - 128, cr = planes.cr[at] - 128;
    u8* p = a.dst + (static_cast<i64>(y) * a.w + x) * 3;
    p[0] = static_cast<u8>(clamp(luma + ((91881 * cr + 32768) >> 16), 0, 255));
    p[1] = static_cast<u8>(clamp(luma + ((-22554 * cb - 46802 * cr + 32768) >> 16), 0, 255));
    p[2] = static_cast<u8>(clamp(luma + ((116130 * cb + 32768) >> 16), 0, 255));
  });
}

QPT_FN i64 jpeg_bytes(i32 h, i32 w, i32 blocks) {
  const i64 area = static_cast<i64>(round_up16(w)) * round_up16(h);
  return own_bytes<i32>(128, blocks) + own_bytes<float>(128, blocks) + 2 * own_bytes<i32>(8 * kTileLanes, blocks) +
         3 * taken_bytes<u8>(area) + 2 * taken_bytes<u8>(area / 4);
}

}  // namespace qpt
