// A Team is the set of threads that work on one row of a program. Every op is a template over this concept:
//   i32 rank(), i32 size()   the calling member's number and the number of members
//   void sync()              a barrier of all members that also makes their writes visible to each other
//   void once(body)          body() on one member; no sync() follows
//   bool kSolo               true for a team of one
// A team is one CPU thread (Solo, below), one thread block on a GPU (csrc/cuda/degrade.cu), or several std::threads
// behind a barrier (tests/cpp/thread_team.h). each() divides the elements of a loop among the members; no result may
// depend on which member computes an element.
//
// This header is included by every device header and compiled by g++, clang, nvcc and NVRTC. It includes nothing, not
// even <cstdint>, which NVRTC does not have, and defines the integer names itself.
//
// clang-format off
// Macros. A team of one and a thread team are compiled by g++ or clang, with the same values unless the table says so.
//
//   macro             on the host                  under nvcc and NVRTC         why
//   ---------------------------------------------------------------------------------------------------------------
//   QPT_FN            flatten, noinline            __device__                   A function of an op. On the host, all
//                                                                               calls in it are inlined: a lambda that
//                                                                               is given to each() must be part of
//                                                                               the loop for the loop to vectorise.
//                                                                               noinline keeps compilation short.
//   QPT_INLINE        always_inline                __device__ __forceinline__   A small function, part of its caller.
//   QPT_BODY          always_inline                (empty)                      Stands after the parameters of a lambda
//                                                                               so large that g++ does not inline it.
//   QPT_ENTRY         inline                       __device__                   A function that runs whole ops: flatten
//                                                                               would inline all of them into it.
//   QPT_CALLED        inline                       __device__ __noinline__      On a GPU a call, so that the callee's
//                                                                               registers do not add to the caller's.
//   QPT_TEAM(Team)    Team&                        Team                         The team parameter of a QPT_CALLED
//                                                                               function. A GPU's team is empty and
//                                                                               passed by value: its address would
//                                                                               need a stack.
//   QPT_CONSTANT      static constexpr             static __constant__ const    An array of constants.
//   QPT_UNROLL(n)     #pragma GCC unroll n         #pragma unroll n             Stands before a loop; n = 1 keeps it
//                     (clang: unroll n)                                         rolled, which saves registers.
//   QPT_INDEPENDENT   #pragma GCC ivdep            (empty)                      Stands before a loop whose iterations
//                     (clang: empty)                                            are independent, so that it vectorises.
//   QPT_SIMD_ROWS     team of one: 1 with AVX2     0                            1 where the vector forms of cpu/simd.h
//                     or AVX-512, else 0;                                       are used. Set there and in ops/op.h.
//                     thread team: not used
// clang-format on
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define QPT_FN __device__ inline
#define QPT_INLINE __device__ __forceinline__
#define QPT_BODY
#define QPT_ENTRY __device__ inline
#define QPT_CALLED __device__ __noinline__
#define QPT_TEAM(Team) Team
#define QPT_CONSTANT static __constant__ const
#else
#define QPT_FN inline __attribute__((flatten, noinline))
#define QPT_INLINE inline __attribute__((always_inline))
#define QPT_BODY __attribute__((always_inline))
#define QPT_ENTRY inline
#define QPT_CALLED inline
#define QPT_TEAM(Team) Team&
#define QPT_CONSTANT static constexpr
#endif

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

// Returns x, whose value the GPU compiler then does not know. It would otherwise move what ops compute from the image's
// size out of the loop over slots, where it takes registers from every op: with 29 ops the kernel spilled.
QPT_INLINE i32 opaque(i32 x) {
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// A team of one CPU thread. rank and size are compile-time constants, so each() is a plain loop nest.
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

// Calls body(row, column) for every element of a rows x columns grid, divided among the members. The elements must be
// independent: for Solo the compiler is told so (ivdep), and that is what lets it vectorise the inner loop.
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

// Calls body(i) for every i in [0, count), divided among the members.
template <class Team, class Body>
QPT_INLINE void each(const Team& team, i32 count, Body body) {
  QPT_INDEPENDENT
  for (i32 i = team.rank(); i < count; i += team.size()) body(i);
}

}  // namespace qpt
