// mma.sync: products of 16 x k and k x 8 tiles whose elements lie in the lanes' registers as the PTX ISA lays them out.
#include "machine.h"
#include "number.h"

namespace ptx {
namespace {

// Element e of a lane's fragment -> (row, column) of A [16, k], B [k, 8] or C [16, 8]. `each`: elements a register.
struct Place {
  int row, column;
};
template <int k, int each>
Place place_a(int lane, int e) {
  const int group = lane / 4, member = lane % 4,
            part = e / each;  // registers: rows g, g + 8, then the second half of k
  return {group + (part & 1 ? 8 : 0), member * each + e % each + (part & 2 ? 4 * each : 0)};
}
template <int each>
Place place_b(int lane, int e) {
  return {lane % 4 * each + e % each + e / each * 4 * each, lane / 4};
}
Place place_c(int lane, int e) {
  return {lane / 4 + (e & 2 ? 8 : 0), lane % 4 * 2 + (e & 1)};
}

// Sum of an accumulator and n products. Exact products either way; one rounding to nearest, or, as measured on tensor
// cores (Fasi, Higham, Mikaitis, Pranesh: Numerical behavior of NVIDIA tensor cores, 2021): terms aligned to the
// largest and cut after 24 bits behind its leading one, the sum cut to float32, `step` products at a time.
float accumulate(float c, const double* products, int n, int step, bool truncate) {
  if (!truncate) {
    double sum = c;
    for (int t = 0; t < n; ++t) sum += products[t];
    return sum == sum ? float(sum) : nan32();
  }
  for (int first = 0; first < n; first += step) {
    int top = -1000;
    double special = 0;
    const auto look = [&](double x) {
      int e;
      if (!std::isfinite(x))
        special += x;
      else if (x != 0)
        std::frexp(x, &e), top = std::max(top, e);
    };
    look(c);
    for (int t = first; t < first + step; ++t) look(products[t]);
    if (special != 0) {  // nan compares unequal too
      for (int t = first; t < first + step; ++t) special += products[t];
      special += c;
      c = special == special ? float(special) : nan32();
      continue;
    }
    if (top == -1000) continue;
    const double unit = std::ldexp(1.0, 25 - top);
    double sum = std::trunc(c * unit);
    for (int t = first; t < first + step; ++t) sum += std::trunc(products[t] * unit);
    c = to_float(sum / unit, kToZero);
  }
  return c;
}

template <class T>
struct Element {
  using type = T;
  static double value(const u8* p) { return float(*reinterpret_cast<const T*>(p)); }
};
struct Tf32 {
  using type = u32;
  static double value(const u8* p) {  // the lower 13 bits are not looked at
    return bit_cast<float>(*reinterpret_cast<const u32*>(p) & 0xffffe000u);
  }
};
template <class T>
struct Integer {
  using type = T;
  static double value(const u8* p) { return *reinterpret_cast<const T*>(p); }
};

enum Accumulator { kFloat, kHalfs, kInt, kIntSaturated };

template <class A, class B, int k, Accumulator kind, int step>
void multiply(Warp& w, const Instr& i, Mask m) {
  if (m != kAll) w.fault("lanes", -1, "mma needs all 32 lanes of a warp");
  constexpr int each = 4 / sizeof(typename A::type), a_count = 16 * k / kLanes, b_count = 8 * k / kLanes;
  constexpr int a_registers = a_count / each, b_registers = b_count / each, c_registers = kind == kHalfs ? 2 : 4;
  const Operand *d = i.op, *a = d + c_registers, *b = a + a_registers, *c = b + b_registers;
  double left[16][k], right[8][k];
  Mask bad_rows = 0, bad_columns = 0;
  for (int l = 0; l < kLanes; ++l) {
    for (int e = 0; e < a_count; ++e) {
      const Place p = place_a<k, each>(l, e);
      left[p.row][p.column] = A::value(w.lane(a[e / each], l) + e % each * sizeof(typename A::type));
      bad_rows |= Mask(w.poisoned(a[e / each]) >> l & 1) << p.row;
    }
    for (int e = 0; e < b_count; ++e) {
      const Place p = place_b<each>(l, e);
      right[p.column][p.row] = B::value(w.lane(b[e / each], l) + e % each * sizeof(typename B::type));
      bad_columns |= Mask(w.poisoned(b[e / each]) >> l & 1) << p.column;
    }
  }
  const bool truncate = w.machine->options.truncate;
  Mask bad[4] = {};
  u32 results[4][kLanes];
  for (int l = 0; l < kLanes; ++l) {
    for (int e = 0; e < 4; ++e) {
      const Place p = place_c(l, e);
      const Operand& from = c[kind == kHalfs ? e / 2 : e];
      double products[k];
      for (int t = 0; t < k; ++t) products[t] = left[p.row][t] * right[p.column][t];
      const u8* place = w.lane(from, l) + (kind == kHalfs ? e % 2 * 2 : 0);
      if constexpr (kind == kInt || kind == kIntSaturated) {
        i64 sum = *reinterpret_cast<const i32*>(place);
        for (int t = 0; t < k; ++t) sum += i64(products[t]);
        results[e][l] = kind == kInt ? u32(sum) : u32(std::max<i64>(INT32_MIN, std::min<i64>(INT32_MAX, sum)));
      } else if constexpr (kind == kFloat) {
        results[e][l] = bit_cast<u32>(accumulate(*reinterpret_cast<const float*>(place), products, k, step, truncate));
      } else {
        const Half h(accumulate(*reinterpret_cast<const Half*>(place), products, k, step, truncate));
        results[e / 2][l] = e % 2 ? results[e / 2][l] | u32(h.bits) << 16 : h.bits;
      }
      const bool undefined = (bad_rows >> p.row & 1) || (bad_columns >> p.column & 1) || (w.poisoned(from) >> l & 1);
      bad[kind == kHalfs ? e / 2 : e] |= Mask(undefined) << l;
    }
  }
  for (int r = 0; r < c_registers; ++r) {
    std::memcpy(w.lanes<u32>(d[r]), results[r], sizeof results[r]);
    w.set_poison(d[r], kAll, bad[r]);
  }
}

template <class A, class B, int k, int step>
void add_floats(const std::string& type, bool halfs = false) {
  constexpr int each = 4 / sizeof(typename A::type);
  const std::string a(16 * k / kLanes / each, '4'), b(8 * k / kLanes / each, '4');
  const std::string shape = "mma.sync.aligned.m16n8k" + std::to_string(k) + ".row.col.";
  add(shape + "f32." + type + "." + type + ".f32", "4444" + a + b + "4444", multiply<A, B, k, kFloat, step>);
  if (halfs) add(shape + "f16." + type + "." + type + ".f16", "44" + a + b + "44", multiply<A, B, k, kHalfs, step>);
}
template <class A, class B, int k>
void add_integers(const std::string& a_type, const std::string& b_type) {
  const std::string a(16 * k / kLanes / 4, '4'), b(8 * k / kLanes / 4, '4'), ends = "4444";
  const std::string shape = "mma.sync.aligned.m16n8k" + std::to_string(k) + ".row.col.",
                    tail = "s32." + a_type + "." + b_type + ".s32";
  add(shape + tail, ends + a + b + ends, multiply<Integer<A>, Integer<B>, k, kInt, k>);
  add(shape + "satfinite." + tail, ends + a + b + ends, multiply<Integer<A>, Integer<B>, k, kIntSaturated, k>);
}

}  // namespace

void add_matrix() {
  using F16 = Element<Half>;
  using BF16 = Element<BFloat>;
  add_floats<F16, F16, 16, 8>("f16", true);
  add_floats<F16, F16, 8, 8>("f16", true);
  add_floats<BF16, BF16, 16, 8>("bf16");
  add_floats<BF16, BF16, 8, 8>("bf16");
  add_floats<Tf32, Tf32, 8, 4>("tf32");
  add_floats<Tf32, Tf32, 4, 4>("tf32");
  add_integers<i8, i8, 32>("s8", "s8");
  add_integers<u8, u8, 32>("u8", "u8");
  add_integers<i8, u8, 32>("s8", "u8");
  add_integers<u8, i8, 32>("u8", "s8");
  add_integers<i8, i8, 16>("s8", "s8");
  add_integers<u8, u8, 16>("u8", "u8");
}

}  // namespace ptx
