// ld, st, atom, red, cp.async, ldmatrix, stmatrix, fences and conversions of addresses.
#include "memory.h"
#include "number.h"

namespace ptx {
namespace {

void addresses_of(Warp& w, const Instr& i, const Operand& base, Mask m, u64* addresses) {
  w.need_defined(base, m, "the address");
  each_lane(m, [&](int l) { addresses[l] = address_of(w, base, i.imm, l); });
}
void count_spans(Warp& w, const Span* spans, Mask m, u32 bytes) {
  if (!w.machine->options.count) return;
  u64 addresses[kLanes];
  Mask of[4] = {};  // a generic request may lead to several spaces
  each_lane(m, [&](int l) { addresses[l] = spans[l].address, of[spans[l].space] |= Mask(1) << l; });
  for (const Space space : {kGlobal, kShared, kLocal})
    if (of[space]) count_request(w, space, addresses, of[space], bytes);
}

void loaded(Warp& w, const Operand& to, Mask m, Mask bad, const u64* addresses) {
  if (bad && w.machine->options.strict) {
    const int lane = __builtin_ctz(bad);
    w.fault("poison", lane, "a load of what was never defined, at " + std::to_string(addresses[lane]));
  }
  w.set_poison(to, m, bad);
}

// op[0 .. n) = n numbers at op[n]
void load(Warp& w, const Instr& i, Mask m) {
  const u32 size = i.flags & kSizeBits, n = i.flags >> kCountShift & 15, bytes = size * n;
  const bool strong = i.flags & kStrong;
  u64 addresses[kLanes];
  addresses_of(w, i, i.op[n], m, addresses);
  Span spans[kLanes];
  Mask bad[8] = {};
  u64 values[8][kLanes];  // a destination may be the address register
  each_lane(m, [&](int l) {
    const Span at = spans[l] = locate(w, l, space_of(i.flags), addresses[l], bytes, false);
    note_read(w, l, at, bytes, strong);
    if (i.flags & kStrong) acquire(w, at);
    for (u32 k = 0; k < n; ++k) {
      u64 value = 0;
      std::memcpy(&value, at.data + k * size, size);
      if (i.flags & kSigned) value = u64(i64(value << (64 - 8 * size)) >> (64 - 8 * size));
      values[k][l] = value;
      for (u32 b = 0; b < size; ++b) bad[k] |= Mask(at.valid[k * size + b] != 1) << l;
    }
  });
  for (u32 k = 0; k < n; ++k) {
    each_lane(m, [&](int l) { w.write(i.op[k], l, values[k][l]); });
    loaded(w, i.op[k], m, bad[k], addresses);
  }
  count_spans(w, spans, m, bytes);
}

// n numbers from op[1 .. n] to op[0]
void store(Warp& w, const Instr& i, Mask m) {
  const u32 size = i.flags & kSizeBits, n = i.flags >> kCountShift & 15, bytes = size * n;
  u64 addresses[kLanes];
  addresses_of(w, i, i.op[0], m, addresses);
  Span spans[kLanes];
  each_lane(m, [&](int l) {
    const Span at = spans[l] = locate(w, l, space_of(i.flags), addresses[l], bytes, true);
    u8 values[64];
    bool defined = true;
    for (u32 k = 0; k < n; ++k) {
      const u64 value = w.read(i.op[k + 1], l);
      std::memcpy(values + k * size, &value, size);
      defined &= !(w.poisoned(i.op[k + 1]) >> l & 1);
    }
    note_write(w, l, at, bytes, i.flags & kStrong, defined ? values : nullptr);
    for (u32 k = 0; k < n; ++k) {
      std::memcpy(at.data + k * size, values + k * size, size);
      std::memset(at.valid + k * size, !(w.poisoned(i.op[k + 1]) >> l & 1), size);
    }
    if (i.flags & kStrong) publish(w, at, i.flags & kRelease);
  });
  count_spans(w, spans, m, bytes);
}

// atom: op[0] = old value at op[1]; red: at op[0]. Lanes in order, as if they took turns.
template <class T, class F>
void atomic(Warp& w, const Instr& i, Mask m) {
  const bool result = !(i.flags & kNoResult);
  const Operand &base = i.op[result ? 1 : 0], &b = i.op[result ? 2 : 1], &c = i.op[result ? 3 : 2];
  u64 addresses[kLanes];
  addresses_of(w, i, base, m, addresses);
  Span spans[kLanes];
  Mask bad = 0;
  T olds[kLanes];
  each_lane(m, [&](int l) {
    const Span at = spans[l] = locate(w, l, space_of(i.flags), addresses[l], sizeof(T), true);
    note_read(w, l, at, sizeof(T), true, true);
    note_write(w, l, at, sizeof(T), true, nullptr);
    T old;
    std::memcpy(&old, at.data, sizeof old);
    bool defined = !(w.poisoned(b) >> l & 1);
    for (u32 k = 0; k < sizeof(T); ++k) defined &= at.valid[k] == 1;
    const T r = F::of(old, *reinterpret_cast<T*>(w.lane(b, l)), *reinterpret_cast<T*>(w.lane(c, l)));
    std::memcpy(at.data, &r, sizeof r);
    std::memset(at.valid, defined, sizeof r);
    bad |= Mask(!defined) << l;
    olds[l] = old;
    acquire(w, at);
    publish(w, at, i.flags & kRelease);
  });
  if (result) {
    each_lane(m, [&](int l) { std::memcpy(w.lane(i.op[0], l), &olds[l], sizeof(T)); });
    w.set_poison(i.op[0], m, bad);
  }
  count_spans(w, spans, m, sizeof(T));
}
#define PTX_ATOMIC(name, expression) \
  struct name {                      \
    template <class T>               \
    static T of(T old, T b, T c) {   \
      (void)old, (void)c;            \
      return expression;             \
    }                                \
  };
PTX_ATOMIC(AtomicAdd, T(old + b))
PTX_ATOMIC(AtomicMin, b < old ? b : old)
PTX_ATOMIC(AtomicMax, b > old ? b : old)
PTX_ATOMIC(AtomicAnd, T(old& b))
PTX_ATOMIC(AtomicOr, T(old | b))
PTX_ATOMIC(AtomicXor, T(old ^ b))
PTX_ATOMIC(AtomicExchange, b)
PTX_ATOMIC(AtomicSwap, old == b ? c : old)
PTX_ATOMIC(AtomicIncrement, old >= b ? T(0) : T(old + 1))
PTX_ATOMIC(AtomicDecrement, old == 0 || old > b ? b : T(old - 1))
struct AtomicSmall {
  template <class T>
  static T of(T old, T b, T) {
    for (int k = 0; k < T::kCount; ++k)
      old.at[k] = decltype(+old.at[k], T::element(0))(fma_to_odd(1, old.at[k], b.at[k]));
    return old;
  }
};
template <class H, int n>
struct Group {
  static constexpr int kCount = n;
  static H element(float x) { return H((long double)x); }
  H at[n];
};

template <class T, class F>
void add_atomic(const std::string& operation, const std::string& type, const std::string& more = "") {
  const std::string n = std::to_string(sizeof(T));
  add("atom." + operation + "." + type, n + "m" + n + more, atomic<T, F>);
  add("red." + operation + "." + type, "m" + n + more, atomic<T, F>, kNoResult);
}
template <class T>
void add_atomics(const std::string& bits, const std::string& type) {
  add_atomic<T, AtomicAdd>("add", type);
  add_atomic<T, AtomicMin>("min", type);
  add_atomic<T, AtomicMax>("max", type);
  if (std::is_signed_v<T>) return;
  add_atomic<T, AtomicAnd>("and", bits);
  add_atomic<T, AtomicOr>("or", bits);
  add_atomic<T, AtomicXor>("xor", bits);
  add_atomic<T, AtomicExchange>("exch", bits);
  add_atomic<T, AtomicSwap>("cas", bits, std::to_string(sizeof(T)));
  add_atomic<T, AtomicIncrement>("inc", type);
  add_atomic<T, AtomicDecrement>("dec", type);
}

// cp.async [op 0], [op 1 + offset in the last operand], imm bytes; kZeroFill: op 2 bytes are copied, zeros follow.
// The destination is poison until the copy's group has been waited for.
void copy_async(Warp& w, const Instr& i, Mask m) {
  const u32 size = i.flags & kSizeBits;
  u64 to[kLanes], from[kLanes];
  addresses_of(w, i, i.op[0], m, to);
  w.need_defined(i.op[1], m, "the address");
  const i64 offset = *w.lanes<i64>(i.op[2]);  // a constant
  if (i.flags & kZeroFill) w.need_defined(i.op[3], m, "the size");
  Span spans[kLanes];
  Mask reading = 0;
  each_lane(m, [&](int l) {
    Copy copy{};
    copy.to = to[l], copy.size = size, copy.pc = w.pc;
    const Span target = locate(w, l, kShared, to[l], size, true);
    note_write(w, l, target, size, false, nullptr);
    std::memset(target.valid, 0, size);
    std::memset(copy.valid, 1, size);
    const u32 taken = i.flags & kZeroFill ? u32(w.read(i.op[3], l)) : size;
    if (taken > size) w.fault("bounds", l, "cp.async of more bytes than its size");
    from[l] = address_of(w, i.op[1], offset, l);
    if (taken > 0) {
      const Span source = spans[l] = locate(w, l, kGlobal, from[l], size, false);
      note_read(w, l, source, taken, false);
      std::memcpy(copy.data, source.data, taken);
      for (u32 b = 0; b < taken; ++b) copy.valid[b] = source.valid[b];
      reading |= Mask(1) << l;
    }
    w.open[l].push_back(copy);
  });
  count_spans(w, spans, reading, size);
  if (m) count_request(w, kShared, to, m, size);
}
void commit_group(Warp& w, const Instr&, Mask m) {
  each_lane(m, [&](int l) { w.groups[l].push_back(std::move(w.open[l])), w.open[l].clear(); });
}
void wait_group(Warp& w, const Instr& i, Mask m) {
  each_lane(m, [&](int l) { w.deliver(l, i.imm, false); });
}
void wait_all(Warp& w, const Instr&, Mask m) {
  each_lane(m, [&](int l) { w.deliver(l, 0, true); });
}

// Matrices of 8 x 8 16-bit numbers; lane 8 j + r gives the address of row r of matrix j, lane t gets row t / 4, columns
// 2 (t % 4) and the next one (transposed: that column and those rows).
template <bool store_them>
void matrix(Warp& w, const Instr& i, Mask m) {
  if (m != kAll) w.fault("lanes", -1, "ldmatrix and stmatrix need all 32 lanes of a warp");
  const int n = i.flags >> kCountShift & 15, base_at = store_them ? 0 : n;
  const Operand& base = i.op[base_at];
  w.need_defined(base, n == 4 ? kAll : (Mask(1) << (8 * n)) - 1, "the address");
  u64 addresses[kLanes];
  u32 values[4][kLanes];
  Mask bad[4] = {};
  for (int j = 0; j < n; ++j) {
    Span rows[8];
    for (int r = 0; r < 8; ++r) {
      const int l = 8 * j + r;
      addresses[l] = address_of(w, base, i.imm, l);
      rows[r] = locate(w, l, kShared, addresses[l], 16, store_them);
    }
    for (int l = 0; l < kLanes; ++l) {
      u32 value = 0;
      if (store_them) value = w.read(i.op[1 + j], l);
      for (int half = 0; half < 2; ++half) {
        const int across = l / 4, along = 2 * (l % 4) + half;
        const int row = i.flags & kTranspose ? along : across, column = i.flags & kTranspose ? across : along;
        Span at = rows[row];
        at.data += 2 * column, at.valid += 2 * column, at.address += 2 * column;
        if (at.cells) at.cells += 2 * column;
        if (store_them) {
          const u16 part = value >> (16 * half);
          const bool defined = !(w.poisoned(i.op[1 + j]) >> l & 1);
          note_write(w, l, at, 2, false, defined ? reinterpret_cast<const u8*>(&part) : nullptr);
          std::memcpy(at.data, &part, 2);
          std::memset(at.valid, defined, 2);
        } else {
          note_read(w, l, at, 2, false);
          u16 part;
          std::memcpy(&part, at.data, 2);
          value |= u32(part) << (16 * half);
          bad[j] |= Mask(at.valid[0] != 1 || at.valid[1] != 1) << l;
        }
      }
      values[j][l] = value;
    }
  }
  if (!store_them)
    for (int j = 0; j < n; ++j) {
      std::memcpy(w.lanes<u32>(i.op[j]), values[j], sizeof values[j]);
      loaded(w, i.op[j], kAll, bad[j], addresses);
    }
  count_request(w, kShared, addresses, n == 4 ? kAll : (Mask(1) << (8 * n)) - 1, 16);
}

void fence(Warp& w, const Instr&, Mask) {
  w.fenced = w.clock;
  ++w.clock[w.index];
}

// cvta: imm is what a generic address has more than one of the space.
template <class T, bool to_space>
void convert_address(Warp& w, const Instr& i, Mask m) {
  const u64 window = i.imm;
  map<T, T>(w, i, m, [window](T a) { return T(to_space ? u64(a) - window : u64(a) + window); });
}
void is_space(Warp& w, const Instr& i, Mask m) {
  const u64* a = w.lanes<u64>(i.op[1]);
  const Mask r = pack([&](int l) {
    const bool shared = a[l] - kSharedWindow < kWindow, local = a[l] - kLocalWindow < kWindow;
    return i.flags == kShared ? shared : i.flags == kLocal ? local : !shared && !local;
  });
  w.set_bits(i.op[0], m, r, w.poisoned(i.op[1]));
}
void nothing(Warp&, const Instr&, Mask) {}

}  // namespace

void add_memory() {
  const char* signed_types[] = {"s8", "s16", "s32", "s64"};
  const u32 sizes[] = {1, 2, 4, 8};
  for (int k = 0; k < 4; ++k) {
    const std::string bits = std::to_string(8 * sizes[k]);
    for (const std::string kind : {"b", "u", "f"}) add("ld." + kind + bits, "", load, sizes[k]);
    add(std::string("ld.") + signed_types[k], "", load, sizes[k] | kSigned);
    for (const std::string kind : {"b", "u", "s", "f"}) add("st." + kind + bits, "", store, sizes[k]);
  }
  add_atomics<u32>("b32", "u32");
  add_atomics<i32>("b32", "s32");
  add_atomics<u64>("b64", "u64");
  add_atomics<i64>("b64", "s64");
  add_atomic<u16, AtomicSwap>("cas", "b16", "2");
  add_atomic<float, AtomicAdd>("add", "f32");
  add_atomic<double, AtomicAdd>("add", "f64");
  for (const std::string tail : {"", ".noftz"}) {
    add_atomic<Group<Half, 1>, AtomicSmall>("add" + tail, "f16");
    add_atomic<Group<BFloat, 1>, AtomicSmall>("add" + tail, "bf16");
    add_atomic<Group<Half, 2>, AtomicSmall>("add" + tail, "f16x2");
    add_atomic<Group<BFloat, 2>, AtomicSmall>("add" + tail, "bf16x2");
  }
  add("cp.async", "", copy_async);
  add("cp.async.commit_group", "", commit_group);
  add("cp.async.wait_group", "i", wait_group);
  add("cp.async.wait_all", "", wait_all);
  add("ldmatrix", "", matrix<false>);
  add("stmatrix", "", matrix<true>);
  add("fence", "", fence);
  add("prefetch", "", nothing);
  add("cvta.u64", "88", convert_address<u64, false>);
  add("cvta.to.u64", "88", convert_address<u64, true>);
  add("cvta.u32", "44", convert_address<u32, false>);
  add("cvta.to.u32", "44", convert_address<u32, true>);
  add("isspacep.shared", "p8", is_space, kShared);
  add("isspacep.local", "p8", is_space, kLocal);
  add("isspacep.global", "p8", is_space, kGlobal);
}

}  // namespace ptx
