// A Team is the set of threads that work on one row of a program: one or more blocks of threads. Every op is a template
// over this concept:
//   i32 block(), blocks()    the number of the caller's block and the number of blocks
//   i32 rank(), size()       the caller's number within its block and the number of threads of a block
//   void sync()              a barrier of the block that also makes its members' writes visible to each other
//   void sync_team()         the same of all blocks of the team
//   void once(body)          body() on one member of each block; no sync() follows
//   bool kSolo               true for a team of one thread
// A team is one CPU thread (Solo, below), some thread blocks on a GPU (csrc/cuda/degrade.cu), or std::threads behind
// barriers (tests/cpp/thread_team.h). share() divides a loop among the blocks, mostly by rows of the image, and each()
// divides what a block has among its members; no result may depend on who computes an element. What an op writes for
// its own block is synced by sync(), what other blocks read by sync_team().
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
//                                                                               function. A GPU's team is passed by
//                                                                               value: its address would need a
//                                                                               stack.
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

// A number as a type: a function that is given one has it as a constant.
template <i32 number>
struct Constant {
  static constexpr i32 value = number;
  QPT_INLINE constexpr operator i32() const { return number; }
};

// A team of one CPU thread. rank and size are compile-time constants, so each() is a plain loop nest.
struct Solo {
  static constexpr bool kSolo = true;
  QPT_INLINE static constexpr i32 block() { return 0; }
  QPT_INLINE static constexpr i32 blocks() { return 1; }
  QPT_INLINE static constexpr i32 rank() { return 0; }
  QPT_INLINE static constexpr i32 size() { return 1; }
  QPT_INLINE static void sync() {}
  QPT_INLINE static void sync_team() {}
  template <class Body>
  QPT_INLINE static void once(Body body) {
    body();
  }
};

// The integers first, first + 1, ... last - 1.
struct Span {
  i32 first, last;
  // The span of the elements of rows `first` to `last` that have `columns` elements each.
  QPT_INLINE Span times(i32 columns) const { return {first * columns, last * columns}; }
};

// Returns the share of [0, count) that the caller's block has: whole units, except at the end; nothing if there are
// fewer units than blocks.
template <class Team>
QPT_INLINE Span share(const Team& team, i32 count, i32 unit = 1) {
  if constexpr (Team::kSolo) {
    return {0, count};
  } else {
    const i32 units = (count + unit - 1) / unit, most = (units + team.blocks() - 1) / team.blocks() * unit;
    const i32 first = team.block() * most, last = first + most;
    return {first < count ? first : count, last < count ? last : count};
  }
}

// Calls body(row, column) for every element of a span of rows with `columns` each, divided among the members of the
// block. The elements must be independent: for Solo the compiler is told so (ivdep), and that is what lets it vectorise
// the inner loop.
template <class Team, class Body>
QPT_INLINE void each(const Team& team, Span rows, i32 columns, Body body) {
  if constexpr (Team::kSolo) {
    for (i32 row = rows.first; row < rows.last; ++row) {
      QPT_INDEPENDENT
      for (i32 column = 0; column < columns; ++column) body(row, column);
    }
  } else {
    if (columns <= 0) return;
    // One division at the start; afterwards the pair (row, column) advances by size() elements in raster order.
    const i32 row_step = team.size() / columns, column_step = team.size() % columns;
    i32 row = rows.first + team.rank() / columns, column = team.rank() % columns;
    while (row < rows.last) {
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

template <class Team, class Body>
QPT_INLINE void each(const Team& team, i32 rows, i32 columns, Body body) {
  each(team, Span{0, rows}, columns, body);
}

// Does the same where body may be called twice for an element. A team of one goes by whole runs of kRun elements, so
// that no rest of a row is left to single elements; the last run overlaps the one before it.
template <i32 kRun, class Team, class Body>
QPT_INLINE void each_in_runs(const Team& team, Span rows, i32 columns, Body body) {
  if (!Team::kSolo || columns < kRun) return each(team, rows, columns, body);
  for (i32 row = rows.first; row < rows.last; ++row) {
    for (i32 start = 0; start < columns; start += kRun) {
      const i32 first = start + kRun <= columns ? start : columns - kRun;
      QPT_INDEPENDENT
      for (i32 i = 0; i < kRun; ++i) body(row, first + i);
    }
  }
}

// Calls body(i) for every i of a span, divided among the members of the block.
template <class Team, class Body>
QPT_INLINE void each(const Team& team, Span span, Body body) {
  QPT_INDEPENDENT
  for (i32 i = span.first + team.rank(); i < span.last; i += team.size()) body(i);
}

// Does the same for [0, count).
template <class Team, class Body>
QPT_INLINE void each(const Team& team, i32 count, Body body) {
  each(team, Span{0, count}, body);
}

}  // namespace qpt
