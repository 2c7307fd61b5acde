// Vectors of AVX-512 for contrastive_kernel.h: 16 lanes, strips of 64 rows, 24 accumulators. Included by
// contrastive_avx512.cpp and contrastive_amx.cpp, inside a namespace of their own.

using Vec = __m512;
constexpr int kLanes = 16;
constexpr int kVecs = 4, kRows = 6;

inline Vec zero() {
  return _mm512_setzero_ps();
}
inline Vec load(const float* p) {
  return _mm512_loadu_ps(p);
}
inline void store(float* p, Vec x) {
  _mm512_storeu_ps(p, x);
}
inline Vec broadcast(float x) {
  return _mm512_set1_ps(x);
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline Vec add(Vec a, Vec b) {
  return _mm512_add_ps(a, b);
}
inline Vec subtract(Vec a, Vec b) {
  return _mm512_sub_ps(a, b);
}
inline Vec multiply(Vec a, Vec b) {
  return _mm512_mul_ps(a, b);
}
inline Vec maximum(Vec a, Vec b) {
  return _mm512_max_ps(a, b);
}
inline Vec minimum(Vec a, Vec b) {  // the second where either is nan
  return _mm512_min_ps(b, a);
}
inline bool any_greater(Vec a, Vec b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
}
inline float sum_lanes(Vec x) {
  return _mm512_reduce_add_ps(x);
}

#include "contrastive_exp2.h"

// 2^n 2^f with n the nearest integer.
inline Vec exp2_flushed(Vec x) {
  const __mmask16 kept = _mm512_cmp_ps_mask(x, broadcast(-126.0f), _CMP_NLT_UQ);  // nan is kept
  const Vec n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vec f = _mm512_sub_ps(x, n);
  const Vec y = exp2_fraction(f);
  return _mm512_maskz_scalef_ps(kept, y, n);
}

inline void widen_row(const u16* from, i32 dtype, i64 dim, float* out) {
  for (i64 d = 0; d < dim; d += kLanes) {
    const __mmask16 inside = dim - d >= kLanes ? 0xFFFF : static_cast<__mmask16>((1u << (dim - d)) - 1);
    const __m256i half = _mm256_maskz_loadu_epi16(inside, from + d);
    const Vec wide = dtype == kFloat16 ? _mm512_cvtph_ps(half)
                                       : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    _mm512_mask_storeu_ps(out + d, inside, wide);
  }
}
