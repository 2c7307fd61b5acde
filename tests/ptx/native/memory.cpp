#include "memory.h"

#include <cstdio>

namespace ptx {
namespace {

constexpr int kPcBits = 20, kClockShift = 21, kThreadShift = 38, kBlockShift = 48;
constexpr Access kStrongBit = Access(1) << kPcBits, kLaneBits = Access(kLanes - 1) << kThreadShift;
constexpr size_t kMostReaders = 64;  // of a byte, as many as 32 warps of one block can be; the oldest are forgotten

std::string hexadecimal(u64 x) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(x));
  return text;
}

// Is `other` ordered before what the warp does now?
bool ordered(Warp& w, Access other) {
  const u32 clock = other >> kClockShift & 0x1ffff, thread = other >> kThreadShift & 1023, block = other >> kBlockShift;
  const u32 warp = thread / kLanes;
  if (block == (w.block->index & 0xffff)) return int(warp) == w.index ? clock < w.clock[warp] : clock <= w.clock[warp];
  const auto found = w.block->acquired.find(block);
  return found != w.block->acquired.end() && clock <= found->second[warp];
}
bool conflicts(Warp& w, Access mine, Access other) {
  if (other == 0 || (mine ^ other) >> kThreadShift == 0) return false;
  if (mine & other & kStrongBit) return false;
  return !ordered(w, other);
}
// Do both belong to one warp at one time of its clock? Then two threads stand for all: of two, another thread is one.
bool same_time(Access a, Access b) {
  return ((a ^ b) & ~(kLaneBits | (kStrongBit - 1))) == 0;
}
// Which later write races with `other`, but not with the read `mine` before which it is ordered? None of a plain read.
bool covered(Warp& w, Access mine, Access other) {
  return (other & kStrongBit || !(mine & kStrongBit)) && ordered(w, other);
}
void add_reader(Warp& w, Cell& c, Access mine) {
  if (c.read && same_time(mine, c.read)) {
    if (!c.other_read && (mine ^ c.read) >> kThreadShift) c.other_read = mine;
    return;
  }
  const Access before[2] = {c.read, c.other_read};
  c.read = c.other_read = 0;
  const auto restore = [&](Access other) { (c.read ? c.other_read : c.read) = other; };
  if (c.readers) {
    auto& all = *c.readers;
    size_t left = 0;
    for (const Access other : all)
      if (same_time(mine, other))
        restore(other);
      else if (!covered(w, mine, other))
        all[left++] = other;
    all.resize(left);
  }
  for (const Access other : before)
    if (other && !covered(w, mine, other)) {
      if (!c.readers) c.readers.reset(new std::vector<Access>);
      if (c.readers->size() == kMostReaders) c.readers->erase(c.readers->begin());
      c.readers->push_back(other);
    }
  if (!c.read)
    c.read = mine;
  else if (!c.other_read && (mine ^ c.read) >> kThreadShift)
    c.other_read = mine;
}
void report(Warp& w, int lane, const Span& at, u32 byte, const char* what, Access other) {
  w.fault("race", lane, std::string(what) + " at " + hexadecimal(at.address + byte), other);
}

}  // namespace

void Warp::fault(const std::string& kind, int lane, const std::string& text, Access other) const {
  Fault f{kind, text};
  f.pc = pc, f.block = block->index, f.thread = lane < 0 ? i64(index) * kLanes : thread(lane);
  if (other) {
    f.other_pc = other & ((1 << kPcBits) - 1);
    f.other_thread = other >> kThreadShift & 1023, f.other_block = other >> kBlockShift;
  }
  throw f;
}
void Warp::need_defined(const Operand& o, Mask mask, const char* what) const {
  if (const Mask bad = poisoned(o) & mask)
    fault("poison", __builtin_ctz(bad), std::string(what) + " was never defined");
}

Region* Machine::find(u64 address) {
  if (last && address - last->base < last->size) return last;
  auto after = regions.upper_bound(address);
  if (after == regions.begin()) return nullptr;
  Region* found = std::prev(after)->second.get();
  return last = address - found->base < (u64(1) << 32) ? found : nullptr;
}

