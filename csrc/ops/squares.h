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

struct Corner {
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
