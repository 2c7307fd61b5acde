// x86 forms, for a team of one, of row computations that compilers do not vectorise well: weighted sums are kept in
// registers over all taps. The arithmetic is that of the generic forms in ops/filter.h (same order, same fma) and
// ops/rescale.h (integers), so the bytes are the same, which tests/test_teams.py checks. AVX-512 is used, else AVX2
// with FMA; other processors use the generic forms. Host only; included by ops/op.h.
#pragma once
#include "../scalar_math.h"

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#define QPT_SIMD_ROWS 1
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own _mm512_undefined (GCC bug 105593)
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace qpt {
namespace simd {

#if defined(__AVX512F__)
using Vector = __m512;
constexpr i32 kLanes = 16;
inline Vector zero() {
  return _mm512_setzero_ps();
}
inline Vector load(const float* p) {
  return _mm512_loadu_ps(p);
}
inline Vector broadcast(float x) {
  return _mm512_set1_ps(x);
}
inline Vector multiply_add(Vector a, Vector b, Vector c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline void store(float* out, Vector v) {
  _mm512_storeu_ps(out, v);
}
inline void store(u8* out, Vector v) {
  v = _mm512_min_ps(_mm512_max_ps(v, zero()), broadcast(255.0f));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}
using Integers = __m512i;
inline Integers load_bytes(const u8* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Integers broadcast(i32 x) {
  return _mm512_set1_epi32(x);
}
inline Integers multiply_add(Integers a, Integers b, Integers c) {
  return _mm512_add_epi32(_mm512_mullo_epi32(a, b), c);
}
template <int shift>
inline void store_shifted(u8* out, Integers v) {
  v = _mm512_max_epi32(_mm512_srai_epi32(v, shift), _mm512_setzero_si512());
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtusepi32_epi8(v));
}
#else
using Vector = __m256;
constexpr i32 kLanes = 8;
inline Vector zero() {
  return _mm256_setzero_ps();
}
inline Vector load(const float* p) {
  return _mm256_loadu_ps(p);
}
inline Vector broadcast(float x) {
  return _mm256_set1_ps(x);
}
inline Vector multiply_add(Vector a, Vector b, Vector c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline void store(float* out, Vector v) {
  _mm256_storeu_ps(out, v);
}
inline void store(u8* out, Vector v) {
  v = _mm256_min_ps(_mm256_max_ps(v, zero()), broadcast(255.0f));
  const __m256i whole = _mm256_cvtps_epi32(v);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(words, words));
}
using Integers = __m256i;
inline Integers load_bytes(const u8* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline Integers broadcast(i32 x) {
  return _mm256_set1_epi32(x);
}
inline Integers multiply_add(Integers a, Integers b, Integers c) {
  return _mm256_add_epi32(_mm256_mullo_epi32(a, b), c);
}
template <int shift>
inline void store_shifted(u8* out, Integers v) {
  v = _mm256_srai_epi32(v, shift);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(words, words));
}
#endif

// Adds to sum[b][lane] the products of n <= 5 weights with taps that are three samples from each other. The vectors of
// the first tap are loaded, those of the others are shifted out of them: most loads would cross a cache line.
#if defined(__AVX512F__)
constexpr i32 kShiftedStep = 3, kShiftedTaps = 5;
template <i32 n, int kBlocks>
inline void add_shifted(Vector (&sum)[kBlocks], const float* weight, const float* p) {
  __m512i x[kBlocks + 1];
#pragma GCC unroll 16
  for (int b = 0; b < kBlocks; ++b) x[b] = _mm512_castps_si512(load(p + b * kLanes));
  // Of the last vector no more is read than the taps need.
  constexpr __mmask16 kRead = static_cast<__mmask16>((1 << (kShiftedStep * (n - 1))) - 1);
  x[kBlocks] = _mm512_maskz_loadu_epi32(kRead, p + kBlocks * kLanes);
  const auto tap = [&](auto number) {
    constexpr i32 t = decltype(number)::value;
    if constexpr (t < n) {
      const Vector w = broadcast(weight[t]);
#pragma GCC unroll 16
      for (int b = 0; b < kBlocks; ++b) {
        const __m512i shifted = t == 0 ? x[b] : _mm512_alignr_epi32(x[b + 1], x[b], kShiftedStep * t);
        sum[b] = multiply_add(w, _mm512_castsi512_ps(shifted), sum[b]);
      }
    }
  };
  tap(Constant<0>{});
  tap(Constant<1>{});
  tap(Constant<2>{});
  tap(Constant<3>{});
  tap(Constant<4>{});
}

// Does so for any number of taps.
template <int kBlocks>
inline void add_shifted(Vector (&sum)[kBlocks], const float* weight, const float* p, i32 taps) {
  for (; taps >= kShiftedTaps; taps -= kShiftedTaps) {
    add_shifted<kShiftedTaps>(sum, weight, p);
    weight += kShiftedTaps;
    p += kShiftedStep * kShiftedTaps;
  }
  if (taps == 1) add_shifted<1>(sum, weight, p);
  if (taps == 2) add_shifted<2>(sum, weight, p);
  if (taps == 3) add_shifted<3>(sum, weight, p);
  if (taps == 4) add_shifted<4>(sum, weight, p);
}
#endif

// Computes kBlocks * kLanes samples of an output row from sample i on.
template <int kBlocks, class Out, class Kernel>
inline void correlate_block(const Kernel& kernel, const float* base, const i32* row_at, i32 i, Out* out) {
  Vector sum[kBlocks];
#pragma GCC unroll 16
  for (int b = 0; b < kBlocks; ++b) sum[b] = zero();
  for (i32 dy = 0; dy < kernel.rows; ++dy) {
    const float* weight = kernel.weight + dy * kernel.columns;
    const float* row = base + row_at[dy] + i;
    const i32 last = kernel.last[dy];
#if defined(__AVX512F__)
    if (kernel.step == kShiftedStep) {
      const i32 first = kernel.first[dy];
      add_shifted(sum, weight + first, row + kShiftedStep * first, last - first + 1);
      continue;
    }
#endif
    for (i32 dx = kernel.first[dy]; dx <= last; ++dx) {
      const Vector w = broadcast(weight[dx]);
      const float* p = row + kernel.step * dx;
#pragma GCC unroll 16
      for (int b = 0; b < kBlocks; ++b) sum[b] = multiply_add(w, load(p + b * kLanes), sum[b]);
    }
  }
#pragma GCC unroll 16
  for (int b = 0; b < kBlocks; ++b) store(out + i + b * kLanes, sum[b]);
}

// Computes kBlocks * kLanes samples from sample i on of kColumnRows output rows with a kernel of one column. Each
// vector of a source row adds to all of them: source row j meets weight j - r of output row r.
constexpr i32 kColumnRows = 4;
template <int kBlocks, class Out, class Kernel>
inline void correlate_column_block(const Kernel& kernel, const float* base, const i32* row_at, i32 i, Out* out,
                                   i64 out_stride) {
  const i32 taps = kernel.rows;
  const i32* const after = row_at + (kColumnRows - 1) * taps - (kColumnRows - 1);  // of the last output row
  Vector sum[kColumnRows][kBlocks];
#pragma GCC unroll 4
  for (int r = 0; r < kColumnRows; ++r)
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) sum[r][b] = zero();
  const auto add = [&](i32 j, auto meets) {
    const float* const p = base + (j < taps ? row_at[j] : after[j]) + i;
    Vector x[kBlocks];
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) x[b] = load(p + b * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < kColumnRows; ++r) {
      if (!meets(j - r)) continue;
      const Vector w = broadcast(kernel.weight[j - r]);
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) sum[r][b] = multiply_add(w, x[b], sum[r][b]);
    }
  };
  const auto some = [taps](i32 t) { return t >= 0 && t < taps; };
  i32 j = 0;
  for (; j < kColumnRows - 1; ++j) add(j, some);
  for (; j < taps; ++j) add(j, [](i32) { return true; });
  for (; j < taps + kColumnRows - 1; ++j) add(j, some);
#pragma GCC unroll 4
  for (int r = 0; r < kColumnRows; ++r)
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) store(out + r * out_stride + i + b * kLanes, sum[r][b]);
}

