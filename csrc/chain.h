// Runs one row of a program on one image: the ops in order, with uint8 images between them that alternate between two
// buffers, of which the output may be one; then cuts the row's patches from the last image, if there are any.
// run_batch_row is the only entry of the device headers: csrc/cpu/degrade.cpp calls it with Solo, csrc/cuda/degrade.cu
// with some thread blocks, tests/cpp with std::threads.
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

// Scratch of the op that needs most, for a team of so many blocks, or kSoloBlocks.
QPT_FN i64 op_scratch_bytes(i32 h, i32 w, i32 blocks) {
  i64 most = 0;
#define QPT_BYTES(name, bytes) most = maximum(most, bytes(h, w, blocks));
  QPT_OPS(QPT_BYTES)
#undef QPT_BYTES
  return most;
}

// Bytes of one image between ops. If the row resizes (it may hold resize_to), an image has the largest working size.
QPT_INLINE i64 image_bytes(i32 h, i32 w, bool resizes) {
  const i64 most_h = resizes ? largest_working_size(h) : h, most_w = resizes ? largest_working_size(w) : w;
  return taken_bytes<u8>(most_h * most_w * 3);
}

// Scratch of a row, 64-byte aligned: the images between ops, then the scratch of an op. Every second image goes to the
// output, unless patches are wanted or the row resizes; then there are two images.
QPT_FN i64 scratch_bytes(i32 h, i32 w, bool resizes, bool for_patches, i32 blocks) {
  const i64 images = (resizes || for_patches ? 2 : 1) * image_bytes(h, w, resizes);
  if (resizes) {
    h = largest_working_size(h);
    w = largest_working_size(w);
  }
  return images + op_scratch_bytes(h, w, blocks);
}

// The memory that a team works in. The images between ops are kept in shared memory as far as they fit. A team of
// several blocks has none, and neither has the CPU: caches have the same effect.
struct Memory {
  void* scratch;  // [teams, scratch_bytes]
  u8* shared = nullptr;
  i64 shared_bytes = 0;
  i32 team = 0;
  i64 scratch_bytes = 0;

  // Computed again wherever it is needed: kept through the ops, it would cost them registers.
  QPT_INLINE u8* own_scratch() const { return static_cast<u8*>(scratch) + opaque(team) * scratch_bytes; }
};

// How many of the images between ops are in shared memory: the odd one first, then the even one, which exists only if
// `two`.
QPT_INLINE i32 shared_images(i64 image_bytes, bool two, i64 shared_bytes) {
  return image_bytes > shared_bytes ? 0 : two && 2 * image_bytes <= shared_bytes ? 2 : 1;
}

// Bytes of shared memory that a row uses, of shared_bytes. h, w: extents of its images or, if it ends in a window, of
// the window.
QPT_FN i64 shared_bytes_used(i32 h, i32 w, bool resizes, bool for_patches, i64 shared_bytes) {
  const i64 bytes = image_bytes(h, w, resizes);
  return bytes * shared_images(bytes, resizes || for_patches, shared_bytes);
}

// Each op is a function of its own on a GPU. In one function for all of them the compiler moved what they have in
// common before the switch, where it took registers from every op.
#define QPT_CALL(name, bytes)                                     \
  template <class Team>                                           \
  QPT_CALLED void call_##name(QPT_TEAM(Team) team, OpArgs args) { \
    name(team, args);                                             \
  }
QPT_OPS(QPT_CALL)
#undef QPT_CALL

