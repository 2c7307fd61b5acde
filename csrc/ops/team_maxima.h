// The largest of numbers over all members of a team, two at once. Used by tone.h, warp.h and edges.h.
#pragma once
#include "op.h"

namespace qpt {

struct Pair {
  float first, second;
};

// Returns the maxima of `own` over the members of all blocks. Every member makes the call, at most once with a scratch
// until the team has synced.
template <class Team>
QPT_FN Pair team_maxima(const Team& team, Scratch scratch, Pair own) {
  if constexpr (Team::kSolo) {
    return own;
  } else {
    Pair* member = scratch.take_own<Pair>(team, kMaxMembers);
    Pair* block = scratch.take<Pair>(kMaxBlocks);
    const auto larger = [](Pair a, Pair b) { return Pair{maximum(a.first, b.first), maximum(a.second, b.second)}; };
    member[team.rank()] = own;
    team.sync();  // numbers, one pair per member, are read by one
    team.once([&] {
      Pair most = member[0];
      for (i32 i = 1; i < team.size(); ++i) most = larger(most, member[i]);
      block[team.block()] = most;
    });
    team.sync_team();  // maxima, one pair per block, are read by all
    Pair most = block[0];
    for (i32 i = 1; i < team.blocks(); ++i) most = larger(most, block[i]);
    return most;
  }
}

QPT_FN i64 team_maxima_bytes(i32 blocks) {
  return own_bytes<Pair>(kMaxMembers, blocks) + taken_bytes<Pair>(kMaxBlocks);
}

}  // namespace qpt
