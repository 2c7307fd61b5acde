// Sums of integers over all members of a team, whose order does not matter. Used by colour.h, photons.h and jpeg2000.h.
#pragma once
#include "op.h"

namespace qpt {

constexpr i32 kSumLanes = 32;  // members of a block that add up what the others have

// Sums one after another; every member makes the same calls.
template <class Team>
class TeamSum {
 public:
  QPT_INLINE TeamSum(const Team& team, Scratch scratch)
      : team_(team),
        member_(scratch.take_own<u64>(team, kMaxMembers)),
        lane_(scratch.take_own<u64>(team, kSumLanes)),
        block_(scratch.take<u64>(2 * kMaxBlocks)) {}

  // Returns the sum of `own` over the members of all blocks.
  QPT_INLINE u64 of(u64 own) {
    if constexpr (Team::kSolo) {
      return own;
    } else {
      member_[team_.rank()] = own;
      team_.sync();  // numbers, one per member, are read by some
      each(team_, kSumLanes, [&](i32 lane) {
        u64 sum = 0;
        for (i32 member = team_.size() - 1 - lane; member >= 0; member -= kSumLanes) sum += member_[member];
        lane_[lane] = sum;
      });
      team_.sync();  // sums, some members' each, are read by one
      // Two rows in turn: a block may write its next sum while another still reads this one.
      u64* const block = block_ + (turn_ ^= kMaxBlocks);
      team_.once([&] {
        u64 sum = 0;
        for (i32 lane = 0; lane < kSumLanes; ++lane) sum += lane_[lane];
        block[team_.block()] = sum;
      });
      team_.sync_team();  // sums, one per block, are read by all
      u64 sum = 0;
      for (i32 i = 0; i < team_.blocks(); ++i) sum += block[i];
      return sum;
    }
  }

 private:
  const Team& team_;
  u64 *member_, *lane_, *block_;
  i32 turn_ = 0;
};

QPT_FN i64 team_sum_bytes(i32 blocks) {
  return own_bytes<u64>(kMaxMembers, blocks) + own_bytes<u64>(kSumLanes, blocks) + taken_bytes<u64>(2 * kMaxBlocks);
}

}  // namespace qpt
