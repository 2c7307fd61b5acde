// Glass (texture family): every pixel from a place nearby, drawn for each at once, or one pixel after another. Listed
// in table.h; parameters in qpt/degradations/rows.
#pragma once
#include "warp.h"

namespace qpt {

constexpr i32 kMaxGlass = 16;

// Reads every pixel from up to p0 = delta_px rows and columns away, then applies a Gaussian blur of p1 = sigma_px.
// Words x and y of counter p give the row and column offsets of pixel p.
template <class Team>
QPT_FN void glass_blur(Team& team, OpArgs a) {
  const i32 reach = static_cast<i32>(parameter(a.params[0], 0.0f, static_cast<float>(kMaxGlass)) + 0.5f);
  const float sigma = parameter(a.params[1], 0.05f, 8.0f);
  Scratch scratch{static_cast<u8*>(a.scratch)};
  u8* moved = scratch.take<u8>(static_cast<i64>(a.h) * a.w * 3);
  const auto move = [&](i32 y, i32 x, Philox4 words) {
    const i32 from_y = clamp(y + offset_within(words.x, reach), 0, a.h - 1);
    const i32 from_x = clamp(x + offset_within(words.y, reach), 0, a.w - 1);
    const u8* from = a.src + (static_cast<i64>(from_y) * a.w + from_x) * 3;
    u8* to = moved + (static_cast<i64>(y) * a.w + x) * 3;
    to[0] = from[0];
    to[1] = from[1];
    to[2] = from[2];
  };
  const auto counter_of = [&](i32 y, i32 x) { return (y + a.top) * a.full_w + x + a.left; };
  if constexpr (Team::kSolo) {
    for (i32 y = 0; y < a.h; ++y) {
      const i32 first = counter_of(y, 0);
      with_words(team, a, kTagGlass, {first, first + a.w}, [&](i32 p, Philox4 words) { move(y, p - first, words); });
    }
  } else {
    each(team, rows_of(team, a), a.w, [&](i32 y, i32 x) { move(y, x, op_words(a, kTagGlass, counter_of(y, x))); });
  }
  // Not synced: the first barrier of separable_blur comes before any member reads moved, of the block's own rows.
  a.src = moved;
  a.scratch = scratch.next;
  separable_blur(team, a, gaussian_radius(sigma), GaussianTap{sigma});
}

QPT_FN i64 glass_bytes(i32 h, i32 w, i32 blocks) {
  return taken_bytes<u8>(static_cast<i64>(h) * w * 3) + blur_bytes(h, w, blocks);
}

// The offset that a scan reads a pixel at: rows down and columns right, both plus `reach`.
struct Choice {
  u8 down, right;
};

// Returns the choice of a pixel: words x and y of the counter of its number give a uniform one of 2 reach each.
QPT_INLINE Choice choice_of(Philox4 words, i32 reach) {
  const u64 choices = 2 * static_cast<u64>(reach);
  return {static_cast<u8>((words.x * choices) >> 32), static_cast<u8>((words.y * choices) >> 32)};
}

// Returns where a scan that replaces pixels one after another, from the last row up and in a row from the right, finds
// the colour of pixel (y, x): it reads the pixel at an offset of -reach to reach - 1 rows and columns, and one that it
// has passed has been replaced before. The scan leaves `reach` pixels out at the border. choice_at(p) is the choice of
// pixel p.
struct Place {
  i32 y, x;
};
template <class ChoiceAt>
QPT_INLINE Place scanned_from(const OpArgs& a, i32 reach, i32 y, i32 x, ChoiceAt choice_at) {
  const auto scanned = [&](i32 i, i32 n) { return i > reach && i <= n - reach; };
  while (scanned(y, a.h) && scanned(x, a.w)) {
    const Choice choice = choice_at(y * a.w + x);
    const i32 down = choice.down - reach, right = choice.right - reach;
    y += down;
    x += right;
    if (down < 0 || (down == 0 && right <= 0)) break;
  }
  return {y, x};
}

// What glass_shuffle takes before the scratch of the blur: an image, and the choices of two scans.
QPT_FN i64 glass_shuffle_own_bytes(i32 h, i32 w) {
  const i64 pixels = static_cast<i64>(h) * w;
  return taken_bytes<u8>(3 * pixels) + 2 * taken_bytes<Choice>(pixels);
}

// Applies a Gaussian blur of p1 = sigma_px.
template <class Team>
QPT_CALLED void blur_by_second(QPT_TEAM(Team) team, OpArgs a) {
  const float sigma = parameter(a.params[1], 0.05f, 8.0f);
  separable_blur(team, a, gaussian_radius(sigma), GaussianTap{sigma});
}

// Blurs by p1 = sigma_px, rounded to 8 bits; scans the image p2 = rounds times with p0 = delta_px; blurs again.
template <class Team>
QPT_FN void glass_shuffle(Team& team, OpArgs a) {
  a.top = a.left = 0;  // the image is whole
  a.full_h = a.h;
  a.full_w = a.w;
  // Parameters are read again where they are needed: kept through a blur, they would cost it GPU registers.
  const auto rounds = [&] {
    return static_cast<i32>(parameter(a.params[2], 0.0f, static_cast<float>(kMaxRounds)) + 0.5f);
  };
  const auto reach = [&] {
    return static_cast<i32>(parameter(a.params[0], 1.0f, static_cast<float>(kMaxGlass)) + 0.5f);
  };
  const auto pixels = [&] { return static_cast<i64>(a.h) * a.w; };
  // The image that so many scans from the last one reads or writes; the last one writes to scratch.
  const auto image = [&](i32 scans_left) { return scans_left % 2 == 0 ? static_cast<u8*>(a.scratch) : a.dst; };
  // The choices of a scan, of two in turn: those of the next are drawn while others still read those of this one. A
  // thread's neighbours follow paths of other lengths, so that drawing on the way would make it wait.
  const auto choices = [&](i32 round) {
    return reinterpret_cast<Choice*>(static_cast<u8*>(a.scratch) + taken_bytes<u8>(3 * pixels()) +
                                     (round & 1) * taken_bytes<Choice>(pixels()));
  };
  const auto draw = [&](i32 round) {
    Choice* const drawn = choices(round);
    const i32 within = reach();
    with_words(team, a, kTagGlassRounds + static_cast<u32>(round), rows_of(team, a).times(a.w),
               [&](i32 p, Philox4 words) QPT_BODY { drawn[p] = choice_of(words, within); });
  };
  QPT_UNROLL(1)
  for (i32 pass = 0; pass < 2; ++pass) {
    OpArgs blurred = a;
    blurred.scratch = static_cast<u8*>(a.scratch) + glass_shuffle_own_bytes(a.h, a.w);
    if (pass == 0)
      blurred.dst = image(rounds());
    else
      blurred.src = image(0);
    blur_by_second<Team>(team, blurred);
    if (pass == 1) return;
    draw(0);
    team.sync_team();  // the blurred image and the choices, written by all, are read by all
    QPT_UNROLL(1)
    for (i32 left = rounds(); left > 0; --left) {
      const i32 round = rounds() - left, within = reach();
      const u8* const from = image(left);
      u8* const to = image(left - 1);
      const Choice* const drawn = choices(round);
      each(team, rows_of(team, a), a.w, [&](i32 y, i32 x) {
        const Place at = scanned_from(a, within, y, x, [&](i32 p) { return drawn[p]; });
        for (i32 c = 0; c < 3; ++c) to[(y * a.w + x) * 3 + c] = from[(at.y * a.w + at.x) * 3 + c];
      });
      if (left == 1) break;
      draw(round + 1);
      // The scan's image and the next choices, written by all, are read by all. After the last scan the first barrier
      // of separable_blur comes before any member reads its image, of the block's own rows.
      team.sync_team();
    }
  }
}

QPT_FN i64 glass_shuffle_bytes(i32 h, i32 w, i32 blocks) {
  return glass_shuffle_own_bytes(h, w) + blur_bytes(h, w, blocks);
}

}  // namespace qpt