// Computes as much of `rows` output rows as whole vectors cover; returns the number of samples of each.
// The rows of a block of columns follow each other, so that the source rows that they share are read from the nearest
// cache.
template <class Out, class Kernel>
inline i32 correlate_rows(const Kernel& kernel, const float* base, const i32* row_at, i32 rows, i32 samples, Out* out,
                          i64 out_stride) {
  constexpr i32 kColumnBlocks = kLanes == 16 ? 4 : 2;  // so many sums fit the registers
  i32 i = 0;
  if (kernel.columns == 1 && rows == kColumnRows) {
    for (; i + kColumnBlocks * kLanes <= samples; i += kColumnBlocks * kLanes)
      correlate_column_block<kColumnBlocks>(kernel, base, row_at, i, out, out_stride);
    for (; i + kLanes <= samples; i += kLanes) correlate_column_block<1>(kernel, base, row_at, i, out, out_stride);
    return i;
  }
  const auto blocks = [&](auto count) {
    constexpr i32 kBlocks = decltype(count)::value;
    for (; i + kBlocks * kLanes <= samples; i += kBlocks * kLanes)
      for (i32 r = 0; r < rows; ++r)
        correlate_block<kBlocks>(kernel, base, row_at + r * kernel.rows, i, out + r * out_stride);
  };
  if constexpr (kLanes == 16) blocks(Constant<12>{});
  blocks(Constant<8>{});
  blocks(Constant<4>{});
  blocks(Constant<1>{});
  return i;
}