Span locate(Warp& w, int lane, Space space, u64 address, u32 bytes, bool write) {
  if (space == kGeneric) {
    space = kGlobal;
    if (address - kSharedWindow < kWindow) space = kShared, address -= kSharedWindow;
    if (address - kLocalWindow < kWindow) space = kLocal, address -= kLocalWindow;
  }
  if (address % bytes)
    w.fault("misaligned", lane, hexadecimal(address) + " is no multiple of " + std::to_string(bytes));
  if (space == kLocal) {
    const u64 size = w.machine->local_bytes;
    if (address + bytes > size || address > size)
      w.fault("bounds", lane, "local address " + std::to_string(address) + " of " + std::to_string(size) + " bytes");
    return {w.local.data() + lane * size + address, w.local_valid.data() + lane * size + address, nullptr, space,
            address};
  }
  Region* region = space == kShared ? &w.block->shared : w.machine->find(address);
  if (!region) w.fault("bounds", lane, hexadecimal(address) + " is in no buffer");
  const u64 offset = address - region->base;
  if (offset + bytes > region->size || offset > region->size)
    w.fault("bounds", lane,
            "byte " + std::to_string(i64(offset)) + " of " + region->name + " (" + std::to_string(region->size) +
                " bytes)");
  if (write && !region->writable) w.fault("bounds", lane, "a write to " + region->name + ", which is read-only");
  u8* valid = region->valid + offset;
  for (u32 b = 0; b < bytes; ++b)
    if (valid[b] == 2)
      w.fault("bounds", lane, "byte " + std::to_string(offset + b) + " of shared memory lies between variables");
  return {region->data + offset, valid, region->cells.empty() ? nullptr : region->cells.data() + offset, space,
          address};
}

Access access_of(const Warp& w, int lane, bool strong) {
  const u64 clock = w.clock[w.index];
  if (clock >> (kThreadShift - kClockShift)) w.fault("limit", lane, "more barriers than race detection can count");
  return u64(w.block->index & 0xffff) << kBlockShift | u64(w.thread(lane)) << kThreadShift | clock << kClockShift |
         (strong ? kStrongBit : 0) | u64(w.pc);
}

void note_read(Warp& w, int lane, const Span& at, u32 bytes, bool strong, bool then_written) {
  if (!at.cells) return;
  const Access mine = access_of(w, lane, strong);
  for (u32 b = 0; b < bytes; ++b) {
    Cell& c = at.cells[b];
    if (conflicts(w, mine, c.write)) report(w, lane, at, b, "read of what another thread writes", c.write);
    if (conflicts(w, mine, c.strong_write))
      report(w, lane, at, b, "read of what another thread writes", c.strong_write);
    if (then_written) continue;  // an atomic: its write says it all
    add_reader(w, c, mine);
  }
}
void note_write(Warp& w, int lane, const Span& at, u32 bytes, bool strong, const u8* values) {
  if (!at.cells) return;
  const Access mine = access_of(w, lane, strong);
  for (u32 b = 0; b < bytes; ++b) {
    Cell& c = at.cells[b];
    const bool same = values && at.valid[b] == 1 && at.data[b] == values[b];
    if (!same) {
      if (conflicts(w, mine, c.write)) report(w, lane, at, b, "write over what another thread writes", c.write);
      if (conflicts(w, mine, c.strong_write))
        report(w, lane, at, b, "write over what another thread writes", c.strong_write);
      if (conflicts(w, mine, c.read)) report(w, lane, at, b, "write over what another thread reads", c.read);
      if (conflicts(w, mine, c.other_read))
        report(w, lane, at, b, "write over what another thread reads", c.other_read);
      if (c.readers)
        for (const Access other : *c.readers)
          if (conflicts(w, mine, other)) report(w, lane, at, b, "write over what another thread reads", other);
      if (!strong) {  // all are ordered before this write: who is not ordered after them is not ordered after it
        c.read = c.other_read = 0;
        if (c.readers) c.readers->clear();
      }
    }
    (strong ? c.strong_write : c.write) = mine;
  }
}

