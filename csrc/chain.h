// One row of a program on one image: the ops one after another, uint8 in between, alternating between the output and
// one image in scratch so that the last op writes the output. The only entry of the device headers: called by
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

// Scratch of a row, 64-byte aligned: one image and the ops' own.
QPT_FN i64 scratch_bytes(i32 h, i32 w) {
  return taken_bytes<u8>(static_cast<i64>(h) * w * 3) + op_scratch_bytes(h, w);
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

template <class Team>
QPT_ENTRY void run_row(Team& team, const u8* src, u8* dst, i32 h, i32 w,
                       const i16* ops,       // [slots], -1: none
                       const float* params,  // [slots, 4]
                       i32 slots, u64 seed,
                       void* scratch) {  // scratch_bytes(h, w), 64-byte aligned
  Scratch rest{static_cast<u8*>(scratch)};
  u8* other = rest.take<u8>(static_cast<i64>(h) * w * 3);
  i32 left = 0;
  for (i32 slot = 0; slot < slots; ++slot) left += is_op(ops[slot]) ? 1 : 0;
  if (left == 0) {
    each(team, h, 3 * w, [&](i32 y, i32 i) {
      const i64 at = static_cast<i64>(y) * 3 * w + i;
      dst[at] = src[at];
    });
    return;
  }
  const u8* from = src;
  for (i32 slot = 0; slot < slots; ++slot) {
    if (!is_op(ops[slot])) continue;
    --left;
    u8* to = (left & 1) ? other : dst;
    run_op(team, ops[slot],
           OpArgs{from, to, unknown(h), unknown(w), params + 4 * slot, seed, static_cast<u32>(slot),
                  static_cast<void*>(rest.next)});
    from = to;
    team.sync();  // the op's image is the next op's input, and its scratch is reused
  }
}

}  // namespace qpt
