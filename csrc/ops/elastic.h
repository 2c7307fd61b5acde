// Elastic deformation (geometry family): every pixel is read at a position displaced by smooth noise and by a small
// random affine map, bilinear, with reflect-101 borders. The noise is an image that is blurred a band of rows at a
// time, so the displacement field is never stored. Listed in table.h; parameters in qpt/degradations/rows/geometry.py.
#pragma once
#include "noise.h"
#include "sharpen.h"

namespace qpt {

constexpr u32 kTagElastic = 32;
constexpr u32 kTagElasticCorners = 33;

QPT_INLINE i32 floor_to_int(float x) {
  const i32 whole = static_cast<i32>(x);
  return whole - (static_cast<float>(whole) > x ? 1 : 0);
}

// reflect101 without a division for positions inside the image, which most are.
QPT_INLINE i32 mirrored(i32 i, i32 n) {
  return i >= 0 && i < n ? i : reflect101(i, n);
}

// p0 = alpha_px, p1 = sigma_px in (0, 8], p2 = affine_px. The noise of a pixel is bytes 0 (down) and 1 (right) of its
// word, 256 steps from -1 to 1; it is blurred by sigma and multiplied by alpha. The affine map moves three points, a
// third of the shorter side from the centre, by up to affine_px along each axis.
template <class Team>
QPT_FN void elastic(Team& team, OpArgs a) {
  const float alpha = parameter(a.params[0], 0.0f, 512.0f) / 127.5f, sigma = parameter(a.params[1], 0.05f, 8.0f);
  const float affine = parameter(a.params[2], 0.0f, 64.0f);
  Scratch scratch{static_cast<u8*>(a.scratch)};
  u8* noise = scratch.take<u8>(static_cast<i64>(a.h) * a.w * 2);
  float* moves = scratch.take_own<float>(team, 8);  // of the three points, (down, right); the last two are not used
  const Span own = rows_of(team, a).times(a.w);
  each(team, Span{own.first / kNoiseElements, noise_blocks(own.last)}, kNoiseLanes, [&](i32 block, i32 lane) {
    const Philox4 words = noise_words(a, kTagElastic, block, lane);
    const auto pixel = [&](i32 p, u32 word) {
      if (p < own.first || p >= own.last) return;
      noise[2 * p] = static_cast<u8>(word);
      noise[2 * p + 1] = static_cast<u8>(word >> 8);
    };
    const i32 first = kNoiseElements * block + lane;
    pixel(first, words.x);
    pixel(first + kNoiseLanes, words.y);
    pixel(first + 2 * kNoiseLanes, words.z);
    pixel(first + 3 * kNoiseLanes, words.w);
  });
  each(team, 2, [&](i32 i) {
    const Philox4 words = op_words(a, kTagElasticCorners, i);
    moves[4 * i] = affine * (2.0f * to_unit(words.x) - 1.0f);
    moves[4 * i + 1] = affine * (2.0f * to_unit(words.y) - 1.0f);
    moves[4 * i + 2] = affine * (2.0f * to_unit(words.z) - 1.0f);
    moves[4 * i + 3] = affine * (2.0f * to_unit(words.w) - 1.0f);
  });
  // Not synced: the blur's first barrier comes before any member reads the noise, of the block's own rows, or the
  // moves.
  const float centre_y = 0.5f * static_cast<float>(a.h - 1), centre_x = 0.5f * static_cast<float>(a.w - 1);
  const float per_side = 1.0f / maximum(static_cast<float>(minimum(a.h, a.w)) / 3.0f, 1.0f);
  OpArgs field = a;
  field.src = noise;
  field.scratch = scratch.next;
  with_gaussian_blur(
      team, field, Samples<2>(field), gaussian_radius(sigma), sigma, [&](i32 start, i32 count, const float* blurred) {
        each(team, count, [&](i32 i) {
          const i32 p = start + i, y = p / a.w, x = p - y * a.w;
          const float v = (static_cast<float>(y) - centre_y) * per_side,
                      u = (static_cast<float>(x) - centre_x) * per_side;
          // The weights of the moves of points (1, 1), (-1, 1) and (-1, -1) at (v, u).
          const float first = 0.5f * (1.0f + v), third = 0.5f * (1.0f - u), second = 0.5f * (u - v);
          const float down = (first * moves[0] + second * moves[2]) + third * moves[4];
          const float right = (first * moves[1] + second * moves[3]) + third * moves[5];
          const float from_y = clamp(static_cast<float>(y) + (down + alpha * (blurred[2 * i] - 127.5f)), -1e9f, 1e9f);
          const float from_x =
              clamp(static_cast<float>(x) + (right + alpha * (blurred[2 * i + 1] - 127.5f)), -1e9f, 1e9f);
          const i32 top = floor_to_int(from_y), left = floor_to_int(from_x);
          const float below = from_y - static_cast<float>(top), beside = from_x - static_cast<float>(left);
          const u8* upper = a.src + static_cast<i64>(mirrored(top, a.h)) * a.w * 3;
          const u8* lower = a.src + static_cast<i64>(mirrored(top + 1, a.h)) * a.w * 3;
          const i32 near = 3 * mirrored(left, a.w), far = 3 * mirrored(left + 1, a.w);
          for (i32 c = 0; c < 3; ++c) {
            const float above =
                static_cast<float>(upper[near + c]) * (1.0f - beside) + static_cast<float>(upper[far + c]) * beside;
            const float under =
                static_cast<float>(lower[near + c]) * (1.0f - beside) + static_cast<float>(lower[far + c]) * beside;
            a.dst[static_cast<i64>(3) * p + c] = to_u8(above * (1.0f - below) + under * below);
          }
        });
      });
}

QPT_FN i64 elastic_bytes(i32 h, i32 w, i32 blocks) {
  return taken_bytes<u8>(static_cast<i64>(h) * w * 2) + own_bytes<float>(8, blocks) + sharpen_bytes(h, w, blocks);
}

}  // namespace qpt
