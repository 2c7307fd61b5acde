// What every op receives, and the scratch arithmetic they share. Included by each family's file; used by chain.h.
// An op reads src, writes all of dst (never the same buffer) and keeps its temporaries in scratch, which all members of
// the team see. src is the image or a window of it: an edge of a window that is not the image's may get any bytes as
// far in as the op's halo. Only random numbers and mirrored borders need to know where the window lies; a replicated
// border does not, since a window ends where the image does. Parameters are clamped here and in the ops so that no
// value, even NaN, can lead to a write out of bounds.
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
  i32 to_h, to_w;       // h, w but for resize_to
  i32 top, left;        // where the image has the first pixel of src
  i32 full_h, full_w;   // extents of the image
  const float* params;  // [4], meaning per op (qpt/degradations/op_table.py)
  u64 seed;             // of the program row
  u32 slot;             // position of the op in its row, so that a repeated op draws again
  void* scratch;        // op_scratch_bytes(h, w), 64-byte aligned
};

constexpr i32 kMaxMembers = 1024;  // of a team: the largest CUDA block

// Hands out consecutive 64-byte aligned arrays of the scratch area. Every member makes the same calls, so all of them
// hold the same pointers.
struct Scratch {
  u8* next;
  template <class T>
  QPT_INLINE T* take(i64 count) {
    T* taken = reinterpret_cast<T*>(next);
    next += (count * static_cast<i64>(sizeof(T)) + 63) / 64 * 64;
    return taken;
  }
};

// From one row of n words of 4 bytes to the next: an odd number of cache lines, since rows that lie a power of two
// apart share the few places of one cache set, and each drives the other out. Short rows stay as they are.
QPT_FN i32 spread(i32 n) {
  return n < 256 ? n : ((n + 15) / 16 | 1) * 16;
}

// Bytes of `count` Ts as Scratch::take spends them.
template <class T>
QPT_FN i64 taken_bytes(i64 count) {
  return (count * static_cast<i64>(sizeof(T)) + 63) / 64 * 64;
}

// Scratch of an op without temporaries.
QPT_FN i64 no_bytes(i32, i32) {
  return 0;
}

// clamp() that maps NaN to `low`.
QPT_INLINE float parameter(float x, float low, float high) {
  return x >= low ? minimum(x, high) : low;
}

}  // namespace qpt
