// Integer and bitwise instructions, of any width.
#include "machine.h"
#include "number.h"

namespace ptx {
namespace {

template <class T>
constexpr int kBits = sizeof(T) * 8;
template <class T>
using Wide = std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, i32, u32>,
                                std::conditional_t<std::is_signed_v<T>, i64, u64>>;
template <class T>
using Double =
    std::conditional_t<sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>, Wide<T>>;
template <class T>
using Unsigned = std::make_unsigned_t<T>;

#define PTX_BINARY(name, expression)                               \
  template <class T>                                               \
  void name(Warp& w, const Instr& i, Mask m) {                     \
    map<T, T, T>(w, i, m, [](T a, T b) { return T(expression); }); \
  }
#define PTX_TERNARY(name, expression)                                      \
  template <class T>                                                       \
  void name(Warp& w, const Instr& i, Mask m) {                             \
    map<T, T, T, T>(w, i, m, [](T a, T b, T c) { return T(expression); }); \
  }
#define PTX_UNARY(name, expression)                        \
  template <class T>                                       \
  void name(Warp& w, const Instr& i, Mask m) {             \
    map<T, T>(w, i, m, [](T a) { return T(expression); }); \
  }
PTX_BINARY(add_op, Unsigned<T>(a) + Unsigned<T>(b))
PTX_BINARY(sub_op, Unsigned<T>(a) - Unsigned<T>(b))
PTX_BINARY(mul_lo, Unsigned<Wide<T>>(a) * Unsigned<Wide<T>>(b))
PTX_BINARY(mul_hi, (Double<T>(a) * Double<T>(b)) >> kBits<T>)
PTX_BINARY(min_op, a < b ? a : b)
PTX_BINARY(max_op, a > b ? a : b)
PTX_BINARY(and_op, a& b)
PTX_BINARY(or_op, a | b)
PTX_BINARY(xor_op, a ^ b)
PTX_TERNARY(mad_lo, Unsigned<Wide<T>>(a) * Unsigned<Wide<T>>(b) + Unsigned<Wide<T>>(c))
PTX_TERNARY(mad_hi, Unsigned<T>((Double<T>(a) * Double<T>(b)) >> kBits<T>) + Unsigned<T>(c))
PTX_TERNARY(sad_op, Unsigned<T>(c) + (a < b ? Unsigned<T>(b) - Unsigned<T>(a) : Unsigned<T>(a) - Unsigned<T>(b)))
PTX_UNARY(neg_op, Unsigned<T>(0) - Unsigned<T>(a))
PTX_UNARY(not_op, ~a)
PTX_UNARY(cnot_op, a == 0)
PTX_UNARY(abs_op, a < 0 ? Unsigned<T>(0) - Unsigned<T>(a) : Unsigned<T>(a))
PTX_UNARY(move_op, a)

void add_saturated(Warp& w, const Instr& i, Mask m) {
  map<i32, i32, i32>(w, i, m,
                     [](i32 a, i32 b) { return i32(std::max(i64(INT32_MIN), std::min(i64(INT32_MAX), i64(a) + b))); });
}
void sub_saturated(Warp& w, const Instr& i, Mask m) {
  map<i32, i32, i32>(w, i, m,
                     [](i32 a, i32 b) { return i32(std::max(i64(INT32_MIN), std::min(i64(INT32_MAX), i64(a) - b))); });
}

template <class T>
void mul_wide(Warp& w, const Instr& i, Mask m) {
  map<Wide<T>, T, T>(w, i, m, [](T a, T b) { return Wide<T>(Unsigned<Wide<T>>(a) * Unsigned<Wide<T>>(b)); });
}
template <class T>
void mad_wide(Warp& w, const Instr& i, Mask m) {
  using W = Wide<T>;
  map<W, T, T, W>(w, i, m, [](T a, T b, W c) { return W(Unsigned<W>(a) * Unsigned<W>(b) + Unsigned<W>(c)); });
}

// The result of a division by zero is not defined: poison.
template <class T, bool remainder>
void divide(Warp& w, const Instr& i, Mask m) {
  const T* b = w.lanes<T>(i.op[2]);
  const Mask zero = m & pack([&](int l) { return b[l] == 0; });
  map<T, T, T>(w, i, m, [](T a, T b) {
    if (b == 0) return T(-1);
    if (std::is_signed_v<T> && b == T(-1)) return remainder ? T(0) : T(Unsigned<T>(0) - Unsigned<T>(a));
    return T(remainder ? a % b : a / b);
  });
  w.poison[i.op[0].slot] |= zero;
}

// Shift amounts beyond the width shift everything out.
template <class T>
void shl_op(Warp& w, const Instr& i, Mask m) {
  map<T, T, u32>(w, i, m, [](T a, u32 n) { return n < kBits<T> ? T(a << n) : T(0); });
}
template <class T>
void shr_op(Warp& w, const Instr& i, Mask m) {
  map<T, T, u32>(w, i, m, [](T a, u32 n) { return n < kBits<T> ? T(a >> n) : T(a < 0 ? -1 : 0); });
}
template <bool left, bool wrap>
void funnel(Warp& w, const Instr& i, Mask m) {
  map<u32, u32, u32, u32>(w, i, m, [](u32 a, u32 b, u32 c) {
    const u32 n = wrap ? c & 31 : std::min(c, u32(32));
    const u64 both = u64(b) << 32 | a;
    return left ? u32((both << n) >> 32) : u32(both >> n);
  });
}

template <class T>
void popc(Warp& w, const Instr& i, Mask m) {
  map<u32, T>(w, i, m, [](T a) { return u32(__builtin_popcountll(a)); });
}
template <class T>
void clz(Warp& w, const Instr& i, Mask m) {
  map<u32, T>(w, i, m, [](T a) { return a ? u32(__builtin_clzll(a)) - (64 - kBits<T>) : kBits<T>; });
}
template <class T>
void brev(Warp& w, const Instr& i, Mask m) {
  map<T, T>(w, i, m, [](T a) {
    T r = 0;
    for (int bit = 0; bit < kBits<T>; ++bit) r |= T((a >> bit) & 1) << (kBits<T> - 1 - bit);
    return r;
  });
}
// Position of the highest bit that differs from the sign; its distance from the top with .shiftamt.
template <class T, bool shift_amount>
void bfind(Warp& w, const Instr& i, Mask m) {
  map<u32, T>(w, i, m, [](T a) {
    const Unsigned<T> x = a < 0 ? ~Unsigned<T>(a) : Unsigned<T>(a);
    if (x == 0) return ~u32(0);
    const u32 place = 63 - __builtin_clzll(x);
    return shift_amount ? kBits<T> - 1 - place : place;
  });
}
template <class T>
void bfe(Warp& w, const Instr& i, Mask m) {
  map<T, T, u32, u32>(w, i, m, [](T a, u32 b, u32 c) {
    const u32 start = b & 255, length = c & 255;
    if (length == 0) return T(0);
    const u32 top = kBits<T> - 1;
    const bool sign = std::is_signed_v<T> && ((a >> std::min(start + length - 1, top)) & 1);
    Unsigned<T> r = start > top ? 0 : Unsigned<T>(a) >> start;
    if (length < kBits<T>) {
      const Unsigned<T> field = (Unsigned<T>(1) << length) - 1;
      r = sign ? r | ~field : r & field;
    }
    if (sign && start > 0 && start <= top && start + length > top) r |= ~(Unsigned<T>(-1) >> start);
    if (sign && start > top) r = -1;
    return T(r);
  });
}
template <class T>
void bfi(Warp& w, const Instr& i, Mask m) {
  map<T, T, T, u32, u32>(w, i, m, [](T a, T b, u32 c, u32 d) {
    const u32 start = c & 255, length = d & 255;
    T r = b;
    for (u32 bit = 0; bit < length && start + bit < kBits<T>; ++bit) {
      const T one = T(1) << (start + bit);
      r = (a >> bit) & 1 ? r | one : r & ~one;
    }
    return r;
  });
}
void bmsk(Warp& w, const Instr& i, Mask m) {
  map<u32, u32, u32>(w, i, m, [](u32 a, u32 b) {
    const u32 start = std::min(a, u32(32)), length = std::min(b, u32(32));
    return u32((((u64(1) << length) - 1) << start));
  });
}
void lop3(Warp& w, const Instr& i, Mask m) {
  const u32 table = i.imm;
  map<u32, u32, u32, u32>(w, i, m, [table](u32 a, u32 b, u32 c) {
    u32 r = 0;
    for (int row = 0; row < 8; ++row)
      if (table >> row & 1) r |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
    return r;
  });
}
void prmt(Warp& w, const Instr& i, Mask m) {
  const u32 mode = i.flags;
  map<u32, u32, u32, u32>(w, i, m, [mode](u32 a, u32 b, u32 c) {
    // Without a mode, selectors are nibbles whose top bit replicates the byte's sign.
    static constexpr u32 kModes[6][4] = {{0x3210, 0x4321, 0x5432, 0x6543},   // f4e
                                         {0x5670, 0x6701, 0x7012, 0x0123},   // b4e
                                         {0x0000, 0x1111, 0x2222, 0x3333},   // rc8
                                         {0x3210, 0x3211, 0x3222, 0x3333},   // ecl
                                         {0x0000, 0x1110, 0x2210, 0x3210},   // ecr
                                         {0x1010, 0x3232, 0x1010, 0x3232}};  // rc16
    const u32 select = mode ? kModes[mode - 1][c & 3] : c;
    const u64 both = u64(b) << 32 | a;
    u32 r = 0;
    for (int byte = 0; byte < 4; ++byte) {
      const u32 s = select >> (4 * byte) & 15;
      u32 value = both >> (8 * (s & 7)) & 255;
      if (s & 8) value = value & 128 ? 255 : 0;
      r |= value << (8 * byte);
    }
    return r;
  });
}
template <class A, class B, bool four, bool high>
void dot_product(Warp& w, const Instr& i, Mask m) {
  map<u32, u32, u32, u32>(w, i, m, [](u32 a, u32 b, u32 c) {
    for (int k = 0; k < (four ? 4 : 2); ++k) {
      const i32 y = i32(B(b >> (8 * (k + (high ? 2 : 0)))));
      const i32 x = four ? i32(A(a >> (8 * k))) : i32(std::conditional_t<std::is_signed_v<A>, i16, u16>(a >> (16 * k)));
      c += u32(x) * u32(y);
    }
    return c;
  });
}
template <class T>
void mul24(Warp& w, const Instr& i, Mask m) {
  map<T, T, T>(w, i, m, [](T a, T b) { return T(u32((T(a << 8) >> 8)) * u32((T(b << 8) >> 8))); });
}

// add.cc, addc and their like. flags: 1 the carry comes in, 2 it goes out. kind: 0 add, 1 sub, 2 mad.lo, 3 mad.hi.
template <class T, int kind>
void extended(Warp& w, const Instr& i, Mask m) {
  using W = unsigned __int128;
  const bool in = i.flags & 1, out = i.flags & 2, mad = kind > 1;
  Mask bad = w.poisoned(i.op[1]) | w.poisoned(i.op[2]) | (mad ? w.poisoned(i.op[3]) : 0) | (in ? w.carry_poison : 0);
  each_lane(m, [&](int l) {
    const T a = w.lanes<T>(i.op[1])[l], b = w.lanes<T>(i.op[2])[l];
    const W c = in ? w.carry >> l & 1 : 0, product = W(a) * b;
    const W left = !mad ? W(a) : kind == 2 ? W(T(product)) : product >> kBits<T>;
    const W right = mad ? W(w.lanes<T>(i.op[3])[l]) : W(b);
    const W r = kind == 1 ? left - right - c : left + right + c;
    w.lanes<T>(i.op[0])[l] = T(r);
    if (out) w.carry = (w.carry & ~(Mask(1) << l)) | Mask(r >> kBits<T> & 1) << l;  // of sub: the borrow
  });
  w.set_poison(i.op[0], m, bad);
  if (out) w.carry_poison = (w.carry_poison & ~m) | (bad & m);
}
template <class T>
void add_extended(const std::string& t) {
  const std::string n = std::to_string(sizeof(T)), three = n + n + n;
  // Of signed numbers they are the same but for the upper half of a product, which is left out.
  for (u32 flags = 1; flags < 4; ++flags) {
    const std::string c = flags & 1 ? "c" : "", cc = flags & 2 ? ".cc." : ".";
    for (const std::string kind : {"u", "s"}) {
      add("add" + c + cc + kind + t, three, extended<T, 0>, flags);
      add("sub" + c + cc + kind + t, three, extended<T, 1>, flags);
      add("mad" + c + ".lo" + cc + kind + t, three + n, extended<T, 2>, flags);
    }
    add("mad" + c + ".hi" + cc + "u" + t, three + n, extended<T, 3>, flags);
  }
}

// mov.b64 {a, b}, c and its opposite; op[0..n) and op[n].
template <bool unpack>
void regroup(Warp& w, const Instr& i, Mask m) {
  const int parts = i.count - 1;
  const Operand& whole = unpack ? i.op[parts] : i.op[0];
  Mask bad = 0;
  u64 values[4][kLanes];
  for (int k = 0; k < parts; ++k) bad |= w.poisoned(i.op[unpack ? k : k + 1]);
  each_lane(m, [&](int l) {
    u64 value = 0;
    for (int k = 0, at = 0; k < parts; ++k) {
      const int bits = (whole.width / parts) * 8;
      if (unpack)
        values[k][l] = w.read(whole, l) >> at;
      else
        value |= w.read(i.op[k + 1], l) << at;
      at += bits;
    }
    if (!unpack) w.write(whole, l, value);
  });
  if (!unpack) return w.set_poison(whole, m, bad);
  const Mask source = w.poisoned(whole);
  for (int k = 0; k < parts; ++k) {
    each_lane(m, [&](int l) { w.write(i.op[k], l, values[k][l]); });
    w.set_poison(i.op[k], m, source);
  }
}

template <class T>
void add_arithmetic(const std::string& t) {
  const std::string n = std::to_string(sizeof(T)), wide = std::to_string(2 * sizeof(T)), two = n + n, three = two + n;
  add("add." + t, three, add_op<T>);
  add("sub." + t, three, sub_op<T>);
  add("mul.lo." + t, three, mul_lo<T>);
  add("mul.hi." + t, three, mul_hi<T>);
  add("mad.lo." + t, three + n, mad_lo<T>);
  add("mad.hi." + t, three + n, mad_hi<T>);
  add("sad." + t, three + n, sad_op<T>);
  add("div." + t, three, divide<T, false>);
  add("rem." + t, three, divide<T, true>);
  add("min." + t, three, min_op<T>);
  add("max." + t, three, max_op<T>);
  add("shr." + t, two + "4", shr_op<T>);
  if (std::is_signed_v<T>) {
    add("neg." + t, two, neg_op<T>);
    add("abs." + t, two, abs_op<T>);
  }
  if constexpr (sizeof(T) < 8) {
    add("mul.wide." + t, wide + two, mul_wide<T>);
    add("mad.wide." + t, wide + two + wide, mad_wide<T>);
  }
  if constexpr (sizeof(T) > 2) {
    add("bfe." + t, two + "44", bfe<T>);
    add("bfind." + t, "4" + n, bfind<T, false>);
    add("bfind.shiftamt." + t, "4" + n, bfind<T, true>);
  }
}
template <class T>
void add_bits(int bits) {
  const std::string t = "b" + std::to_string(bits), n = std::to_string(sizeof(T)), two = n + n, three = two + n;
  add("and." + t, three, and_op<T>);
  add("or." + t, three, or_op<T>);
  add("xor." + t, three, xor_op<T>);
  add("not." + t, two, not_op<T>);
  add("cnot." + t, two, cnot_op<T>);
  add("shl." + t, two + "4", shl_op<T>);
  add("shr." + t, two + "4", shr_op<T>);
  for (const std::string kind : {"b", "u", "s", "f"}) add("mov." + kind + std::to_string(bits), two, move_op<T>);
  if constexpr (sizeof(T) == 2) return;
  add("popc." + t, "4" + n, popc<T>);
  add("clz." + t, "4" + n, clz<T>);
  add("brev." + t, two, brev<T>);
  add("bfi." + t, three + "44" + "", bfi<T>);
}

}  // namespace

void add_integer() {
  add_arithmetic<i16>("s16");
  add_arithmetic<u16>("u16");
  add_arithmetic<i32>("s32");
  add_arithmetic<u32>("u32");
  add_arithmetic<i64>("s64");
  add_arithmetic<u64>("u64");
  add_bits<u16>(16);
  add_bits<u32>(32);
  add_bits<u64>(64);
  add_extended<u32>("32"), add_extended<u64>("64");
  add("add.sat.s32", "444", add_saturated);
  add("sub.sat.s32", "444", sub_saturated);
  add("mul24.lo.s32", "444", mul24<i32>);
  add("mul24.lo.u32", "444", mul24<u32>);
  add("shf.l.wrap.b32", "4444", funnel<true, true>);
  add("shf.r.wrap.b32", "4444", funnel<false, true>);
  add("shf.l.clamp.b32", "4444", funnel<true, false>);
  add("shf.r.clamp.b32", "4444", funnel<false, false>);
  add("bmsk.clamp.b32", "444", bmsk);
  add("lop3.b32", "4444i", lop3);
  const char* modes[] = {"", ".f4e", ".b4e", ".rc8", ".ecl", ".ecr", ".rc16"};
  for (u32 k = 0; k < 7; ++k) add(std::string("prmt.b32") + modes[k], "4444", prmt, k);
  add("dp4a.s32.s32", "4444", dot_product<i8, i8, true, false>);
  add("dp4a.u32.u32", "4444", dot_product<u8, u8, true, false>);
  add("dp4a.s32.u32", "4444", dot_product<i8, u8, true, false>);
  add("dp4a.u32.s32", "4444", dot_product<u8, i8, true, false>);
  add("dp2a.lo.s32.s32", "4444", dot_product<i8, i8, false, false>);
  add("dp2a.lo.u32.u32", "4444", dot_product<u8, u8, false, false>);
  add("dp2a.lo.s32.u32", "4444", dot_product<i8, u8, false, false>);
  add("dp2a.lo.u32.s32", "4444", dot_product<u8, i8, false, false>);
  add("dp2a.hi.s32.s32", "4444", dot_product<i8, i8, false, true>);
  add("dp2a.hi.u32.u32", "4444", dot_product<u8, u8, false, true>);
  add("dp2a.hi.s32.u32", "4444", dot_product<i8, u8, false, true>);
  add("dp2a.hi.u32.s32", "4444", dot_product<u8, i8, false, true>);
  add("mov.pack", "", regroup<false>);
  add("mov.unpack", "", regroup<true>);
}

}  // namespace ptx
