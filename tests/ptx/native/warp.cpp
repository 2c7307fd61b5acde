// Instructions between the lanes of a warp: shfl, vote, match, redux, activemask, elect.
#include "machine.h"

namespace ptx {
namespace {

// The lanes named in a member mask must all be here: with lock-step execution nobody else will come.
Mask members(Warp& w, const Operand& o, Mask m) {
  w.need_defined(o, m, "the member mask");
  const Mask named = w.lanes<u32>(o)[__builtin_ctz(m)];
  each_lane(m, [&](int l) {
    if (w.lanes<u32>(o)[l] != named) w.fault("lanes", l, "lanes name different member masks");
    if (!(named >> l & 1)) w.fault("lanes", l, "a lane that executes this is not in its member mask");
  });
  if (const Mask missing = named & w.present & ~m)
    w.fault("lanes", __builtin_ctz(missing), "a lane of the member mask is not here");
  return named;
}

// shfl.sync d[|p], a, b, c, members. flags: 1 d|p; kind << 1.
enum Shuffle { kUp, kDown, kButterfly, kIndex };
void shuffle(Warp& w, const Instr& i, Mask m) {
  const int at = i.flags & 1 ? 2 : 1, kind = i.flags >> 1;
  members(w, i.op[at + 3], m);
  w.need_defined(i.op[at + 1], m, "the lane of a shuffle");
  w.need_defined(i.op[at + 2], m, "the clamp of a shuffle");
  const u32 *a = w.lanes<u32>(i.op[at]), *b = w.lanes<u32>(i.op[at + 1]), *c = w.lanes<u32>(i.op[at + 2]);
  u32 out[kLanes];
  Mask inside = 0, bad = 0;
  each_lane(m, [&](int l) {
    const int clamp = c[l] & 31, segment = c[l] >> 8 & 31, step = b[l] & 31;
    const int top = (l & segment) | (clamp & ~segment), bottom = l & segment;
    int j = kind == kUp          ? l - step
            : kind == kDown      ? l + step
            : kind == kButterfly ? l ^ step
                                 : bottom | (step & ~segment);
    const bool p = kind == kUp ? j >= top : j <= top;
    if (!p) j = l;
    inside |= Mask(p) << l;
    out[l] = a[j];
    bad |= Mask((w.poisoned(i.op[at]) >> j & 1) || !(m >> j & 1)) << l;  // of a lane that is not here: poison
  });
  each_lane(m, [&](int l) { w.lanes<u32>(i.op[0])[l] = out[l]; });
  w.set_poison(i.op[0], m, bad);
  if (i.flags & 1) w.set_bits(i.op[1], m, inside, 0);
}

// vote.sync d, p, members. flags: 0 any, 1 all, 2 uni, 3 ballot
void vote(Warp& w, const Instr& i, Mask m) {
  members(w, i.op[2], m);
  const Mask p = w.bits(i.op[1]) & m, bad = w.poisoned(i.op[1]) & m ? m : 0;
  if (i.flags == 3) {
    each_lane(m, [&](int l) { w.lanes<u32>(i.op[0])[l] = p; });
    return w.set_poison(i.op[0], m, bad);
  }
  const bool r = i.flags == 0 ? p != 0 : i.flags == 1 ? p == m : p == 0 || p == m;
  w.set_bits(i.op[0], m, r ? kAll : 0, bad);
}
void active_mask(Warp& w, const Instr& i, Mask m) {
  each_lane(m, [&](int l) { w.lanes<u32>(i.op[0])[l] = m; });
  w.set_poison(i.op[0], m, 0);
}
// elect.sync d|p, members: the first lane.
void elect(Warp& w, const Instr& i, Mask m) {
  members(w, i.op[2], m);
  const u32 first = __builtin_ctz(m);
  each_lane(m, [&](int l) { w.lanes<u32>(i.op[0])[l] = first; });
  w.set_poison(i.op[0], m, 0);
  w.set_bits(i.op[1], m, Mask(1) << first, 0);
}

template <class T, class F>
void redux(Warp& w, const Instr& i, Mask m) {
  members(w, i.op[2], m);
  const T* a = w.lanes<T>(i.op[1]);
  T r = a[__builtin_ctz(m)];
  each_lane(m & (m - 1), [&](int l) { r = F::of(r, a[l]); });
  each_lane(m, [&](int l) { w.lanes<T>(i.op[0])[l] = r; });
  w.set_poison(i.op[0], m, w.poisoned(i.op[1]) & m ? m : 0);
}
#define PTX_REDUX(name, expression) \
  struct name {                     \
    template <class T>              \
    static T of(T a, T b) {         \
      return expression;            \
    }                               \
  };
PTX_REDUX(Sum, T(u32(a) + u32(b)))
PTX_REDUX(Least, a < b ? a : b)
PTX_REDUX(Most, a > b ? a : b)
PTX_REDUX(And, a& b)
PTX_REDUX(Or, a | b)
PTX_REDUX(Xor, a ^ b)

template <class T>
void match_any(Warp& w, const Instr& i, Mask m) {
  members(w, i.op[2], m);
  const T* a = w.lanes<T>(i.op[1]);
  u32 out[kLanes];
  each_lane(m, [&](int l) {
    out[l] = 0;
    each_lane(m, [&](int k) { out[l] |= Mask(a[k] == a[l]) << k; });
  });
  each_lane(m, [&](int l) { w.lanes<u32>(i.op[0])[l] = out[l]; });
  w.set_poison(i.op[0], m, w.poisoned(i.op[1]) & m ? m : 0);
}
template <class T>
void match_all(Warp& w, const Instr& i, Mask m) {  // d|p
  members(w, i.op[3], m);
  const T* a = w.lanes<T>(i.op[2]);
  bool same = true;
  each_lane(m, [&](int l) { same &= a[l] == a[__builtin_ctz(m)]; });
  const Mask bad = w.poisoned(i.op[2]) & m ? m : 0;
  each_lane(m, [&](int l) { w.lanes<u32>(i.op[0])[l] = same ? m : 0; });
  w.set_poison(i.op[0], m, bad);
  w.set_bits(i.op[1], m, same ? kAll : 0, bad);
}

}  // namespace

void add_warp() {
  const char* kinds[] = {"up", "down", "bfly", "idx"};
  for (u32 k = 0; k < 4; ++k) {
    add(std::string("shfl.sync.") + kinds[k] + ".b32", "44444", shuffle, k << 1);
    add(std::string("shfl.sync.") + kinds[k] + ".b32|", "4p4444", shuffle, k << 1 | 1);
  }
  add("vote.sync.any.pred", "pp4", vote, 0);
  add("vote.sync.all.pred", "pp4", vote, 1);
  add("vote.sync.uni.pred", "pp4", vote, 2);
  add("vote.sync.ballot.b32", "4p4", vote, 3);
  add("activemask.b32", "4", active_mask);
  add("elect.sync|", "4p4", elect);
  add("redux.sync.add.s32", "444", redux<i32, Sum>);
  add("redux.sync.min.s32", "444", redux<i32, Least>);
  add("redux.sync.max.s32", "444", redux<i32, Most>);
  add("redux.sync.add.u32", "444", redux<u32, Sum>);
  add("redux.sync.min.u32", "444", redux<u32, Least>);
  add("redux.sync.max.u32", "444", redux<u32, Most>);
  add("redux.sync.and.b32", "444", redux<u32, And>);
  add("redux.sync.or.b32", "444", redux<u32, Or>);
  add("redux.sync.xor.b32", "444", redux<u32, Xor>);
  add("match.any.sync.b32", "444", match_any<u32>);
  add("match.any.sync.b64", "484", match_any<u64>);
  add("match.all.sync.b32|", "4p44", match_all<u32>);
  add("match.all.sync.b64|", "4p84", match_all<u64>);
}

}  // namespace ptx
