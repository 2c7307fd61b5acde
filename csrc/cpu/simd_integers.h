// x86 forms, for a team of one, of integer work that compilers vectorise badly: Philox's products of 32 bits by 32
// bits, and the transpositions of 8 x 8 blocks. The integers are those of the generic forms in ops/noise.h and
// ops/jpeg.h. Host only; included by cpu/simd.h, inside its namespace.

// --- Philox 4x32-10, see philox.h ------------------------------------------------------------------------------------
// A word is the lower half of a lane of 64 bits, so that one multiplication gives both halves of a product. What is in
// the upper half does not count: multiplications do not read it.

#if defined(__AVX512F__)
using Words = __m512i;
constexpr i32 kWordLanes = 8;
inline Words broadcast_word(u32 x) {
  return _mm512_set1_epi64(x);
}
inline Words multiply_words(Words a, Words b) {
  return _mm512_mul_epu32(a, b);
}
inline Words upper_xor(Words product, Words b, Words c) {
  return _mm512_ternarylogic_epi64(_mm512_srli_epi64(product, 32), b, c, 0x96);
}
inline Words counting_words(u32 first) {
  return _mm512_add_epi64(_mm512_set1_epi64(first), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
}
inline void store_words(u32* out, Words x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi64_epi32(x));
}
#else
using Words = __m256i;
constexpr i32 kWordLanes = 4;
inline Words broadcast_word(u32 x) {
  return _mm256_set1_epi64x(x);
}
inline Words multiply_words(Words a, Words b) {
  return _mm256_mul_epu32(a, b);
}
inline Words upper_xor(Words product, Words b, Words c) {
  return _mm256_xor_si256(_mm256_srli_epi64(product, 32), _mm256_xor_si256(b, c));
}
inline Words counting_words(u32 first) {
  return _mm256_add_epi64(_mm256_set1_epi64x(first), _mm256_setr_epi64x(0, 1, 2, 3));
}
inline void store_words(u32* out, Words x) {
  const __m256i low = _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(low));
}
#endif

// Writes to out[k][i] word k of the counter {first + i, second, third, 0}.
template <i32 count>
inline void philox_words(u32 first, u32 second, u32 third, u32 key0, u32 key1, u32 (&out)[4][count]) {
  constexpr i32 kVectors = kWordLanes == 8 ? 4 : 2;  // in flight, since each round waits for the one before
  static_assert(count % (kVectors * kWordLanes) == 0);
  const Words m0 = broadcast_word(0xD2511F53u), m1 = broadcast_word(0xCD9E8D57u);
  for (i32 start = 0; start < count; start += kVectors * kWordLanes) {
    Words x[kVectors], y[kVectors], z[kVectors], w[kVectors];
    for (i32 v = 0; v < kVectors; ++v) {
      x[v] = counting_words(first + static_cast<u32>(start + v * kWordLanes));
      y[v] = broadcast_word(second);
      z[v] = broadcast_word(third);
      w[v] = broadcast_word(0);
    }
    u32 round_key0 = key0, round_key1 = key1;
#pragma GCC unroll 10
    for (i32 round = 0; round < 10; ++round) {
      const Words k0 = broadcast_word(round_key0), k1 = broadcast_word(round_key1);
#pragma GCC unroll 4
      for (i32 v = 0; v < kVectors; ++v) {
        const Words product0 = multiply_words(m0, x[v]), product1 = multiply_words(m1, z[v]);
        x[v] = upper_xor(product1, y[v], k0);
        z[v] = upper_xor(product0, w[v], k1);
        y[v] = product1;
        w[v] = product0;
      }
      round_key0 += 0x9E3779B9u;
      round_key1 += 0xBB67AE85u;
    }
    for (i32 v = 0; v < kVectors; ++v) {
      const i32 at = start + v * kWordLanes;
      store_words(out[0] + at, x[v]);
      store_words(out[1] + at, y[v]);
      store_words(out[2] + at, z[v]);
      store_words(out[3] + at, w[v]);
    }
  }
}

// --- Blocks of 8 x 8 integers, for ops/jpeg.h ------------------------------------------------------------------------

struct Square {
  __m256i row[8];
};

inline Square transposed(const Square& in) {
  Square pairs, fours, out;
#pragma GCC unroll 4
  for (i32 i = 0; i < 8; i += 2) {  // a0 b0 a1 b1 | a4 b4 a5 b5, then the other half
    pairs.row[i] = _mm256_unpacklo_epi32(in.row[i], in.row[i + 1]);
    pairs.row[i + 1] = _mm256_unpackhi_epi32(in.row[i], in.row[i + 1]);
  }
#pragma GCC unroll 2
  for (i32 i = 0; i < 8; i += 4) {  // a0 b0 c0 d0 | a4 b4 c4 d4, and so on
    fours.row[i] = _mm256_unpacklo_epi64(pairs.row[i], pairs.row[i + 2]);
    fours.row[i + 1] = _mm256_unpackhi_epi64(pairs.row[i], pairs.row[i + 2]);
    fours.row[i + 2] = _mm256_unpacklo_epi64(pairs.row[i + 1], pairs.row[i + 3]);
    fours.row[i + 3] = _mm256_unpackhi_epi64(pairs.row[i + 1], pairs.row[i + 3]);
  }
#pragma GCC unroll 4
  for (i32 i = 0; i < 4; ++i) {
    out.row[i] = _mm256_permute2x128_si256(fours.row[i], fours.row[i + 4], 0x20);
    out.row[i + 4] = _mm256_permute2x128_si256(fours.row[i], fours.row[i + 4], 0x31);
  }
  return out;
}

inline Square load_square(const i32* in, i64 stride) {
  Square block;
#pragma GCC unroll 8
  for (i32 r = 0; r < 8; ++r) block.row[r] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + r * stride));
  return block;
}

inline void store_square(i32* out, i64 stride, const Square& block) {
#pragma GCC unroll 8
  for (i32 r = 0; r < 8; ++r) _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r * stride), block.row[r]);
}

// out[c, r] = in[r, c].
inline void transpose_block(const i32* in, i32* out, i64 stride) {
  store_square(out, stride, transposed(load_square(in, stride)));
}

// out[c, r] = pixels[r, c] - 128.
inline void load_block(const u8* pixels, i64 pixel_stride, i32* out, i64 stride) {
  Square block;
#pragma GCC unroll 8
  for (i32 r = 0; r < 8; ++r) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(pixels + r * pixel_stride));
    block.row[r] = _mm256_sub_epi32(_mm256_cvtepu8_epi32(bytes), _mm256_set1_epi32(128));
  }
  store_square(out, stride, transposed(block));
}

// pixels[r, c] = in[c, r] + 128, clamped to [0, 255].
inline void store_block(const i32* in, i64 stride, u8* pixels, i64 pixel_stride) {
  Square block = transposed(load_square(in, stride));
#pragma GCC unroll 8
  for (i32 r = 0; r < 8; ++r) block.row[r] = _mm256_add_epi32(block.row[r], _mm256_set1_epi32(128));
#pragma GCC unroll 2
  for (i32 r = 0; r < 8; r += 4) {
    // Bytes of four rows: their first halves, then their second halves.
    const __m256i halves = _mm256_packus_epi16(_mm256_packs_epi32(block.row[r], block.row[r + 1]),
                                               _mm256_packs_epi32(block.row[r + 2], block.row[r + 3]));
    alignas(32) u64 rows[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(rows),
                       _mm256_permutevar8x32_epi32(halves, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
    for (i32 i = 0; i < 4; ++i) __builtin_memcpy(pixels + (r + i) * pixel_stride, rows + i, 8);
  }
}