// Computes kBlocks * kLanes samples of one output row of a resize along y: sample i is
// (start + sum of weight[j] * in[j * stride + i]) >> shift.
template <int kBlocks, int shift>
inline void resample_block(const i32* weight, i32 count, i32 start, const u8* in, i64 stride, u8* out) {
  Integers sum[kBlocks];
#pragma GCC unroll 8
  for (int b = 0; b < kBlocks; ++b) sum[b] = broadcast(start);
  for (i32 j = 0; j < count; ++j) {
    const Integers w = broadcast(weight[j]);
#pragma GCC unroll 8
    for (int b = 0; b < kBlocks; ++b) sum[b] = multiply_add(w, load_bytes(in + j * stride + b * kLanes), sum[b]);
  }
#pragma GCC unroll 8
  for (int b = 0; b < kBlocks; ++b) store_shifted<shift>(out + b * kLanes, sum[b]);
}

// Computes as much of that row as whole vectors cover; returns the number of samples.
template <int shift>
inline i32 resample_row(const i32* weight, i32 count, i32 start, const u8* in, i64 stride, i32 samples, u8* out) {
  i32 i = 0;
  for (; i + 8 * kLanes <= samples; i += 8 * kLanes)
    resample_block<8, shift>(weight, count, start, in + i, stride, out + i);
  for (; i + kLanes <= samples; i += kLanes) resample_block<1, shift>(weight, count, start, in + i, stride, out + i);
  return i;
}

// Computes one pixel of a resize along both axes from the sums along y of its `count` taps, as resample_both does.
// shift: fractional bits of the product of both weights. Reads the sum after the last tap's.
template <int shift>
inline void resample_sums(const i32* weight, i32 count, const i32* sums, bool even, u8* out) {
  __m256i total = _mm256_setzero_si256();
  for (i32 j = 0; j < count; ++j) {
    const __m256i pixel = _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sums + 3 * j)));
    total = _mm256_add_epi64(total, _mm256_mul_epu32(pixel, _mm256_set1_epi32(weight[j])));
  }
  const __m256i below = _mm256_andnot_si256(_mm256_srli_epi64(total, shift), _mm256_set1_epi64x(even ? 1 : 0));
  total = _mm256_sub_epi64(_mm256_add_epi64(total, _mm256_set1_epi64x(i64{1} << (shift - 1))), below);
  total = _mm256_srli_epi64(total, shift);
  const __m128i low = _mm256_castsi256_si128(total), high = _mm256_extracti128_si256(total, 1);
  out[0] = static_cast<u8>(_mm_cvtsi128_si32(low));
  out[1] = static_cast<u8>(_mm_extract_epi8(low, 8));
  out[2] = static_cast<u8>(_mm_cvtsi128_si32(high));
}

// Computes a pixel of zoom_blur: the sum over views v of the interpolation, by weight right[v * step], between the
// pixel at rows[left_at[v * step]] and the next one. Reads the sample after that; out[3] is not used.
inline void sum_views(i32 views, const float* rows, const i32* left_at, const float* right, i32 step, float* out) {
  __m128 sum = _mm_setzero_ps();
  for (i32 v = 0; v < views; ++v) {
    const float* at = rows + left_at[v * step];
    const __m128 left = _mm_loadu_ps(at);
    const __m128 more = _mm_mul_ps(_mm_set1_ps(right[v * step]), _mm_sub_ps(_mm_loadu_ps(at + 3), left));
    sum = _mm_add_ps(sum, _mm_add_ps(left, more));
  }
  _mm_storeu_ps(out, sum);
}

#include "simd_integers.h"
#include "simd_median.h"
#include "simd_turned.h"

}  // namespace simd
}  // namespace qpt

#else
#define QPT_SIMD_ROWS 0
#endif
