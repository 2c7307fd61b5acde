// cvt between all number types, with rounding, saturation and flushing; packed conversions of pairs.
#include "machine.h"
#include "number.h"

namespace ptx {
namespace {

constexpr u32 kFlush = 8, kSaturate = 16, kIntegral = 32, kFinite = 64, kRelu = 128, kFromFloat = 256;
constexpr u32 kToShift = 12, kFromShift = 16;

// The value of an operand: as a number, exactly, and of an integer also its bits, sign- or zero-extended.
struct Value {
  long double number;
  u64 bits;
};
// Operands may be wider than their type: the low bytes are read, and written zero- or sign-extended.
template <class S>
Value read(const u8* p) {
  S s;
  std::memcpy(&s, p, sizeof s);
  if constexpr (std::is_integral_v<S>)
    return {(long double)s, u64(i64(s))};
  else if constexpr (std::is_same_v<S, double>)
    return {s, 0};
  else
    return {float(s), 0};
}

template <class D>
D saturated(long double x) {
  constexpr long double top = std::numeric_limits<D>::max(), bottom = std::numeric_limits<D>::min();
  if (std::isnan(x)) return 0;
  return x >= top ? std::numeric_limits<D>::max() : x <= bottom ? std::numeric_limits<D>::min() : D(x);
}

// The number in format D, as bits to write.
template <class D>
u64 write(Value v, u32 flags) {
  const u32 mode = flags & 7;
  if constexpr (std::is_integral_v<D>) {
    if (!(flags & kFromFloat)) return u64(i64(flags & kSaturate ? saturated<D>(v.number) : D(v.bits)));
    return u64(i64(saturated<D>(round_integral(v.number, mode))));  // floats always saturate
  } else {
    long double x = flags & kIntegral ? round_integral(v.number, mode) : v.number;
    const u32 rounding = flags & kIntegral ? u32(kNearest) : mode;
    if (flags & kRelu) x = x < 0 ? 0.0L : x;
    if (flags & kSaturate) x = x > 0 ? std::min(x, 1.0L) : 0.0L;
    if constexpr (std::is_same_v<D, float>) {
      const float r = to_float(x, rounding);
      return bit_cast<u32>(flags & kFlush ? flush(r) : r);
    } else if constexpr (std::is_same_v<D, double>) {
      return bit_cast<u64>(to_double(x, rounding));
    } else {
      return D(x, rounding).bits;
    }
  }
}

using Reader = Value (*)(const u8*);
using Writer = u64 (*)(Value, u32);
struct Type {
  const char* name;
  Reader read;
  Writer write;
  bool integer;
};
const Type kTypes[] = {{"u8", read<u8>, write<u8>, true},         {"s8", read<i8>, write<i8>, true},
                       {"u16", read<u16>, write<u16>, true},      {"s16", read<i16>, write<i16>, true},
                       {"u32", read<u32>, write<u32>, true},      {"s32", read<i32>, write<i32>, true},
                       {"u64", read<u64>, write<u64>, true},      {"s64", read<i64>, write<i64>, true},
                       {"f16", read<Half>, write<Half>, false},   {"bf16", read<BFloat>, write<BFloat>, false},
                       {"f32", read<float>, write<float>, false}, {"f64", read<double>, write<double>, false}};

// Any conversion; the types' numbers are in the flags.
void convert(Warp& w, const Instr& i, Mask m) {
  const Operand &to = i.op[0], &from = i.op[1];
  const Type &target = kTypes[i.flags >> kToShift & 15], &source = kTypes[i.flags >> kFromShift & 15];
  each_lane(m, [&](int l) {
    Value v = source.read(w.lane(from, l));
    if (i.flags & kFlush && source.read == read<float>) v.number = flush(float(v.number));
    w.write(to, l, target.write(v, i.flags));
  });
  w.set_poison(to, m, w.poisoned(from));
}

// The common ones, of operands as wide as their types: a loop that the compiler can vectorise.
template <class D, class S>
void convert_quickly(Warp& w, const Instr& i, Mask m) {
  if (i.op[0].width != sizeof(D) || i.op[1].width != sizeof(S)) return convert(w, i, m);
  map<D, S>(w, i, m, [](S s) {
    if constexpr (std::is_floating_point_v<S> && std::is_same_v<D, i32>) {
      if (!(s == s)) return 0;
      return s >= S(2147483648.0) ? INT32_MAX : s <= S(-2147483648.0) ? INT32_MIN : i32(s);
    } else {
      const D d = D(s);
      if constexpr (std::is_same_v<D, float>)
        return d == d ? d : nan32();
      else
        return d;
    }
  });
}
// By their opcodes without "cvt."; every one also has the flags of `convert`, to which it falls back.
const std::unordered_map<std::string, Run> kQuick = {
    {"rn.f32.s32", convert_quickly<float, i32>},    {"rn.f32.u32", convert_quickly<float, u32>},
    {"rn.f32.u16", convert_quickly<float, u16>},    {"rn.f32.s64", convert_quickly<float, i64>},
    {"rn.f64.s32", convert_quickly<double, i32>},   {"f64.f32", convert_quickly<double, float>},
    {"rn.f32.f64", convert_quickly<float, double>}, {"rzi.s32.f32", convert_quickly<i32, float>},
    {"rzi.s32.f64", convert_quickly<i32, double>},  {"s64.s32", convert_quickly<i64, i32>},
    {"u64.u32", convert_quickly<u64, u32>},         {"u32.u64", convert_quickly<u32, u64>},
    {"u32.u16", convert_quickly<u32, u16>},         {"u16.u32", convert_quickly<u16, u32>},
    {"s32.s16", convert_quickly<i32, i16>}};

// Two numbers, the first in the upper half, into a pair.
template <class H>
void convert_pair(Warp& w, const Instr& i, Mask m) {
  const u32 flags = i.flags;
  map<u32, float, float>(w, i, m, [flags](float a, float b) {
    const auto small = [flags](float x) { return H(flags & kRelu && x < 0 ? 0.0L : (long double)x, flags & 7); };
    H high = small(a), low = small(b);
    if (flags & kFinite) {
      const auto clamp = [](H h) {
        return std::isinf(float(h)) ? H(std::copysign(H::kLargest, (long double)float(h))) : h;
      };
      high = clamp(high), low = clamp(low);
    }
    return u32(high.bits) << 16 | low.bits;
  });
}
void convert_tf32(Warp& w, const Instr& i, Mask m) {
  const u32 mode = i.flags & 7;
  const bool relu = i.flags & kRelu;
  map<float, float>(w, i, m, [=](float a) {
    const float r = to_tf32(a, mode);
    return relu && r < 0 ? 0.0f : r;
  });
}

void add_pair(u32 to, u32 from) {
  const Type &d = kTypes[to], &s = kTypes[from];
  const u32 types = to << kToShift | from << kFromShift | (s.integer ? 0 : kFromFloat);
  const auto with_tails = [&](const std::string& head, u32 flags) {
    for (u32 k = 0; k < 4; ++k) {
      const std::string name = head + (k & 1 ? ".ftz" : "") + (k & 2 ? ".sat" : "") + "." + d.name + "." + s.name;
      const auto quick = kQuick.find(name.substr(4));
      add(name, "**", quick == kQuick.end() ? convert : quick->second,
          types | flags | (k & 1 ? kFlush : 0) | (k & 2 ? kSaturate : 0));
    }
  };
  with_tails("cvt", 0);
  if (s.integer && d.integer) return;
  const char *plain[] = {".rn", ".rz", ".rm", ".rp"}, *integral[] = {".rni", ".rzi", ".rmi", ".rpi"};
  for (u32 mode = 0; mode < 4; ++mode) {
    if (!s.integer) with_tails(std::string("cvt") + integral[mode], mode | (d.integer ? 0 : kIntegral));
    if (!d.integer) with_tails(std::string("cvt") + plain[mode], mode);
  }
}

}  // namespace

void add_convert() {
  for (u32 to = 0; to < 12; ++to)
    for (u32 from = 0; from < 12; ++from) add_pair(to, from);
  for (u32 k = 0; k < 4; ++k) {
    const std::string relu = k & 1 ? ".relu" : "";
    const u32 flags = (k & 1 ? kRelu : 0) | (k & 2 ? u32(kToZero) : u32(kNearest)), finite = flags | kFinite;
    const std::string head = std::string("cvt") + (k & 2 ? ".rz" : ".rn") + relu;
    add(head + ".f16x2.f32", "444", convert_pair<Half>, flags);
    add(head + ".bf16x2.f32", "444", convert_pair<BFloat>, flags);
    add(head + ".satfinite.f16x2.f32", "444", convert_pair<Half>, finite);
    add(head + ".satfinite.bf16x2.f32", "444", convert_pair<BFloat>, finite);
    add(head + ".tf32.f32", "44", convert_tf32, flags);
  }
  add("cvt.rna.tf32.f32", "44", convert_tf32, kAway);
}

}  // namespace ptx
