// One row of a program on one image: the ops one after another, uint8 in between, alternating between two images, one
// of which may be the output; then the patches that are cut from the last one, if any. The only entry of the device
// headers: called by cpu/degrade.cpp with Solo, by csrc/cuda with a thread block, by tests/cpp with std::threads.
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

// Of one image between ops; resized: the row may hold resize_to, and its images have the largest working size.
QPT_INLINE i64 image_bytes(i32 h, i32 w, bool resized) {
  const i64 most_h = resized ? largest_working_size(h) : h, most_w = resized ? largest_working_size(w) : w;
  return taken_bytes<u8>(most_h * most_w * 3);
}

// Scratch of a row, 64-byte aligned: the images between ops and the ops' own. kept: no output takes every second image,
// so there are two.
QPT_FN i64 scratch_bytes(i32 h, i32 w, bool resized, bool kept) {
  const i64 images = (resized || kept ? 2 : 1) * image_bytes(h, w, resized);
  if (resized) {
    h = largest_working_size(h);
    w = largest_working_size(w);
  }
  return images + op_scratch_bytes(h, w);
}

// What a team works in. fast: a thread block's shared memory, where a row's images are kept as far as they fit; none on
// the CPU, whose caches do the same.
struct Memory {
  void* scratch;  // scratch_bytes
  u8* fast = nullptr;
  i64 fast_bytes = 0;
};

// How many of the two images between ops are in fast memory: the odd one first. two: no output is the even one.
QPT_INLINE i32 fast_images(i64 image_bytes, bool two, i64 fast_bytes) {
  return image_bytes > fast_bytes ? 0 : two && 2 * image_bytes <= fast_bytes ? 2 : 1;
}

// Fast memory that a row takes of fast_bytes. h, w, resized: of the images between its ops; if it ends in a window,
// those of the window.
QPT_FN i64 fast_bytes_taken(i32 h, i32 w, bool resized, bool kept, i64 fast_bytes) {
  const i64 bytes = image_bytes(h, w, resized);
  return bytes * fast_images(bytes, resized || kept, fast_bytes);
}

