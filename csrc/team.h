// A Team is the set of threads that work on one row of a program: one CPU thread (Solo, here), one thread block on a
// GPU (csrc/cuda), or a few std::threads behind a barrier (tests/cpp). Every op is written once against this concept:
//   i32 rank(), i32 size(), void sync() (barrier + memory fence), once(f) (f on one member).
// Elements of a loop are shared out by each(); nothing may depend on which member computes an element.
// Included by every device header, so it defines the integer names too: g++, nvcc and NVRTC compile it without system
// headers.
#pragma once

// QPT_FN: a function of an op. On the host everything it calls is inlined into it, since a lambda given to each() must
// be part of the loop for the loop to vectorise; it is not inlined itself, which keeps compilation short. QPT_INLINE: a
// small function, part of its caller. QPT_BODY: after the parameters of a lambda so large that the compiler needs
// telling. QPT_ENTRY: none of these. QPT_CALLED: on a GPU a function of its own, so that its caller takes no registers
// from it; its team is a QPT_TEAM, there a value: it is empty, and the address of one would take stack. QPT_CONSTANT: a
// table.
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define QPT_FN __device__ inline
#define QPT_ENTRY __device__ inline
#define QPT_INLINE __device__ __forceinline__
#define QPT_BODY
#define QPT_CALLED __device__ __noinline__
#define QPT_TEAM(Team) Team
#define QPT_CONSTANT static __constant__ const
#else
#define QPT_FN inline __attribute__((flatten, noinline))
#define QPT_ENTRY inline
#define QPT_INLINE inline __attribute__((always_inline))
#define QPT_BODY __attribute__((always_inline))
#define QPT_CALLED inline
#define QPT_TEAM(Team) Team&
#define QPT_CONSTANT static constexpr
#endif

// QPT_UNROLL(n) before a loop to unroll n times (1: not at all); QPT_INDEPENDENT before a loop whose rounds do not
// depend on each other.
#define QPT_PRAGMA(text) _Pragma(#text)
#if defined(__CUDACC__) || defined(__CUDACC_RTC__) || defined(__clang__)
#define QPT_UNROLL(n) QPT_PRAGMA(unroll n)
#define QPT_INDEPENDENT
#else
#define QPT_UNROLL(n) QPT_PRAGMA(GCC unroll n)
#define QPT_INDEPENDENT QPT_PRAGMA(GCC ivdep)
#endif

namespace qpt {

using u8 = unsigned char;
using i16 = short;
using u16 = unsigned short;
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

// x, but the compiler is not to know. Otherwise what ops compute from the image's size is moved out of the loop over
// slots, where it takes GPU registers from every op: with 29 ops the kernel spilled.
QPT_INLINE i32 unknown(i32 x) {
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// One thread owning a whole row. rank and size are compile-time constants, so each() is a plain loop nest.
struct Solo {
  static constexpr bool kSolo = true;
  QPT_INLINE static constexpr i32 rank() { return 0; }
  QPT_INLINE static constexpr i32 size() { return 1; }
  QPT_INLINE static void sync() {}
  template <class Body>
  QPT_INLINE static void once(Body body) {
    body();
  }
};

// body(row, column) for every element of a rows x columns grid, shared among the members. Elements must be independent:
// Solo tells the compiler so (ivdep), and that is what lets it vectorise the inner loop.
template <class Team, class Body>
QPT_INLINE void each(const Team& team, i32 rows, i32 columns, Body body) {
  if constexpr (Team::kSolo) {
    for (i32 row = 0; row < rows; ++row) {
      QPT_INDEPENDENT
      for (i32 column = 0; column < columns; ++column) body(row, column);
    }
  } else {
    if (rows <= 0 || columns <= 0) return;
    // One division at the start; afterwards the pair (row, column) advances by size() elements in raster order.
    const i32 row_step = team.size() / columns, column_step = team.size() % columns;
    i32 row = team.rank() / columns, column = team.rank() % columns;
    while (row < rows) {
      body(row, column);
      row += row_step;
      column += column_step;
      if (column >= columns) {
        column -= columns;
        ++row;
      }
    }
  }
}

// body(i) for i in [0, count), shared among the members.
template <class Team, class Body>
QPT_INLINE void each(const Team& team, i32 count, Body body) {
  QPT_INDEPENDENT
  for (i32 i = team.rank(); i < count; i += team.size()) body(i);
}

}  // namespace qpt
