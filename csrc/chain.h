// One row of a program on one image: the ops one after another, uint8 in between, alternating between the output and
// scratch so that the last op writes the output. The only entry of the device headers: called by
// cpu/degrade.cpp with Solo, by csrc/cuda with a thread block, by tests/cpp with std::threads.
#pragma once
#include "ops/table.h"

namespace qpt {

enum OpId : i16 {
#define QPT_ID(name, bytes) k_##name,
  QPT_OPS(QPT_ID)
#undef QPT_ID
      kOpCount
};

#if !defined(__CUDACC__) && !defined(__CUDACC_RTC__)
constexpr const char* kOpNames[] = {
#define QPT_NAME(name, bytes) #name,
    QPT_OPS(QPT_NAME)
#undef QPT_NAME
};
#endif

// Scratch of the most demanding op.
QPT_FN i64 op_scratch_bytes(i32 h, i32 w) {
  i64 most = 0;
#define QPT_BYTES(name, bytes) most = maximum(most, bytes(h, w));
  QPT_OPS(QPT_BYTES)
#undef QPT_BYTES
  return most;
}

// Scratch of a row, 64-byte aligned: one image and the ops' own. resized: the row may hold resize_to; then it is two
// images, since none fits the output, and everything at the largest working size.
QPT_FN i64 scratch_bytes(i32 h, i32 w, bool resized) {
  if (resized) {
    h = largest_working_size(h);
    w = largest_working_size(w);
  }
  return (resized ? 2 : 1) * taken_bytes<u8>(static_cast<i64>(h) * w * 3) + op_scratch_bytes(h, w);
}

template <class Team>
QPT_ENTRY void run_op(Team& team, i16 op, OpArgs args) {
  switch (op) {
#define QPT_CASE(name, bytes) \
  case k_##name:              \
    name(team, args);         \
    break;
    QPT_OPS(QPT_CASE)
#undef QPT_CASE
    default:
      break;
  }
}

QPT_INLINE bool is_op(i16 op) {
  return op >= 0 && op < kOpCount;
}

// Ops act at the working size, which resize_to sets and a last resize restores.
template <class Team>
QPT_ENTRY void run_row(Team& team, const u8* src, u8* dst, i32 h, i32 w,
                       const i16* ops,       // [slots], -1: none
                       const float* params,  // [slots, 4]
                       i32 slots, u64 seed,
                       void* scratch) {  // scratch_bytes(h, w, whether ops hold resize_to), 64-byte aligned
  // 1. How many images are to be made, and the size at the end.
  i32 left = 0, now_h = h, now_w = w;
  bool resized = false;
  for (i32 slot = 0; slot < slots; ++slot) {
    left += is_op(ops[slot]) ? 1 : 0;
    if (ops[slot] != k_resize_to) continue;
    resized = true;
    now_h = working_size(h, params + 4 * slot);
    now_w = working_size(w, params + 4 * slot);
  }
  const bool restored = now_h != h || now_w != w;
  left += restored ? 1 : 0;
  if (left == 0) {
    each(team, h, 3 * w, [&](i32 y, i32 i) {
      const i64 at = static_cast<i64>(y) * 3 * w + i;
      dst[at] = src[at];
    });
    return;
  }
  // 2. The ops, and in slot `slots` what restores the size.
  Scratch rest{static_cast<u8*>(scratch)};
  const i64 image =
      resized ? static_cast<i64>(largest_working_size(h)) * largest_working_size(w) * 3 : static_cast<i64>(h) * w * 3;
  u8* const odd = rest.take<u8>(image);
  u8* const even = resized ? rest.take<u8>(image) : dst;
  const u8* from = src;
  now_h = h;
  now_w = w;
  for (i32 slot = 0; slot < slots + (restored ? 1 : 0); ++slot) {
    const i16 op = slot < slots ? ops[slot] : static_cast<i16>(k_resize_to);
    if (!is_op(op)) continue;
    const float* values = slot < slots ? params + 4 * slot : kRestore;
    const i32 to_h = op == k_resize_to ? working_size(h, values) : now_h;
    const i32 to_w = op == k_resize_to ? working_size(w, values) : now_w;
    --left;
    u8* to = left == 0 ? dst : (left & 1) ? odd : even;
    run_op(team, op,
           OpArgs{from, to, unknown(now_h), unknown(now_w), unknown(to_h), unknown(to_w), values, seed,
                  static_cast<u32>(slot), static_cast<void*>(rest.next)});
    from = to;
    now_h = to_h;
    now_w = to_w;
    team.sync();  // the op's image is the next op's input, and its scratch is reused
  }
}

}  // namespace qpt