template <class Team>
QPT_ENTRY void run_op(Team& team, i16 op, OpArgs args) {
  switch (op) {
#define QPT_CASE(name, bytes)      \
  case k_##name:                   \
    call_##name<Team>(team, args); \
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

// The patches of one row in the form that an encoder takes: value v of channel c becomes lut[256 c + v], an element of
// 1, 2, 4 or 8 bytes. The caller, who makes the lookup table (qpt/ops/degrade/patches.py), gives elements their
// meaning.
struct Patches {
  const i32* boxes;  // [count, 2]: top, left in the image; inside the window of the row
  i32 count, size;   // size: side in pixels
  const void* lut;   // [3, 256]
  void* out;         // [count, size, size, 3] if channels_last, else [count, 3, size, size]
  i32 item_bytes;
  bool channels_last;
};

// The arguments of degrade and degrade_patches.
struct Batch {
  const u8* images;  // [., h, w, 3]
  void* out;         // images [rows, h, w, 3] or, with boxes, the Patches::out of every row
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
  u8* dst;        // [h, w, 3], or null if patches are wanted
  i32 h, w;
  const i16* ops;       // [slots], -1: none
  const float* params;  // [slots, 4]
  i32 slots;
  u64 seed;
  // Ops from slot `windowed` on are given this window of the image only. `slots` means that no op is, as it must be if
  // the ops hold resize_to.
  i32 windowed;
  Window window;
};

QPT_INLINE Row row_of(const Batch& batch, i32 index) {
  // opaque: what is computed from the extents alone, such as their product, would be kept in registers through the ops.
  const i32 h = opaque(batch.h), w = opaque(batch.w);
  const i64 image_bytes = static_cast<i64>(h) * w * 3, first = static_cast<i64>(index) * batch.slots;
  const bool whole = batch.patches.boxes == nullptr;
  Row row{batch.images + batch.source[index] * image_bytes,
          whole ? static_cast<u8*>(batch.out) + index * image_bytes : nullptr,
          h,
          w,
          batch.ops + first,
          batch.params + 4 * first,
          batch.slots,
          static_cast<u64>(batch.seeds[index]),
          batch.slots,
          {0, 0, h, w}};
  if (!whole) {
    const i32* at = batch.windows + static_cast<i64>(index) * 5;
    row.windowed = at[0];
    row.window = {at[1], at[2], at[3], at[4]};
  }
  return row;
}

// The two buffers of a row's images between ops, and the scratch of ops after them.
struct Buffers {
  u8 *odd, *even;
  void* op_scratch;
};

// Returns the buffers that a row has at a slot. Of a row that ends in a window, the whole images stay out of shared
// memory, so that nothing in it is read when the images of the window come to use it.
QPT_INLINE Buffers buffers_of(const Memory& memory, const Row& row, i32 slot) {
  bool resizes = false;
  QPT_UNROLL(1)
  for (i32 i = 0; i < row.slots; ++i) resizes |= row.ops[i] == k_resize_to;
  const bool two = resizes || row.dst == nullptr, ends_in_window = row.windowed < row.slots;
  const i64 whole = image_bytes(row.h, row.w, resizes);
  u8* const scratch = memory.own_scratch();
  Buffers buffers{scratch, two ? scratch + whole : row.dst, scratch + (two ? 2 : 1) * whole};
  if (ends_in_window && slot < row.windowed) return buffers;
  const i64 bytes = ends_in_window ? image_bytes(row.window.h, row.window.w, false) : whole;
  const i32 shared = shared_images(bytes, two, memory.shared_bytes);
  if (shared > 0) buffers.odd = memory.shared;
  if (shared > 1) buffers.even = memory.shared + bytes;
  return buffers;
}

struct Extents {
  i32 h, w;
};

// Returns the extents of the image that the op of a slot gets: the working size that resize_to has set, or the
// window's.
QPT_INLINE Extents extents_at(const Row& row, i32 slot) {
  if (slot >= row.windowed && row.windowed < row.slots) return {row.window.h, row.window.w};
  Extents extents{row.h, row.w};
  QPT_UNROLL(1)
  for (i32 i = 0; i < slot; ++i)
    if (row.ops[i] == k_resize_to)
      extents = {working_size(row.h, row.params + 4 * i), working_size(row.w, row.params + 4 * i)};
  return extents;
}

// Returns the number of images that are made from a slot on: by each op, for the window, and to restore the size.
QPT_INLINE i32 images_from(const Row& row, i32 slot) {
  if (slot > row.slots) return 0;
  i32 images = 0;
  QPT_UNROLL(1)
  for (i32 i = slot; i < row.slots; ++i) images += is_op(row.ops[i]) ? 1 : 0;
  if (row.windowed < row.slots) return images + (slot <= row.windowed ? 1 : 0);
  const Extents last = extents_at(row, row.slots);
  return images + (last.h != row.h || last.w != row.w ? 1 : 0);
}

// The last image of a row, or the window of it that was computed.
struct RowResult {
  const u8* pixels;  // [window.h, window.w, 3]
  Window window;
};

// Copies the pixels of a window of src, whose rows have `width` pixels, to dst [window.h, window.w, 3].
template <class Team>
QPT_FN void copy_window(const Team& team, const u8* src, i32 width, Window window, u8* dst) {
  each(team, share(team, window.h), 3 * window.w, [&](i32 y, i32 i) {
    dst[static_cast<i64>(y) * 3 * window.w + i] = src[(static_cast<i64>(window.top + y) * width + window.left) * 3 + i];
  });
}

// Runs row `index` and returns its last image, which is in Row::dst or, if that is null, in memory (in src for a row
// without ops). Ops act at the working size, which resize_to sets and a last resize restores. In Row::dst the image is
// complete only after the team's next barrier.
template <class Team>
QPT_ENTRY RowResult run_row(Team& team, const Batch& batch, i32 index, const Memory& memory) {
  const Row row = row_of(batch, index);
  if (images_from(row, 0) == 0) {
    const Window image{0, 0, row.h, row.w};
    if (row.dst == nullptr) return {row.src, image};
    copy_window(team, row.src, row.w, image, row.dst);
    return {row.dst, image};
  }
  const u8* from = row.src;
  for (i32 slot = 0;; ++slot) {  // slot `slots` is the resize that restores the size
    // Computed again for every slot: a value that need not live through an op leaves it a GPU register.
    const Row row = row_of(batch, opaque(index));
    i32 remaining = images_from(row, slot);
    if (remaining == 0) break;
    const Buffers buffers = buffers_of(memory, row, slot);
    const Extents now = extents_at(row, slot);
    // Buffers alternate backwards from the last image, which is even, so that it falls to the output if there is one.
    const auto next_image = [&] {
      --remaining;
      return remaining == 0 && row.dst != nullptr ? row.dst : (remaining & 1) ? buffers.odd : buffers.even;
    };
    if (slot == row.windowed && slot < row.slots) {
      u8* const to = next_image();
      copy_window(team, from, row.w, row.window, to);
      from = to;
      team.sync_team();  // the window, copied by all, is the next op's input
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
                      opaque(now.h),
                      opaque(now.w),
                      opaque(to_h),
                      opaque(to_w),
                      opaque(windowed ? row.window.top : 0),
                      opaque(windowed ? row.window.left : 0),
                      opaque(windowed ? row.h : now.h),
                      opaque(windowed ? row.w : now.w),
                      params,
                      row.seed,
                      static_cast<u32>(slot),
                      buffers.op_scratch};
    from = to;
    run_op(team, op, args);
    const Row done = row_of(batch, opaque(index));
    if (done.dst != nullptr && images_from(done, slot + 1) == 0) break;
    team.sync_team();  // the op's image, written by all, is the next op's input or cut into patches; its scratch, which
                       // all have read, is reused
  }
  const Row last = row_of(batch, opaque(index));
  return {from, last.windowed < last.slots ? last.window : Window{0, 0, last.h, last.w}};
}

template <class Item, class Team>
QPT_FN void write_items(const Team& team, RowResult from, Patches to) {
  const Item* lut = static_cast<const Item*>(to.lut);
  const i32 size = to.size;
  const i64 area = static_cast<i64>(size) * size;
  const i64 pixel = to.channels_last ? 3 : 1, channel = to.channels_last ? 1 : area;
  for (i32 patch = 0; patch < to.count; ++patch) {
    const i32 top = to.boxes[2 * patch] - from.window.top, left = to.boxes[2 * patch + 1] - from.window.left;
    Item* const out = static_cast<Item*>(to.out) + patch * 3 * area;
    each(team, share(team, size), size, [&](i32 y, i32 x) {
      const u8* p = from.pixels + (static_cast<i64>(top + y) * from.window.w + left + x) * 3;
      Item* q = out + (static_cast<i64>(y) * size + x) * pixel;
      q[0] = lut[p[0]];
      q[channel] = lut[256 + p[1]];
      q[2 * channel] = lut[512 + p[2]];
    });
  }
}

template <class Team>
QPT_ENTRY void write_patches(Team& team, RowResult from, Patches to) {
  if (to.item_bytes == 1)
    write_items<u8>(team, from, to);
  else if (to.item_bytes == 2)
    write_items<u16>(team, from, to);
  else if (to.item_bytes == 4)
    write_items<u32>(team, from, to);
  else
    write_items<u64>(team, from, to);
}

// Runs the row at `place` of the batch's order, and writes its image or its patches. They are complete, and the memory
// is free for another row, after the team's next barrier.
template <class Team>
QPT_ENTRY void run_batch_row(Team& team, const Batch& batch, i32 place, const Memory& memory) {
  const i32 index = batch.order[place];
  const RowResult result = run_row(team, batch, index, memory);
  if (batch.patches.boxes == nullptr) return;
  Patches patches = batch.patches;
  // opaque: what is computed from these would be kept in registers through the ops.
  patches.count = opaque(patches.count);
  patches.size = opaque(patches.size);
  const i64 row = opaque(index), values = static_cast<i64>(patches.count) * patches.size * patches.size * 3;
  patches.boxes += row * patches.count * 2;
  patches.out = static_cast<u8*>(batch.out) + row * values * patches.item_bytes;
  write_patches(team, result, patches);
}

}  // namespace qpt
