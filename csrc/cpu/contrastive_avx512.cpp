// The contrastive loss's tasks with AVX-512. No standard headers here: what they define inline would be compiled for
// AVX-512 and could be linked into code for every processor.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define QPT_HAS_AVX512 1
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own _mm512_undefined (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#endif
#include "contrastive.h"

namespace qpt {
namespace contrastive {
#ifdef QPT_HAS_AVX512
namespace {

constexpr const char* kName = "AVX-512";

#include "contrastive_avx512.h"
#include "contrastive_kernel.h"

constexpr Kernels kKernels = kernels_of<VectorProducts>();

}  // namespace

const Kernels* avx512_kernels() {
  const bool present = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2");
  return present ? &kKernels : nullptr;
}
#else
const Kernels* avx512_kernels() {
  return nullptr;
}
#endif

}  // namespace contrastive
}  // namespace qpt