template <class Team>
QPT_CALLED void run_op(QPT_TEAM(Team) team, i16 op, OpArgs args) {
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

struct Window {
  i32 top, left, h, w;
};

// The patches of one row, as an encoder takes them: value v of channel c becomes table[256 c + v], an element of 2, 4
// or 8 bytes. What an element means is the business of the table's maker (qpt/ops/degrade/patches.py).
struct Patches {
  const i32* boxes;   // [count, 2]: top, left in the image; inside the picture that they are cut from
  i32 count, size;    // size: side in pixels
  const void* table;  // [3, 256]
  void* out;          // [count, size, size, 3] if channels_last, else [count, 3, size, size]
  i32 item_bytes;
  bool channels_last;
};

// What degrade and degrade_patches are given.
struct Batch {
  const u8* images;  // [., h, w, 3]
  void* out;         // images [rows, h, w, 3] or, with boxes, what Patches::out says, row after row
  i32 h, w, rows, slots;
  const i16* ops;       // [rows, slots]
  const float* params;  // [rows, slots, 4]
  const i64* seeds;     // [rows]
  const i32* source;    // [rows] index into images
  const i32* order;     // [rows] a permutation: the row to run first, second...
  const i32* windows;   // [rows, 5] Row::windowed and Row::window; null without boxes
  Patches patches;      // boxes [rows, count, 2], or null; out is unused
};

struct Row {
  const u8* src;  // [h, w, 3]
  u8* dst;        // [h, w, 3], or null where patches are wanted
  i32 h, w;
  const i16* ops;       // [slots], -1: none
  const float* params;  // [slots, 4]
  i32 slots;
  u64 seed;
  // Ops from slot `windowed` on see this window of the image only; `slots`: none do, as must be if ops hold resize_to.
  i32 windowed;
  Window window;
};

QPT_INLINE Row row_of(const Batch& batch, i32 index) {
  const i64 image_bytes = static_cast<i64>(batch.h) * batch.w * 3, first = static_cast<i64>(index) * batch.slots;
  const bool whole = batch.patches.boxes == nullptr;
  Row row{batch.images + batch.source[index] * image_bytes,
          whole ? static_cast<u8*>(batch.out) + index * image_bytes : nullptr,
          batch.h,
          batch.w,
          batch.ops + first,
          batch.params + 4 * first,
          batch.slots,
          static_cast<u64>(batch.seeds[index]),
          batch.slots,
          {0, 0, batch.h, batch.w}};
  if (!whole) {
    const i32* at = batch.windows + static_cast<i64>(index) * 5;
    row.windowed = at[0];
    row.window = {at[1], at[2], at[3], at[4]};
  }
  return row;
}

// Where a row keeps its images between ops, and the scratch of ops after them.
struct Places {
  u8 *odd, *even;
  void* rest;
};

// Of a slot of a row; resized: it holds resize_to. A row that ends in a window keeps whole images out of fast memory,
// which so begins to be used when nothing in it is read.
QPT_INLINE Places places_of(const Memory& memory, const Row& row, bool resized, i32 slot) {
  const bool two = resized || row.dst == nullptr, cut = row.windowed < row.slots;
  const i64 whole = image_bytes(row.h, row.w, resized);
  u8* const scratch = static_cast<u8*>(memory.scratch);
  Places places{scratch, two ? scratch + whole : row.dst, scratch + (two ? 2 : 1) * whole};
  if (cut && slot < row.windowed) return places;
  const i64 bytes = cut ? image_bytes(row.window.h, row.window.w, false) : whole;
  const i32 fast = fast_images(bytes, two, memory.fast_bytes);
  if (fast > 0) places.odd = memory.fast;
  if (fast > 1) places.even = memory.fast + bytes;
  return places;
}

struct Picture {
  const u8* pixels;  // [window.h, window.w, 3]
  Window window;
};

// Bytes of a window, of src whose rows have `width` pixels, one row after another.
template <class Team>
QPT_FN void copy_window(const Team& team, const u8* src, i32 width, Window window, u8* dst) {
  each(team, window.h, 3 * window.w, [&](i32 y, i32 i) {
    dst[static_cast<i64>(y) * 3 * window.w + i] = src[(static_cast<i64>(window.top + y) * width + window.left) * 3 + i];
  });
}

// Runs row `index` and says where its last image is: in dst or, if that is null, in memory (or src, without ops).
// Ops act at the working size, which resize_to sets and a last resize restores.
template <class Team>
QPT_ENTRY Picture run_row(Team& team, const Batch& batch, i32 index, const Memory& memory) {
  // 1. How many images are to be made, and the size at the end.
  const Row row = row_of(batch, index);
  u8* const dst = row.dst;
  i32 left = 0;
  Window now{0, 0, row.h, row.w};
  bool resized = false;
  for (i32 slot = 0; slot < row.slots; ++slot) {
    left += is_op(row.ops[slot]) ? 1 : 0;
    if (row.ops[slot] != k_resize_to) continue;
    resized = true;
    now.h = working_size(row.h, row.params + 4 * slot);
    now.w = working_size(row.w, row.params + 4 * slot);
  }
  const bool restored = now.h != row.h || now.w != row.w, cut = row.windowed < row.slots;
  left += (restored ? 1 : 0) + (cut ? 1 : 0);
  now = {0, 0, row.h, row.w};
  if (left == 0) {
    if (dst == nullptr) return {row.src, now};
    copy_window(team, row.src, row.w, now, dst);
    return {dst, now};
  }
  // 2. The ops; in slot `slots` what restores the size.
  const u8* from = row.src;
  for (i32 slot = 0; slot < batch.slots + (restored ? 1 : 0); ++slot) {
    // Made anew for every slot: what need not live through an op leaves it a GPU register.
    const Row row = row_of(batch, unknown(index));
    const Places places = places_of(memory, row, unknown(resized) != 0, slot);
    const auto next_image = [&] {
      --left;
      return left == 0 && row.dst != nullptr ? row.dst : (left & 1) ? places.odd : places.even;
    };
    if (slot == row.windowed && slot < row.slots) {
      u8* const to = next_image();
      copy_window(team, from, row.w, row.window, to);
      from = to;
      now = row.window;
      team.sync();  // the window, copied by all, is the next op's input
    }
    const i16 op = slot < row.slots ? row.ops[slot] : static_cast<i16>(k_resize_to);
    if (!is_op(op)) continue;
    const float* params = slot < row.slots ? row.params + 4 * slot : kRestore;
    const bool resizing = op == k_resize_to, windowed = slot >= row.windowed;
    const i32 to_h = resizing ? working_size(row.h, params) : now.h;
    const i32 to_w = resizing ? working_size(row.w, params) : now.w;
    u8* const to = next_image();
    const OpArgs args{from,
                      to,
                      unknown(now.h),
                      unknown(now.w),
                      unknown(to_h),
                      unknown(to_w),
                      unknown(now.top),
                      unknown(now.left),
                      unknown(windowed ? row.h : now.h),
                      unknown(windowed ? row.w : now.w),
                      params,
                      row.seed,
                      static_cast<u32>(slot),
                      places.rest};
    from = to;
    now.h = to_h;
    now.w = to_w;
    run_op(team, op, args);
    team.sync();  // the op's image is the next op's input, and its scratch is reused
  }
  return {from, now};
}

template <class Item, class Team>
QPT_FN void write_items(const Team& team, Picture from, Patches to) {
  const Item* table = static_cast<const Item*>(to.table);
  const i32 size = to.size;
  const i64 area = static_cast<i64>(size) * size;
  const i64 pixel = to.channels_last ? 3 : 1, channel = to.channels_last ? 1 : area;
  for (i32 patch = 0; patch < to.count; ++patch) {
    const i32 top = to.boxes[2 * patch] - from.window.top, left = to.boxes[2 * patch + 1] - from.window.left;
    Item* const out = static_cast<Item*>(to.out) + patch * 3 * area;
    each(team, size, size, [&](i32 y, i32 x) {
      const u8* p = from.pixels + (static_cast<i64>(top + y) * from.window.w + left + x) * 3;
      Item* q = out + (static_cast<i64>(y) * size + x) * pixel;
      q[0] = table[p[0]];
      q[channel] = table[256 + p[1]];
      q[2 * channel] = table[512 + p[2]];
    });
  }
}

template <class Team>
QPT_ENTRY void write_patches(Team& team, Picture from, Patches to) {
  if (to.item_bytes == 1)
    write_items<u8>(team, from, to);
  else if (to.item_bytes == 2)
    write_items<u16>(team, from, to);
  else if (to.item_bytes == 4)
    write_items<u32>(team, from, to);
  else
    write_items<u64>(team, from, to);
}

template <class Team>
QPT_ENTRY void run_batch_row(Team& team, const Batch& batch, i32 place, const Memory& memory) {
  const Picture picture = run_row(team, batch, batch.order[place], memory);
  if (batch.patches.boxes == nullptr) return;
  const i32 index = batch.order[unknown(place)];  // read anew: kept, it costs ops a register
  Patches patches = batch.patches;
  const i64 values = static_cast<i64>(patches.count) * patches.size * patches.size * 3;
  patches.boxes += static_cast<i64>(index) * patches.count * 2;
  patches.out = static_cast<u8*>(batch.out) + index * values * patches.item_bytes;
  write_patches(team, picture, patches);
}

}  // namespace qpt
