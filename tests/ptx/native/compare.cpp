// Comparisons, selections and predicates: setp and selp of every type, and the logic of predicates.
#include "machine.h"
#include "number.h"

namespace ptx {
namespace {

template <class T>
void select(Warp& w, const Instr& i, Mask m) {
  const Mask p = w.bits(i.op[3]);
  const T *a = w.lanes<T>(i.op[1]), *b = w.lanes<T>(i.op[2]);
  T out[kLanes];
  for (int l = 0; l < kLanes; ++l) out[l] = p >> l & 1 ? a[l] : b[l];
  T* d = w.lanes<T>(i.op[0]);
  const Mask bad = w.poisoned(i.op[3]) | (p & w.poisoned(i.op[1])) | (~p & w.poisoned(i.op[2]));  // only the chosen
  each_lane(m, [&](int l) { d[l] = out[l]; });
  w.set_poison(i.op[0], m, bad);
}

// setp d, a, b; setp.and d, a, b, c; each also with d|q. flags: 1 q, 2 and, 4 or, 8 xor, and which of the relations
// below make it true: 16 less, 32 equal, 64 greater, 128 unordered.
template <class T>
void compare(Warp& w, const Instr& i, Mask m) {
  const int at = i.flags & 1 ? 2 : 1;
  const T *a = w.lanes<T>(i.op[at]), *b = w.lanes<T>(i.op[at + 1]);
  Mask bad = w.poisoned(i.op[at]) | w.poisoned(i.op[at + 1]);
  const u32 relations = i.flags >> 4;
  const Mask t = pack([&](int l) {
    return relations >> (a[l] < b[l] ? 0 : a[l] == b[l] ? 1 : a[l] > b[l] ? 2 : 3) & 1;
  });
  Mask p = t, q = ~t;
  if (i.flags & 14) {
    const Mask c = w.bits(i.op[at + 2]);
    bad |= w.poisoned(i.op[at + 2]);
    p = i.flags & 2 ? t & c : i.flags & 4 ? t | c : t ^ c;
    q = i.flags & 2 ? ~t & c : i.flags & 4 ? ~t | c : ~t ^ c;
  }
  w.set_bits(i.op[0], m, p, bad);
  if (i.flags & 1) w.set_bits(i.op[1], m, q, bad);
}

// A known false makes `and` known, a known true makes `or` known.
void pred_and(Warp& w, const Instr& i, Mask m) {
  const Mask a = w.bits(i.op[1]), b = w.bits(i.op[2]), x = w.poisoned(i.op[1]), y = w.poisoned(i.op[2]);
  w.set_bits(i.op[0], m, a & b, (x | y) & ~(~a & ~x) & ~(~b & ~y));
}
void pred_or(Warp& w, const Instr& i, Mask m) {
  const Mask a = w.bits(i.op[1]), b = w.bits(i.op[2]), x = w.poisoned(i.op[1]), y = w.poisoned(i.op[2]);
  w.set_bits(i.op[0], m, a | b, (x | y) & ~(a & ~x) & ~(b & ~y));
}
void pred_xor(Warp& w, const Instr& i, Mask m) {
  w.set_bits(i.op[0], m, w.bits(i.op[1]) ^ w.bits(i.op[2]), w.poisoned(i.op[1]) | w.poisoned(i.op[2]));
}
void pred_not(Warp& w, const Instr& i, Mask m) {
  w.set_bits(i.op[0], m, ~w.bits(i.op[1]), w.poisoned(i.op[1]));
}
void pred_move(Warp& w, const Instr& i, Mask m) {
  w.set_bits(i.op[0], m, w.bits(i.op[1]), w.poisoned(i.op[1]));
}

constexpr u32 kLess = 16, kEqual = 32, kGreater = 64, kUnordered = 128;

template <class T>
void add_relation(const std::string& comparison, const std::string& type, u32 relations) {
  const std::string width = std::to_string(sizeof(T));
  const char* joins[] = {".and", ".or", ".xor"};
  for (u32 dual = 0; dual < 2; ++dual) {
    const std::string operands = (dual ? "pp" : "p") + width + width, tail = "." + type + (dual ? "|" : "");
    add("setp." + comparison + tail, operands, compare<T>, dual | relations);
    for (u32 k = 0; k < 3; ++k)
      add("setp." + comparison + joins[k] + tail, operands + "p", compare<T>, dual | 2u << k | relations);
  }
}
template <class T>
void add_equality(const std::string& type) {
  add_relation<T>("eq", type, kEqual);
  add_relation<T>("ne", type, kLess | kGreater);
}
template <class T>
void add_order(const std::string& type) {
  const std::pair<std::string, u32> orders[] = {
      {"lt", kLess}, {"le", kLess | kEqual}, {"gt", kGreater}, {"ge", kGreater | kEqual}};
  for (const auto& [name, relations] : orders) add_relation<T>(name, type, relations);
  if (!std::is_unsigned_v<T>) return;
  const char* unsigned_names[] = {"lo", "ls", "hi", "hs"};
  for (int k = 0; k < 4; ++k) add_relation<T>(unsigned_names[k], type, orders[k].second);
}
template <class T>
void add_float_compare(const std::string& type) {
  add_equality<T>(type);
  add_order<T>(type);
  // Of floats: true where one is nan, too, if the name ends in u.
  const std::pair<std::string, u32> unordered[] = {
      {"equ", kEqual},   {"neu", kLess | kGreater},  {"ltu", kLess}, {"leu", kLess | kEqual},
      {"gtu", kGreater}, {"geu", kGreater | kEqual}, {"nan", 0}};
  for (const auto& [name, relations] : unordered) add_relation<T>(name, type, relations | kUnordered);
  add_relation<T>("num", type, kLess | kEqual | kGreater);
}

template <class T>
void add_select(int bits) {
  const std::string three(3, char('0' + bits / 8));
  for (const std::string kind : {"b", "u", "s", "f"})
    add("selp." + kind + std::to_string(bits), three + "p", select<T>);
  add_equality<T>("b" + std::to_string(bits));
}
template <class T>
void add_all_orders(const std::string& type) {
  add_equality<T>(type);
  add_order<T>(type);
}

}  // namespace

void add_compare() {
  add_select<u16>(16), add_select<u32>(32), add_select<u64>(64);
  add_all_orders<i16>("s16"), add_all_orders<i32>("s32"), add_all_orders<i64>("s64");
  add_all_orders<u16>("u16"), add_all_orders<u32>("u32"), add_all_orders<u64>("u64");
  add_float_compare<float>("f32"), add_float_compare<double>("f64");
  add_float_compare<Half>("f16"), add_float_compare<BFloat>("bf16");
  add("and.pred", "ppp", pred_and);
  add("or.pred", "ppp", pred_or);
  add("xor.pred", "ppp", pred_xor);
  add("not.pred", "pp", pred_not);
  add("mov.pred", "pp", pred_move);
}

}  // namespace ptx
