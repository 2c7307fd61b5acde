// Where an address leads, and who touched it: bounds, alignment, poison and races. Used by the handlers that access
// memory.
#pragma once

#include "machine.h"

namespace ptx {

enum Space : u32 { kGeneric, kGlobal, kShared, kLocal };

// Flags of memory instructions, mirrored by assemble.py.
constexpr u32 kSizeBits = 31, kSigned = 32, kSpaceShift = 6, kStrong = 512, kAcquire = 1024, kRelease = 2048,
              kCountShift = 12, kNoResult = 1 << 16, kTranspose = 1 << 17, kZeroFill = 1 << 18;
inline Space space_of(u32 flags) {
  return Space(flags >> kSpaceShift & 7);
}

struct Span {
  u8 *data, *valid;
  Cell* cells;  // null: not watched
  Space space;
  u64 address;  // within its space
};

// The bytes at an address. Throws where they are outside every allocation, misaligned, or not to be written.
Span locate(Warp& w, int lane, Space space, u64 address, u32 bytes, bool write);
Access access_of(const Warp& w, int lane, bool strong);
// Throws if another thread's access is not ordered before this one. `bytes` as for the write itself: a thread that
// writes what is there already does no harm.
void note_read(Warp& w, int lane, const Span& at, u32 bytes, bool strong, bool then_written = false);
void note_write(Warp& w, int lane, const Span& at, u32 bytes, bool strong, const u8* values);
// Counts one request to a space: its sectors of 32 bytes, or its passes to the banks of shared memory.
void count_request(Warp& w, Space space, const u64* addresses, Mask mask, u32 bytes);
// What release and acquire pass on, at the address of a strong access.
void publish(Warp& w, const Span& at, bool release);
void acquire(Warp& w, const Span& at);

// Address of every lane of the mask: base register plus offset. Poison is a fault.
inline u64 address_of(Warp& w, const Operand& base, i64 offset, int lane) {
  const u64 sum = w.read(base, lane) + u64(offset);
  return base.width == 4 ? sum & 0xffffffffu : sum;
}

}  // namespace ptx
