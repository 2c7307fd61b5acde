// The contrastive loss's tasks with AVX2, FMA and F16C: 8 lanes, strips of 16 rows, 12 accumulators. Also what AVX-512
// machines use for few rows. No standard headers here; see contrastive_avx512.cpp.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define QPT_HAS_AVX2 1
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>
#endif
#include "contrastive.h"

namespace qpt {
namespace contrastive {
#ifdef QPT_HAS_AVX2
namespace {

using Vec = __m256;
constexpr int kLanes = 8;
constexpr int kVecs = 2, kRows = 6;
constexpr const char* kName = "AVX2";

inline Vec zero() {
  return _mm256_setzero_ps();
}
inline Vec load(const float* p) {
  return _mm256_loadu_ps(p);
}
inline void store(float* p, Vec x) {
  _mm256_storeu_ps(p, x);
}
inline Vec broadcast(float x) {
  return _mm256_set1_ps(x);
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline Vec add(Vec a, Vec b) {
  return _mm256_add_ps(a, b);
}
inline Vec subtract(Vec a, Vec b) {
  return _mm256_sub_ps(a, b);
}
inline Vec multiply(Vec a, Vec b) {
  return _mm256_mul_ps(a, b);
}
inline Vec maximum(Vec a, Vec b) {
  return _mm256_max_ps(a, b);
}
inline Vec minimum(Vec a, Vec b) {  // a where either is nan
  return _mm256_min_ps(b, a);
}
inline bool any_greater(Vec a, Vec b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
}
inline float sum_lanes(Vec x) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

#include "contrastive_exp2.h"

// 2^n 2^f with n the nearest integer. x stays below 2^7: see kSlack.
inline Vec exp2_flushed(Vec x) {
  const Vec kept = _mm256_cmp_ps(x, broadcast(-126.0f), _CMP_NLT_UQ);  // nan is kept
  const Vec n = _mm256_round_ps(_mm256_max_ps(broadcast(-126.0f), x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vec f = _mm256_sub_ps(x, n);
  const Vec y = exp2_fraction(f);
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(_mm256_mul_ps(y, _mm256_castsi256_ps(power)), kept);
}

inline void widen_row(const u16* from, i32 dtype, i64 dim, float* out) {
  for (i64 d = 0; d < dim; d += kLanes) {
    alignas(16) u16 tail[kLanes] = {};
    const u16* source = from + d;
    if (dim - d < kLanes) {
      for (i64 n = 0; n < dim - d; ++n) tail[n] = source[n];
      source = tail;
    }
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
    const Vec wide = dtype == kFloat16 ? _mm256_cvtph_ps(half)
                                       : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    alignas(32) float values[kLanes];
    if (dim - d >= kLanes) {
      store(out + d, wide);
    } else {
      store(values, wide);
      for (i64 n = 0; n < dim - d; ++n) out[d + n] = values[n];
    }
  }
}

#include "contrastive_kernel.h"

constexpr Kernels kKernels = kernels_of<VectorProducts>();

}  // namespace

const Kernels* avx2_kernels() {
  const bool present =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return present ? &kKernels : nullptr;
}
#else
const Kernels* avx2_kernels() {
  return nullptr;
}
#endif

}  // namespace contrastive
}  // namespace qpt
