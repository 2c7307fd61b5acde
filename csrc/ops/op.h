// The arguments of an op, and what the ops share for scratch and parameters. Included by the ops' headers.
//
// An op reads src, writes all of dst (never the same buffer) and keeps its temporaries in scratch, which all members of
// the team see. Each block writes its share of the rows of dst (rows_of); src is complete when an op begins, and dst is
// read when all blocks have ended. src is the image or a window of it. Along an edge of a window that is not an edge of
// the image, the output within the op's halo may be anything. Only random numbers and mirrored borders depend on where
// the window lies; a replicated border does not, since such a border is the image's own. Every parameter is clamped, so
// that no value, not even NaN, can lead to an access out of bounds.
#pragma once
#include "../scalar_math.h"
#if !defined(__CUDACC__) && !defined(__CUDACC_RTC__) && defined(__x86_64__)
#include "../cpu/simd.h"
#else
#define QPT_SIMD_ROWS 0
#endif

namespace qpt {

struct OpArgs {
  const u8* src;        // [h, w, 3]
  u8* dst;              // [h, w, 3]; [to_h, to_w, 3] of resize_to
  i32 h, w;             // >= 1; h * w * 3 < 2^31
  i32 to_h, to_w;       // h, w except for resize_to
  i32 top, left;        // position of src in the image
  i32 full_h, full_w;   // extents of the image
  const float* params;  // [4], the op's parameters in the order of its row in qpt/degradations/rows
  u64 seed;             // of the program's row
  u32 slot;             // position of the op in its row; part of the key, so that a repeated op draws other numbers
  void* scratch;        // op_scratch_bytes(h, w, blocks), 64-byte aligned
};

constexpr i32 kMaxMembers = 1024;  // of a block: the largest CUDA block
constexpr i32 kMaxBlocks = 64;     // of a team

// Returns the rows of dst that the caller's block writes.
template <class Team>
QPT_INLINE Span rows_of(const Team& team, const OpArgs& a) {
  return share(team, a.h);
}

// Allocates consecutive, 64-byte aligned arrays of the scratch area. Every member makes the same calls and so gets the
// same pointers.
struct Scratch {
  u8* next;
  template <class T>
  QPT_INLINE T* take(i64 count) {
    T* taken = reinterpret_cast<T*>(next);
    next += (count * static_cast<i64>(sizeof(T)) + 63) / 64 * 64;
    return taken;
  }
  // Takes an array for each block and returns that of the caller's.
  template <class T, class Team>
  QPT_INLINE T* take_own(const Team& team, i64 count) {
    const i64 bytes = (count * static_cast<i64>(sizeof(T)) + 63) / 64 * 64;
    T* taken = reinterpret_cast<T*>(next + team.block() * bytes);
    next += team.blocks() * bytes;
    return taken;
  }
};

// Returns the stride of rows of n words of 4 bytes: an odd number of cache lines, since rows at a distance of a power
// of two map to the same cache set and evict each other. The stride of short rows is n.
QPT_FN i32 spread_stride(i32 n) {
  return n < 256 ? n : ((n + 15) / 16 | 1) * 16;
}

// Returns the bytes that Scratch::take uses for `count` Ts.
template <class T>
QPT_FN i64 taken_bytes(i64 count) {
  return (count * static_cast<i64>(sizeof(T)) + 63) / 64 * 64;
}

// The number of blocks for which scratch is taken. The functions in table.h are given kSoloBlocks for a team of one
// thread, some of whose ops need other arrays.
constexpr i32 kSoloBlocks = 0;

// Returns the bytes that Scratch::take_own uses for `count` Ts for each of the blocks.
template <class T>
QPT_FN i64 own_bytes(i64 count, i32 blocks) {
  return taken_bytes<T>(count) * (blocks == kSoloBlocks ? 1 : blocks);
}

// The scratch of an op without temporaries.
QPT_FN i64 no_bytes(i32, i32, i32) {
  return 0;
}

// Clamps a parameter to [low, high]; unlike clamp(), it maps NaN to `low`.
QPT_INLINE float parameter(float x, float low, float high) {
  return x >= low ? minimum(x, high) : low;
}

}  // namespace qpt
