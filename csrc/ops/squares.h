// Ops that paint squares one after another (geometry family): copies from nearby and blocks of one colour. Square n
// takes the four words of Philox counter n; a later square covers an earlier one. Listed in table.h; parameters in
// qpt/degradations/rows/geometry.py.
#pragma once
#include "warp.h"

namespace qpt {

constexpr i32 kMaxSquares = 1024;

// Maps a word to an integer in [0, choices).
QPT_INLINE i32 integer_below(u32 word, i32 choices) {
  return static_cast<i32>((static_cast<u64>(word) * static_cast<u64>(choices)) >> 32);
}

struct alignas(8) Corner {  // which a GPU loads at once
  i32 top, left;
};

// Copies the image, then paints `count` squares of side_px, cut to an image that is smaller. Corners are uniform over
// the image, and painted_at(words, corner) is where a square goes; paint(words, corner, y, x, to) writes its pixel (y,
// x) to `to`.
template <class Team, class PaintedAt, class Paint>
QPT_FN void with_squares(const Team& team, OpArgs a, u32 tag, i32 count, i32 side_px, PaintedAt painted_at,
                         Paint paint) {
  const Span own = rows_of(team, a);
  each(team, own, 3 * a.w, [&](i32 y, i32 i) {
    const i64 at = static_cast<i64>(y) * 3 * a.w + i;
    a.dst[at] = a.src[at];
  });
  const i32 rows = minimum(side_px, a.h), columns = minimum(side_px, a.w);
  for (i32 n = 0; n < count; ++n) {
    const Philox4 words = op_words(a, tag, n);
    const Corner from{integer_below(words.x, a.h - rows + 1), integer_below(words.y, a.w - columns + 1)};
    const Corner to = painted_at(words, from);
    const Span here{maximum(own.first - to.top, 0), minimum(own.last - to.top, rows)};
    if (here.first >= here.last) continue;
    team.sync();  // the copy or an earlier square, written by all, is covered by all
    each(team, here, columns, [&](i32 y, i32 x) {
      paint(words, from, y, x, a.dst + (static_cast<i64>(to.top + y) * a.w + to.left + x) * 3);
    });
  }
}

QPT_INLINE void put_pixel(u8* to, u8 red, u8 green, u8 blue) {
  to[0] = red;
  to[1] = green;
  to[2] = blue;
}

constexpr i32 kCopiedSide = 16, kCopiedReach = 8;

// Copies squares of 16 px to places up to 8 rows and columns away, uniformly, within the image. p0 (`patches`) is their
// number.
template <class Team>
QPT_FN void non_eccentricity_patch(Team& team, OpArgs a) {
  const i32 count = static_cast<i32>(nearest(parameter(a.params[0], 0.0f, static_cast<float>(kMaxSquares))));
  const i32 last_top = a.h - minimum(kCopiedSide, a.h), last_left = a.w - minimum(kCopiedSide, a.w);
  with_squares(
      team, a, kTagCopiedSquare, count, kCopiedSide,
      [&](Philox4 words, Corner corner) {
        return Corner{clamp(corner.top + offset_within(words.z, kCopiedReach), 0, last_top),
                      clamp(corner.left + offset_within(words.w, kCopiedReach), 0, last_left)};
      },
      [&](Philox4, Corner corner, i32 y, i32 x, u8* to) {
        const u8* from = a.src + (static_cast<i64>(corner.top + y) * a.w + corner.left + x) * 3;
        put_pixel(to, from[0], from[1], from[2]);
      });
}

// Copies squares of 16 px within the result so far, by up to 8 rows and columns. Their corners lie 16 px inside the
// image where it is large enough; a distance is a uniform number in [-8, 8], rounded. p0 (`patches`) is their number.
// p1 = 1: a square is copied row by row from its top, so that one that moves down reads rows that it has just written.
template <class Team>
QPT_FN void patch_shuffle(Team& team, OpArgs a) {
  const i32 count = static_cast<i32>(nearest(parameter(a.params[0], 0.0f, static_cast<float>(kMaxSquares))));
  const bool in_place = parameter(a.params[1], 0.0f, 1.0f) >= 0.5f;
  Scratch scratch{static_cast<u8*>(a.scratch)};
  Corner *from = scratch.take_own<Corner>(team, kMaxSquares), *to = scratch.take_own<Corner>(team, kMaxSquares);
  const i32 rows = minimum(kCopiedSide, a.h), columns = minimum(kCopiedSide, a.w);
  // Returns a uniform corner along a side whose last one is `last`.
  const auto corner = [](u32 word, i32 last) {
    const i32 inner = minimum(kCopiedSide, last / 2);
    return inner + integer_below(word, maximum(last - inner - kCopiedSide, 0) + 1);
  };
  const auto moved = [](i32 place, u32 word, i32 last) {
    return clamp(place + (integer_below(word, 4 * kCopiedReach) + 1) / 2 - kCopiedReach, 0, last);
  };
  each(team, count, [&](i32 n) {
    const Philox4 words = op_words(a, kTagShuffledSquare, n);
    from[n] = {corner(words.x, a.h - rows), corner(words.y, a.w - columns)};
    to[n] = {moved(from[n].top, words.z, a.h - rows), moved(from[n].left, words.w, a.w - columns)};
  });
  team.sync();                  // corners, one member each, are read by all
  if constexpr (Team::kSolo) {  // square by square, as it is defined
    const i64 stride = 3 * static_cast<i64>(a.w);
    each(team, a.h, 3 * a.w, [&](i32 y, i32 i) { a.dst[y * stride + i] = a.src[y * stride + i]; });
    u8 held[3 * kCopiedSide * kCopiedSide];
    const i32 at_once = in_place ? 1 : rows, bytes = 3 * columns;
    for (i32 n = 0; n < count; ++n)
      for (i32 first = 0; first < rows; first += at_once) {
        const u8* const source = a.dst + (from[n].top + first) * stride + 3 * from[n].left;
        u8* const target = a.dst + (to[n].top + first) * stride + 3 * to[n].left;
        each(team, at_once, bytes, [&](i32 y, i32 i) { held[y * bytes + i] = source[y * stride + i]; });
        each(team, at_once, bytes, [&](i32 y, i32 i) { target[y * stride + i] = held[y * bytes + i]; });
      }
    return;
  }
  // A pixel is traced back through the squares that it was copied by, the last one first.
  each(team, rows_of(team, a), a.w, [&](i32 row, i32 column) {
    i32 y = row, x = column;
    for (const Corner* at = to + count; at != to;) {
      const Corner painted = *--at;
      i32 in_y = y - painted.top, in_x = x - painted.left;
      // Unsigned, what is negative is large. Most squares are elsewhere: one branch for both sides.
      if ((static_cast<u32>(in_y) >= static_cast<u32>(rows)) | (static_cast<u32>(in_x) >= static_cast<u32>(columns)))
        continue;
      const Corner copied = from[at - to];
      const i32 down = painted.top - copied.top, right = painted.left - copied.left;
      // Where the row above by `down` was written before, the pixel is the one that was copied there.
      while (in_place && down > 0 && in_y >= down && in_x >= right && in_x - right < columns) {
        in_y -= down;
        in_x -= right;
      }
      y = copied.top + in_y;
      x = copied.left + in_x;
    }
    const u8* source = a.src + (static_cast<i64>(y) * a.w + x) * 3;
    put_pixel(a.dst + (static_cast<i64>(row) * a.w + column) * 3, source[0], source[1], source[2]);
  });
}

QPT_FN i64 shuffle_bytes(i32, i32, i32 blocks) {
  return 2 * own_bytes<Corner>(kMaxSquares, blocks);
}

constexpr i32 kBlockSide = 32;

// Paints squares of 32 px, each of one colour, whose R, G and B are the highest three bytes of its third word. p0
// (`blocks`) is their number.
template <class Team>
QPT_FN void colour_block(Team& team, OpArgs a) {
  const i32 count = static_cast<i32>(nearest(parameter(a.params[0], 0.0f, static_cast<float>(kMaxSquares))));
  with_squares(
      team, a, kTagBlock, count, kBlockSide, [](Philox4, Corner corner) { return corner; },
      [](Philox4 words, Corner, i32, i32, u8* to) {
        put_pixel(to, static_cast<u8>(words.z >> 24), static_cast<u8>(words.z >> 16), static_cast<u8>(words.z >> 8));
      });
}

}  // namespace qpt
