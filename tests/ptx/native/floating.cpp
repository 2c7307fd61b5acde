// Floating-point arithmetic: float32 and float64 in every rounding direction, float16 and bfloat16, packed pairs, and
// the approximate instructions with the error that the PTX ISA allows them.
#include "machine.h"
#include "number.h"

namespace ptx {
namespace {

// Flags of an opcode. The lowest three bits are a Rounding.
constexpr u32 kFlush = 8, kSaturate = 16;

template <class T>
inline T canonical(T x) {
  if constexpr (sizeof(T) == 4) return x == x ? x : nan32();
  return x;
}

struct Add {
  template <class T>
  static T of(T a, T b) {
    return a + b;
  }
};
struct Sub {
  template <class T>
  static T of(T a, T b) {
    return a - b;
  }
};
struct Mul {
  template <class T>
  static T of(T a, T b) {
    return a * b;
  }
};
struct Div {
  template <class T>
  static T of(T a, T b) {
    return a / b;
  }
};
struct Fma {
  static float of(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static double of(double a, double b, double c) { return __builtin_fma(a, b, c); }
};
struct Sqrt {
  static float of(float a) { return __builtin_sqrtf(a); }
  static double of(double a) { return __builtin_sqrt(a); }
};
struct Rcp {
  template <class T>
  static T of(T a) {
    return T(1) / a;
  }
};

// One operation in a given direction. Not inlined and on volatile operands, so that it stays between the two
// fesetround.
template <class F, class T, class... S>
__attribute__((noinline)) T directed(u32 mode, T first, S... rest) {
  static const int kModes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
  volatile T a = first;
  std::tuple<volatile S...> others{rest...};
  std::fesetround(kModes[mode]);
  volatile T r = std::apply([&](auto&... b) { return F::of(T(a), T(b)...); }, others);
  std::fesetround(FE_TONEAREST);
  return r;
}

template <class F, class T, class... S>
void plain(Warp& w, const Instr& i, Mask m) {
  map<T, T, S...>(w, i, m, [](T a, S... b) { return canonical(F::of(a, b...)); });
}
template <class F, class T, class... S>
void modified(Warp& w, const Instr& i, Mask m) {
  const u32 flags = i.flags;
  map<T, T, S...>(w, i, m, [flags](T a, S... b) {
    const auto in = [flags](T x) {
      if constexpr (sizeof(T) == 4) return flags & kFlush ? flush(x) : x;
      return x;
    };
    T r = directed<F, T, S...>(flags & 7, in(a), in(b)...);
    r = in(r);
    if (flags & kSaturate) r = r > T(0) ? std::min(r, T(1)) : T(0);  // nan becomes 0
    return canonical(r);
  });
}

template <class F, class T, class... S>
void add_rounded(const std::string& name, const std::string& type, bool bare) {
  std::string signature;
  for (size_t k = 0; k < sizeof...(S) + 2; ++k) signature += std::to_string(sizeof(T));
  const char* modes[] = {".rn", ".rz", ".rm", ".rp", ""};
  for (u32 mode = 0; mode < (bare ? 5 : 4); ++mode)
    for (u32 ftz = 0; ftz < (sizeof(T) == 4 ? 2 : 1); ++ftz)
      for (u32 sat = 0; sat < (sizeof(T) == 4 ? 2 : 1); ++sat) {
        const u32 flags = (mode & 3) | (ftz ? kFlush : 0) | (sat ? kSaturate : 0);
        add(name + modes[mode] + (ftz ? ".ftz" : "") + (sat ? ".sat" : "") + "." + type, signature,
            flags ? modified<F, T, S...> : plain<F, T, S...>, flags);
      }
}

// Minimum and maximum: a number beats nan unless .NaN; -0 is below +0. abs and neg work on the sign bit.
template <class T, bool largest>
inline T extreme(T a, T b, bool nan_wins) {
  if (!(a == a) || !(b == b)) {
    if constexpr (sizeof(T) == 8) return a == a ? a : b;
    if (nan_wins || (!(a == a) && !(b == b))) return T(NAN);
    return a == a ? a : b;
  }
  if (a == b) return std::signbit(double(a)) == largest ? b : a;
  return (a < b) != largest ? a : b;
}
template <class T, bool largest, bool nan_wins, bool ftz>
void extreme_op(Warp& w, const Instr& i, Mask m) {
  map<T, T, T>(w, i, m, [](T a, T b) {
    if constexpr (ftz) a = flush(a), b = flush(b);
    if constexpr (std::is_same_v<T, float>) return canonical(extreme<T, largest>(a, b, nan_wins));
    if constexpr (std::is_same_v<T, double>) return extreme<T, largest>(a, b, nan_wins);
    return T(extreme<float, largest>(a, b, nan_wins));
  });
}
template <class U, bool negate>
void sign_op(Warp& w, const Instr& i, Mask m) {
  // flags: the sign bits
  const u32 flags = i.flags;
  map<U, U>(w, i, m, [flags](U a) {
    const U sign = flags == 2 ? U(0x80008000u) : U(1) << (8 * sizeof(U) - 1);
    return U(negate ? a ^ sign : a & ~sign);
  });
}
template <class U, bool negate>
void sign_flushed(Warp& w, const Instr& i, Mask m) {
  map<float, float>(w, i, m, [](float a) { return negate ? -flush(a) : std::fabs(flush(a)); });
}
void copysign_op(Warp& w, const Instr& i, Mask m) {
  map<u32, u32, u32>(w, i, m, [](u32 a, u32 b) { return (a & 0x80000000u) | (b & 0x7fffffffu); });
}
template <class T>
void testp(Warp& w, const Instr& i, Mask m) {
  const T* a = w.lanes<T>(i.op[1]);
  const u32 which = i.flags;
  const Mask r = pack([&](int l) {
    const int kind = std::fpclassify(a[l]);
    switch (which) {
      case 0:
        return kind != FP_INFINITE && kind != FP_NAN;
      case 1:
        return kind == FP_INFINITE;
      case 2:
        return kind != FP_NAN;
      case 3:
        return kind == FP_NAN;
      case 4:
        return kind == FP_NORMAL;
      default:
        return kind == FP_SUBNORMAL;
    }
  });
  w.set_bits(i.op[0], m, r, w.poisoned(i.op[1]));
}

// Arithmetic of 16-bit formats is exact in double but for fma, which is rounded to odd there: one rounding in all.
template <class H>
struct Small {
  static float sum(float a, float b) { return a + b; }
  template <int what>  // 0 add, 1 sub, 2 mul, 3 fma
  static H of(H a, H b, H c) {
    const double x = float(a), y = float(b);
    if constexpr (what == 0) return H(fma_to_odd(1.0f, float(a), float(b)));
    if constexpr (what == 1) return H(fma_to_odd(1.0f, float(a), -float(b)));
    if constexpr (what == 2) return H(x * y);
    return H(fma_to_odd(float(a), float(b), float(c)));
  }
};
template <class H, int what, bool relu = false>
void small(Warp& w, const Instr& i, Mask m) {
  const auto f = [](H a, H b, H c) {
    const H r = Small<H>::template of<what>(a, b, c);
    return relu && !(float(r) > 0) && float(r) == float(r) ? H(0.0L) : r;
  };
  if constexpr (what == 3)
    map<H, H, H, H>(w, i, m, f);
  else
    map<H, H, H>(w, i, m, [f](H a, H b) { return f(a, b, b); });
}
template <class H>
struct Pair {
  H low, high;
};
template <class H, int what>
void small_pair(Warp& w, const Instr& i, Mask m) {
  using P = Pair<H>;
  const auto f = [](P a, P b, P c) {
    if constexpr (what == 4 || what == 5 || what == 6 || what == 7) {  // min, max; with .NaN
      constexpr bool largest = what & 1, nan_wins = what > 5;
      return P{H(extreme<float, largest>(a.low, b.low, nan_wins)),
               H(extreme<float, largest>(a.high, b.high, nan_wins))};
    } else {
      return P{Small<H>::template of<what>(a.low, b.low, c.low), Small<H>::template of<what>(a.high, b.high, c.high)};
    }
  };
  if constexpr (what == 3)
    map<P, P, P, P>(w, i, m, f);
  else
    map<P, P, P>(w, i, m, [f](P a, P b) { return f(a, b, b); });
}

// Approximate instructions: the exact value times 1 + error, or plus an absolute one, in a direction that the launch
// chooses, then rounded to nearest. `bound` is the largest error that the PTX ISA allows.
struct Bound {
  double relative, absolute, ulps;
};
double ex2(double a, double) {
  return std::exp2(a);
}
double lg2(double a, double) {
  return std::log2(a);
}
double rcp(double a, double) {
  return 1 / a;
}
double root(double a, double) {
  return std::sqrt(a);
}
double rsqrt(double a, double) {
  return 1 / std::sqrt(a);
}
double sine(double a, double) {
  return std::sin(a);
}
double cosine(double a, double) {
  return std::cos(a);
}
double tangent(double a, double) {
  return std::tanh(a);
}
double quotient(double a, double b) {
  return a / b;
}
struct Approximate {
  const char* name;
  double (*of)(double, double);
  Bound bound;
};
// div.approx is held to 2 ulp where |b| is in [2^-126, 2^126], div.full everywhere.
const Approximate kApproximate[] = {
    {"ex2.approx", ex2, {0x1p-22, 0, 0}},        {"lg2.approx", lg2, {0x1p-22, 0x1p-22, 0}},
    {"rcp.approx", rcp, {0x1p-23, 0, 0}},        {"sqrt.approx", root, {0x1p-23, 0, 0}},
    {"rsqrt.approx", rsqrt, {0x1.12p-23, 0, 0}}, {"sin.approx", sine, {0, 0x1.6ap-21, 0}},
    {"cos.approx", cosine, {0, 0x1.6ap-21, 0}},  {"tanh.approx", tangent, {0x1p-11, 0, 0}},
    {"div.approx", quotient, {0, 0, 2}},         {"div.full", quotient, {0, 0, 2}}};

inline float perturbed(double exact, Bound bound, u32 how, u32 salt) {
  // Zeros, infinities, nan and exact powers of two (all of 2^integer) are given exactly, as hardware does.
  if (how == 0 || !std::isfinite(exact) || exact == 0) return exact;
  int e;
  if (std::fabs(std::frexp(exact, &e)) == 0.5) return exact;
  double direction = how == 1 ? 1 : -1;
  if (how == 3) direction = double(i32(salt * 2654435761u)) / 2147483648.0;
  // The rounding to float below is part of the bound: leave half a unit for it.
  const double half_ulp = std::ldexp(1.0, e - 25),
               error = std::fabs(exact) * bound.relative + bound.absolute + 2 * half_ulp * bound.ulps;
  return exact + direction * std::max(0.0, error - half_ulp);
}
template <bool two>
void approximate(Warp& w, const Instr& i, Mask m) {
  const Approximate& row = kApproximate[i.flags >> 8];
  const bool ftz = i.flags & kFlush;
  const u32 how = w.machine->options.approximation;
  const auto f = [&](float a, float b) {
    if (ftz) a = flush(a), b = flush(b);
    if (two && row.of == quotient && i.flags >> 8 == 8 && std::fabs(b) > 0x1p126f)
      return canonical(std::isinf(a) ? nan32()
                                     : std::copysign(0.0f, std::signbit(a) != std::signbit(b) ? -1.0f : 1.0f));
    const float r = perturbed(row.of(a, b), row.bound, how, bit_cast<u32>(a) ^ bit_cast<u32>(b) * 31);
    return canonical(ftz ? flush(r) : r);
  };
  if constexpr (two)
    map<float, float, float>(w, i, m, f);
  else
    map<float, float>(w, i, m, [&](float a) { return f(a, 1.0f); });
}
template <class H>
void approximate_small(Warp& w, const Instr& i, Mask m) {
  const Approximate& row = kApproximate[i.flags];
  map<H, H>(w, i, m, [&](H a) { return H(row.of(float(a), 0)); });
}
template <class H>
void approximate_pair(Warp& w, const Instr& i, Mask m) {
  const Approximate& row = kApproximate[i.flags];
  map<Pair<H>, Pair<H>>(w, i, m,
                        [&](Pair<H> a) { return Pair<H>{H(row.of(float(a.low), 0)), H(row.of(float(a.high), 0))}; });
}
// rcp.approx.ftz.f64 and its like start an iteration: about 20 bits of the exponent's and top mantissa bits.
template <bool root_too>
void coarse64(Warp& w, const Instr& i, Mask m) {
  map<double, double>(w, i, m, [](double a) {
    const double r = root_too ? 1 / std::sqrt(a) : 1 / a;
    return bit_cast<double>(bit_cast<u64>(r) & ~u64(0xffffffff));
  });
}

template <class T>
void add_common(const std::string& t) {
  const std::string n = std::to_string(sizeof(T));
  add_rounded<Add, T, T>("add", t, true);
  add_rounded<Sub, T, T>("sub", t, true);
  add_rounded<Mul, T, T>("mul", t, true);
  add_rounded<Fma, T, T, T>("fma", t, false);
  add_rounded<Fma, T, T, T>("mad", t, false);
  add_rounded<Div, T, T>("div", t, false);
  add_rounded<Sqrt, T>("sqrt", t, false);
  add_rounded<Rcp, T>("rcp", t, false);
  const char* kinds[] = {"finite", "infinite", "number", "notanumber", "normal", "subnormal"};
  for (u32 k = 0; k < 6; ++k) add(std::string("testp.") + kinds[k] + "." + t, "p" + n, testp<T>, k);
  add("min." + t, n + n + n, extreme_op<T, false, false, false>);
  add("max." + t, n + n + n, extreme_op<T, true, false, false>);
}
template <class H>
void add_small(const std::string& t) {
  for (const std::string rn : {"", ".rn"}) {
    add("add" + rn + "." + t, "222", small<H, 0>);
    add("sub" + rn + "." + t, "222", small<H, 1>);
    add("mul" + rn + "." + t, "222", small<H, 2>);
    add("fma" + rn + "." + t, "2222", small<H, 3>);
    add("fma" + rn + ".relu." + t, "2222", small<H, 3, true>);
    add("add" + rn + "." + t + "x2", "444", small_pair<H, 0>);
    add("sub" + rn + "." + t + "x2", "444", small_pair<H, 1>);
    add("mul" + rn + "." + t + "x2", "444", small_pair<H, 2>);
    add("fma" + rn + "." + t + "x2", "4444", small_pair<H, 3>);
  }
  add("min." + t, "222", extreme_op<H, false, false, false>);
  add("max." + t, "222", extreme_op<H, true, false, false>);
  add("min.NaN." + t, "222", extreme_op<H, false, true, false>);
  add("max.NaN." + t, "222", extreme_op<H, true, true, false>);
  add("min." + t + "x2", "444", small_pair<H, 4>);
  add("max." + t + "x2", "444", small_pair<H, 5>);
  add("min.NaN." + t + "x2", "444", small_pair<H, 6>);
  add("max.NaN." + t + "x2", "444", small_pair<H, 7>);
  add("neg." + t, "22", sign_op<u16, true>, 1);
  add("abs." + t, "22", sign_op<u16, false>, 1);
  add("neg." + t + "x2", "44", sign_op<u32, true>, 2);
  add("abs." + t + "x2", "44", sign_op<u32, false>, 2);
  add("ex2.approx." + t, "22", approximate_small<H>, 0);
  add("ex2.approx.ftz." + t, "22", approximate_small<H>, 0);
  add("tanh.approx." + t, "22", approximate_small<H>, 7);
  add("ex2.approx." + t + "x2", "44", approximate_pair<H>, 0);
  add("ex2.approx.ftz." + t + "x2", "44", approximate_pair<H>, 0);
  add("tanh.approx." + t + "x2", "44", approximate_pair<H>, 7);
}

}  // namespace

void add_float() {
  add_common<float>("f32");
  add_common<double>("f64");
  add_small<Half>("f16");
  add_small<BFloat>("bf16");
  add("min.ftz.f32", "444", extreme_op<float, false, false, true>);
  add("max.ftz.f32", "444", extreme_op<float, true, false, true>);
  add("min.NaN.f32", "444", extreme_op<float, false, true, false>);
  add("max.NaN.f32", "444", extreme_op<float, true, true, false>);
  add("neg.f32", "44", sign_op<u32, true>);
  add("abs.f32", "44", sign_op<u32, false>);
  add("neg.f64", "88", sign_op<u64, true>);
  add("abs.f64", "88", sign_op<u64, false>);
  add("neg.ftz.f32", "44", sign_flushed<u32, true>);
  add("abs.ftz.f32", "44", sign_flushed<u32, false>);
  add("copysign.f32", "444", copysign_op);
  for (u32 k = 0; k < sizeof kApproximate / sizeof *kApproximate; ++k)
    for (u32 ftz = 0; ftz < 2; ++ftz) {
      const bool two = kApproximate[k].of == quotient;
      add(std::string(kApproximate[k].name) + (ftz ? ".ftz" : "") + ".f32", two ? "444" : "44",
          two ? approximate<true> : approximate<false>, k << 8 | (ftz ? kFlush : 0));
    }
  add("rcp.approx.ftz.f64", "88", coarse64<false>);
  add("rsqrt.approx.ftz.f64", "88", coarse64<true>);
}

}  // namespace ptx
