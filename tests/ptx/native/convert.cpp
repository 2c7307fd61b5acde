// cvt between all number types, with rounding, saturation and flushing; packed conversions of pairs.
#include "machine.h"
#include "number.h"

namespace ptx {
namespace {

constexpr u32 kFlush = 8, kSaturate = 16, kIntegral = 32, kFinite = 64, kRelu = 128;

// Operands may be wider than their type: read the low bytes, write zero- or sign-extended.
template <class T>
inline T low(Warp& w, const Operand& o, int l) {
  T value;
  std::memcpy(&value, w.lane(o, l), sizeof value);
  return value;
}
template <class T>
inline void extend(Warp& w, const Operand& o, int l, T value) {
  if (o.width == sizeof(T)) {
    std::memcpy(w.lane(o, l), &value, sizeof value);
  } else if constexpr (std::is_integral_v<T>) {
    w.write(o, l, u64(i64(value)));
  } else {
    u64 bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    w.write(o, l, bits);
  }
}

template <class D>
D saturated(long double x) {
  constexpr long double top = std::numeric_limits<D>::max(), bottom = std::numeric_limits<D>::min();
  if (std::isnan(x)) return 0;
  return x >= top ? std::numeric_limits<D>::max() : x <= bottom ? std::numeric_limits<D>::min() : D(x);
}

template <class D, class S>
D convert_one(S s, u32 flags) {
  const u32 mode = flags & 7;
  if constexpr (std::is_integral_v<S> && std::is_integral_v<D>) {
    return flags & kSaturate ? saturated<D>(s) : D(s);
  } else {
    long double x;
    if constexpr (std::is_integral_v<S>) x = s;
    else if constexpr (std::is_same_v<S, float>) x = flags & kFlush ? flush(s) : s;
    else if constexpr (std::is_same_v<S, double>) x = s;
    else x = float(s);
    if constexpr (std::is_integral_v<D>) {
      return saturated<D>(round_integral(x, mode));  // floats always saturate
    } else {
      if (flags & kIntegral) x = round_integral(x, mode);
      const u32 rounding = flags & kIntegral ? u32(kNearest) : mode;
      if (flags & kRelu) x = x < 0 ? 0.0L : x;
      if (flags & kSaturate) x = x > 0 ? std::min(x, 1.0L) : 0.0L;
      if constexpr (std::is_same_v<D, float>) {
        const float r = to_float(x, rounding);
        return flags & kFlush ? flush(r) : r;
      } else if constexpr (std::is_same_v<D, double>) {
        return to_double(x, rounding);
      } else {
        return D(x, rounding);
      }
    }
  }
}

template <class D, class S>
void convert(Warp& w, const Instr& i, Mask m) {
  const Operand &to = i.op[0], &from = i.op[1];
  const u32 flags = i.flags;
  // The common conversions, a loop each that the compiler can vectorise.
  constexpr bool numbers = std::is_arithmetic_v<D> && std::is_arithmetic_v<S>;
  if constexpr (numbers && !(std::is_floating_point_v<S> && std::is_integral_v<D>)) {
    if (flags == 0 && to.width == sizeof(D) && from.width == sizeof(S)) {
      return map<D, S>(w, i, m, [](S s) {
        const D d = D(s);
        if constexpr (std::is_same_v<D, float>) return d == d ? d : nan32();
        return d;
      });
    }
  }
  if constexpr (std::is_floating_point_v<S> && std::is_same_v<D, i32>) {
    if (flags == kToZero && to.width == 4 && from.width == sizeof(S)) {
      return map<D, S>(w, i, m, [](S s) {
        if (!(s == s)) return 0;
        return s >= S(2147483648.0) ? INT32_MAX : s <= S(-2147483648.0) ? INT32_MIN : i32(s);
      });
    }
  }
  each_lane(m, [&](int l) { extend<D>(w, to, l, convert_one<D, S>(low<S>(w, from, l), flags)); });
  w.set_poison(to, m, w.poisoned(from));
}

// Two numbers, the first in the upper half, into a pair.
template <class H>
void convert_pair(Warp& w, const Instr& i, Mask m) {
  const u32 flags = i.flags;
  map<u32, float, float>(w, i, m, [flags](float a, float b) {
    H high = convert_one<H, float>(a, flags), low = convert_one<H, float>(b, flags);
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

template <class D, class S>
void add_convert_pair(const std::string& d, const std::string& s) {
  constexpr bool from_int = std::is_integral_v<S>, to_int = std::is_integral_v<D>;
  const std::string tail = "." + d + "." + s;
  const auto with_tails = [&](const std::string& head, u32 flags) {
    for (u32 k = 0; k < 4; ++k)
      add(head + (k & 1 ? ".ftz" : "") + (k & 2 ? ".sat" : "") + tail, "**", convert<D, S>,
          flags | (k & 1 ? kFlush : 0) | (k & 2 ? kSaturate : 0));
  };
  with_tails("cvt", 0);
  if (from_int && to_int) return;
  const char *plain[] = {".rn", ".rz", ".rm", ".rp"}, *integral[] = {".rni", ".rzi", ".rmi", ".rpi"};
  for (u32 mode = 0; mode < 4; ++mode) {
    if (to_int || !from_int) with_tails(std::string("cvt") + integral[mode], mode | (to_int ? 0 : kIntegral));
    if (!to_int) with_tails(std::string("cvt") + plain[mode], mode);
  }
}
template <class S>
void add_from(const std::string& s) {
  add_convert_pair<u8, S>("u8", s);
  add_convert_pair<i8, S>("s8", s);
  add_convert_pair<u16, S>("u16", s);
  add_convert_pair<i16, S>("s16", s);
  add_convert_pair<u32, S>("u32", s);
  add_convert_pair<i32, S>("s32", s);
  add_convert_pair<u64, S>("u64", s);
  add_convert_pair<i64, S>("s64", s);
  add_convert_pair<Half, S>("f16", s);
  add_convert_pair<BFloat, S>("bf16", s);
  add_convert_pair<float, S>("f32", s);
  add_convert_pair<double, S>("f64", s);
}

}  // namespace

void add_convert() {
  add_from<u8>("u8");
  add_from<i8>("s8");
  add_from<u16>("u16");
  add_from<i16>("s16");
  add_from<u32>("u32");
  add_from<i32>("s32");
  add_from<u64>("u64");
  add_from<i64>("s64");
  add_from<Half>("f16");
  add_from<BFloat>("bf16");
  add_from<float>("f32");
  add_from<double>("f64");
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
