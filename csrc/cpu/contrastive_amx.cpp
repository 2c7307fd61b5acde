// The contrastive loss's tasks with AMX: products in tiles (contrastive_tiles.h), all else in the vectors of AVX-512,
// which every processor with AMX has. No standard headers here that define functions; see contrastive_avx512.cpp.
//
// QPT_TILE_HEADER: a header with other forms of the tile operations, by which tests run this code without AMX.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    __has_include(<amxbf16intrin.h>)
#define QPT_HAS_AMX 1
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own _mm512_undefined (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include "contrastive.h"

namespace qpt {
namespace contrastive {
#ifdef QPT_HAS_AMX
namespace {

constexpr const char* kName = "AMX";

#ifdef QPT_TILE_HEADER
#include QPT_TILE_HEADER
#else
// The intrinsics of GCC 12 want the number of a tile as a literal and do not tell the compiler that memory is read.
// Strides are in bytes.
template <int tile>
inline void load_tile(const void* from, i64 stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
inline void store_tile(void* to, i64 stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(tile));
}
// out[m][n] += sum_k rows[m][2 k] pairs[k][n][0] + rows[m][2 k + 1] pairs[k][n][1].
template <int out, int rows, int pairs>
inline void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(out), "i"(rows), "i"(pairs));
}

struct TileConfiguration {
  u8 palette, start_row, reserved[14];
  u16 row_bytes[16];
  u8 rows[16];
};

// Eight tiles of 16 rows of 64 bytes.
inline void configure_tiles() {
  alignas(64) TileConfiguration all = {};
  all.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    all.row_bytes[tile] = 64;
    all.rows[tile] = 16;
  }
  asm volatile("ldtilecfg %0" : : "m"(all) : "memory");
}
inline void release_tiles() {
  asm volatile("tilerelease");
}

// Whether the processor has tiles and Linux lets this process use them, which has to be asked for once
// (Documentation/arch/x86/xstate.rst).
inline bool tiles_available() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

#include "contrastive_avx512.h"
#include "contrastive_kernel.h"
#include "contrastive_tiles.h"

constexpr Kernels kKernels = kernels_of<TileProducts>();

// Whether two tiles of small integers have the product that scalar arithmetic gives. Looked at once, before tiles are
// chosen, since few processors on which this was compiled and tested have them.
bool tiles_multiply_integers() {
  const auto left = [](i64 m, i64 k) { return static_cast<float>((3 * m + 5 * k) % 17 - 8); };
  const auto right = [](i64 k, i64 n) { return static_cast<float>((7 * k + 11 * n) % 13 - 6); };
  const auto bfloat16 = [](float x) {
    u32 bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return static_cast<u16>(bits >> 16);  // exact for integers up to 256
  };
  alignas(64) u16 rows[16][32], pairs[16][16][2];
  alignas(64) float out[16][16];
  for (i64 m = 0; m < 16; ++m)
    for (i64 k = 0; k < 32; ++k) {
      rows[m][k] = bfloat16(left(m, k));
      pairs[k / 2][m][k % 2] = bfloat16(right(k, m));
    }
  for (i64 i = 0; i < 256; ++i) out[i / 16][i % 16] = static_cast<float>(i);
  configure_tiles();
  load_tile<0>(out, 64);
  load_tile<4>(rows, 64);
  load_tile<6>(pairs, 64);
  multiply_tiles<0, 4, 6>();
  store_tile<0>(out, 64);
  release_tiles();
  bool equal = true;
  for (i64 m = 0; m < 16; ++m)
    for (i64 n = 0; n < 16; ++n) {
      float sum = static_cast<float>(16 * m + n);
      for (i64 k = 0; k < 32; ++k) sum += left(m, k) * right(k, n);
      equal &= out[m][n] == sum;
    }
  return equal;
}

}  // namespace

const Kernels* amx_kernels() {
  static const bool present = avx512_kernels() && tiles_available() && tiles_multiply_integers();
  return present ? &kKernels : nullptr;
}
#else
const Kernels* amx_kernels() {
  return nullptr;
}
#endif

}  // namespace contrastive
}  // namespace qpt