void count_request(Warp& w, Space space, const u64* addresses, Mask mask, u32 bytes) {
  if (!w.machine->options.count) return;
  Counts& counts = w.machine->counts[w.pc];
  const int place = space - kGlobal;
  counts.requests[place] += 1;
  counts.bytes[place] += u64(bytes) * __builtin_popcount(mask);
  if (space == kShared) {
    // A pass serves each of 32 banks one word of 4 bytes; 8 and 16 bytes a lane go by halves and quarters of the warp.
    const int lanes = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
    for (int first = 0; first < kLanes; first += lanes) {
      u64 words[32][32];
      int used[32] = {}, most = 0, all = 0;
      each_lane(mask & (lanes == 32 ? kAll : ((Mask(1) << lanes) - 1) << first), [&](int l) {
        for (u64 word = addresses[l] / 4; word <= (addresses[l] + bytes - 1) / 4; ++word) {
          const int bank = word & 31;
          bool known = false;
          for (int k = 0; k < used[bank]; ++k) known |= words[bank][k] == word;
          if (!known) words[bank][used[bank]++] = word, ++all;
          most = std::max(most, used[bank]);
        }
      });
      counts.passes += most;
      counts.conflicts += most - (all + 31) / 32;
    }
    return;
  }
  // Local memory is interleaved: a word of 32 lanes is 128 bytes side by side.
  u64 sectors[kLanes * 16];
  int known = 0;
  const u64 unit = space == kLocal ? 4 : 32;
  each_lane(mask, [&](int l) {
    for (u64 at = addresses[l] / unit; at <= (addresses[l] + bytes - 1) / unit; ++at) {
      const u64 sector = space == kLocal ? at * 4 + l / 8 : at;
      bool found = false;
      for (int k = known; k-- > 0 && !found;) found = sectors[k] == sector;
      if (!found) sectors[known++] = sector;
    }
  });
  counts.sectors[place] += known;
}

namespace {
void join(Clock& into, const Clock& from) {
  into.resize(std::max(into.size(), from.size()));
  for (size_t k = 0; k < from.size(); ++k) into[k] = std::max(into[k], from[k]);
}
u64 key(const Warp& w, const Span& at) {
  return at.space == kShared ? kSharedWindow | u64(w.block->index) << 33 | at.address : at.address;
}
}  // namespace

void publish(Warp& w, const Span& at, bool release) {
  if (release) w.fenced = w.clock, ++w.clock[w.index];
  if (w.fenced.empty()) return;
  Clocks& clocks = w.machine->published[key(w, at)];
  join(clocks[w.block->index & 0xffff], w.fenced);
  for (const auto& [block, clock] : w.block->acquired) join(clocks[block], clock);
}
void acquire(Warp& w, const Span& at) {
  const auto found = w.machine->published.find(key(w, at));
  if (found == w.machine->published.end()) return;
  for (const auto& [block, clock] : found->second) {
    if (block == (w.block->index & 0xffff)) {
      const u32 own = w.clock[w.index];
      join(w.clock, clock);
      w.clock[w.index] = own;
    } else {
      join(w.block->acquired[block], clock);
    }
  }
}

// cp.async: the lane's oldest groups but `groups_left` arrive (all: and what is not committed).
void Warp::deliver(int lane, size_t groups_left, bool all) {
  const auto arrive = [&](const std::vector<Copy>& copies) {
    for (const Copy& copy : copies) {
      const Span at = locate(*this, lane, kShared, copy.to, copy.size, true);
      note_write(*this, lane, at, copy.size, false, nullptr);
      std::memcpy(at.data, copy.data, copy.size);
      std::memcpy(at.valid, copy.valid, copy.size);
    }
  };
  while (groups[lane].size() > groups_left) {
    arrive(groups[lane].front());
    groups[lane].pop_front();
  }
  if (all) arrive(open[lane]), open[lane].clear();
}

}  // namespace ptx
