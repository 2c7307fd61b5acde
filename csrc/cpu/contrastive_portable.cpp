// The contrastive loss's tasks for any processor, in the compiler's own vectors of four: strips of 8 rows.
#include "contrastive.h"
#include "contrastive_half.h"

namespace qpt {
namespace contrastive {
namespace {

typedef float Vec __attribute__((vector_size(16)));
typedef i32 Integers __attribute__((vector_size(16)));
constexpr int kLanes = 4;
constexpr int kVecs = 2, kRows = 4;
constexpr const char* kName = "portable";

inline Vec broadcast(float x) {
  return Vec{x, x, x, x};
}
inline Vec zero() {
  return broadcast(0.0f);
}
inline Vec load(const float* p) {
  Vec x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
inline void store(float* p, Vec x) {
  __builtin_memcpy(p, &x, sizeof x);
}
inline Vec select(Integers mask, Vec yes, Vec no) {
  return (Vec)((mask & (Integers)yes) | (~mask & (Integers)no));
}
inline Vec fma(Vec a, Vec b, Vec c) {  // rounded twice: baseline processors have no fused form
  return a * b + c;
}
inline Vec add(Vec a, Vec b) {
  return a + b;
}
inline Vec subtract(Vec a, Vec b) {
  return a - b;
}
inline Vec multiply(Vec a, Vec b) {
  return a * b;
}
inline Vec maximum(Vec a, Vec b) {
  return select(a > b, a, b);
}
inline Vec minimum(Vec a, Vec b) {  // a where either is nan
  return select(b < a, b, a);
}
inline bool any_greater(Vec a, Vec b) {
  const Integers mask = a > b;
  return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
}
inline float sum_lanes(Vec x) {
  return (x[0] + x[1]) + (x[2] + x[3]);
}

#include "contrastive_exp2.h"

// 2^n 2^f with n the nearest integer. x stays below 2^7: see kSlack.
inline Vec exp2_flushed(Vec x) {
  const Integers flushed = x < broadcast(-126.0f);  // not nan
  const Vec inside = select(flushed, broadcast(-126.0f), x);
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec n = (inside + magic) - magic;
  const Vec f = inside - n;
  const Vec y = exp2_fraction(f);
  // n lies in the low bits of n + magic: as integers, their difference is n (garbage for nan, which y already is).
  const Integers power = ((Integers)(inside + magic) - (Integers)magic + 127) << 23;
  return select(flushed, zero(), y * (Vec)power);
}

inline void widen_row(const u16* from, i32 dtype, i64 dim, float* out) {
  for (i64 d = 0; d < dim; ++d) out[d] = widen(from[d], dtype);
}

#include "contrastive_kernel.h"

constexpr Kernels kKernels = kernels_of<VectorProducts>();

}  // namespace

const Kernels* portable_kernels() {
  return &kKernels;
}

}  // namespace contrastive
}  // namespace qpt
