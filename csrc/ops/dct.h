// The 8-point integer DCT and its inverse that JPEG codecs call "islow": C. Loeffler, A. Ligtenberg, G. Moschytz,
// "Practical fast 1-D DCT algorithms with 11 multiplications" (ICASSP 1989), in fixed point with 13 fractional bits and
// 2 extra bits between the passes, scaled by 8 relative to the orthonormal transform. With integers only, the results
// are libjpeg-turbo's. Used by jpeg.h.
#pragma once
#include "../team.h"

namespace qpt {

constexpr i32 kDctBits = 13;  // of the constants below: round(c * 2^13)
constexpr i32 kPassBits = 2;  // extra precision between the two passes

struct Eight {
  i32 v0, v1, v2, v3, v4, v5, v6, v7;
};

QPT_INLINE Eight load_eight(const i32* p, i32 stride) {
  return {p[0], p[stride], p[2 * stride], p[3 * stride], p[4 * stride], p[5 * stride], p[6 * stride], p[7 * stride]};
}

QPT_INLINE void store_eight(i32* p, i32 stride, const Eight& x) {
  p[0] = x.v0;
  p[stride] = x.v1;
  p[2 * stride] = x.v2;
  p[3 * stride] = x.v3;
  p[4 * stride] = x.v4;
  p[5 * stride] = x.v5;
  p[6 * stride] = x.v6;
  p[7 * stride] = x.v7;
}

// Returns x / 2^bits rounded to the nearest integer, halves up.
template <i32 bits>
QPT_INLINE i32 descale(i32 x) {
  return (x + (1 << (bits - 1))) >> bits;
}

// The odd half, whose rotations are the same in both directions. Inputs a, b, c, d form the pairs (a, d), (b, c), (a,
// c), (b, d).
struct Odd {
  i32 a, b, c, d;
};

QPT_INLINE Odd rotate_odd(i32 a, i32 b, i32 c, i32 d) {
  const i32 common = 9633 * (a + b + c + d);  // 1.175875602
  const i32 ad = -7373 * (a + d);             // -0.899976223
  const i32 bc = -20995 * (b + c);            // -2.562915447
  const i32 ac = common - 16069 * (a + c);    // -1.961570560
  const i32 bd = common - 3196 * (b + d);     // -0.390180644
  return {2446 * a + ad + ac,                 // 0.298631336
          16819 * b + bc + bd,                // 2.053119869
          25172 * c + bc + ac,                // 3.072711026
          12299 * d + ad + bd};               // 1.501321110
}

// The first pass scales its result by 2^kPassBits, the second removes this scale.
template <bool first_pass>
QPT_INLINE Eight forward_dct(const Eight& x) {
  constexpr i32 bits = first_pass ? kDctBits - kPassBits : kDctBits + kPassBits;
  const i32 s07 = x.v0 + x.v7, s16 = x.v1 + x.v6, s25 = x.v2 + x.v5, s34 = x.v3 + x.v4;
  const i32 outer = s07 + s34, inner = s16 + s25, p = s07 - s34, q = s16 - s25;
  const i32 rotated = 4433 * (p + q);  // 0.541196100
  const Odd odd = rotate_odd(x.v3 - x.v4, x.v2 - x.v5, x.v1 - x.v6, x.v0 - x.v7);
  Eight y;
  y.v0 = first_pass ? (outer + inner) * (1 << kPassBits) : descale<kPassBits>(outer + inner);
  y.v4 = first_pass ? (outer - inner) * (1 << kPassBits) : descale<kPassBits>(outer - inner);
  y.v2 = descale<bits>(rotated + 6270 * p);   // 0.765366865
  y.v6 = descale<bits>(rotated - 15137 * q);  // 1.847759065
  y.v7 = descale<bits>(odd.a);
  y.v5 = descale<bits>(odd.b);
  y.v3 = descale<bits>(odd.c);
  y.v1 = descale<bits>(odd.d);
  return y;
}

// The first pass scales its result by 2^kPassBits, the second removes this scale and the factor 8 of the 2-D transform.
template <bool first_pass>
QPT_INLINE Eight inverse_dct(const Eight& x) {
  constexpr i32 bits = first_pass ? kDctBits - kPassBits : kDctBits + kPassBits + 3;
  const i32 rotated = 4433 * (x.v2 + x.v6);                         // 0.541196100
  const i32 p = rotated - 15137 * x.v6, q = rotated + 6270 * x.v2;  // 1.847759065, 0.765366865
  const i32 sum = (x.v0 + x.v4) * (1 << kDctBits), difference = (x.v0 - x.v4) * (1 << kDctBits);
  const i32 e0 = sum + q, e3 = sum - q, e1 = difference + p, e2 = difference - p;
  const Odd odd = rotate_odd(x.v7, x.v5, x.v3, x.v1);
  return {descale<bits>(e0 + odd.d), descale<bits>(e1 + odd.c), descale<bits>(e2 + odd.b), descale<bits>(e3 + odd.a),
          descale<bits>(e3 - odd.a), descale<bits>(e2 - odd.b), descale<bits>(e1 - odd.c), descale<bits>(e0 - odd.d)};
}

}  // namespace qpt
