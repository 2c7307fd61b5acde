// A team (csrc/team.h) of std::threads behind barriers, for the programs in this folder. It records where each sync()
// and sync_team() of the sources is called, so that any one of them can be left out, which the tests must notice.
#pragma once
#include <pthread.h>

#include <deque>
#include <set>
#include <string>

#include "../../csrc/team.h"

// A barrier that alternates between two pthread barriers. With a single one, the next arrival of a fast thread is
// already part of what a slow thread acquires on leaving, so ThreadSanitizer takes the two for ordered and does not
// notice a missing barrier.
class Barrier {
 public:
  explicit Barrier(int size) {
    for (pthread_barrier_t& barrier : barriers_) pthread_barrier_init(&barrier, nullptr, static_cast<unsigned>(size));
  }
  Barrier(const Barrier&) = delete;
  Barrier& operator=(const Barrier&) = delete;
  ~Barrier() {
    for (pthread_barrier_t& barrier : barriers_) pthread_barrier_destroy(&barrier);
  }
  // Waits for all threads. phase belongs to the calling thread and starts at 0.
  void wait(int& phase) { pthread_barrier_wait(&barriers_[phase ^= 1]); }

 private:
  pthread_barrier_t barriers_[2];
};

// The barriers of a team of `blocks` blocks of `size` threads.
struct Barriers {
  int blocks, size;
  Barrier team;
  std::deque<Barrier> block;
  Barriers(int blocks, int size) : blocks(blocks), size(size), team(blocks * size) {
    for (int i = 0; i < blocks; ++i) block.emplace_back(size);
  }
};

// The places of sync() and sync_team() calls: "FILE:LINE", with the file as it is given to the compiler.
using Sites = std::set<std::string>;

class ThreadTeam {
 public:
  static constexpr bool kSolo = false;
  // thread: the number of the caller among blocks * size.
  // without: the barrier to leave out, as FILE:LINE with the end of the file's name, or nullptr for none. A sync_team()
  // that is left out is a sync(), so that one is not called where the other is enough.
  // reached: the set to which thread 0 adds every barrier that it reaches, or nullptr.
  ThreadTeam(qpt::i32 thread, Barriers* barriers, const char* without = nullptr, Sites* reached = nullptr)
      : block_(thread / barriers->size),
        rank_(thread % barriers->size),
        barriers_(barriers),
        without_(without),
        reached_(thread == 0 ? reached : nullptr) {}
  qpt::i32 block() const { return block_; }
  qpt::i32 blocks() const { return barriers_->blocks; }
  qpt::i32 rank() const { return rank_; }
  qpt::i32 size() const { return barriers_->size; }
  // The defaults are the file and line of the caller.
  void sync(const char* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    if (!is_left_out(file, line)) barriers_->block[static_cast<size_t>(block_)].wait(block_phase_);
  }
  void sync_team(const char* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    if (is_left_out(file, line))
      barriers_->block[static_cast<size_t>(block_)].wait(block_phase_);
    else
      barriers_->team.wait(team_phase_);
  }
  template <class Body>
  void once(Body body) const {
    if (rank_ == 0) body();
  }

 private:
  // Records the place of a barrier and returns whether it is the one to leave out.
  bool is_left_out(const char* file, int line) const {
    if (!without_ && !reached_) return false;
    const std::string site = std::string(file) + ":" + std::to_string(line);
    if (reached_) reached_->insert(site);
    const std::string end = without_ ? without_ : site + " ";
    return site.size() > end.size() && site.compare(site.size() - end.size(), end.size(), end) == 0;
  }

  qpt::i32 block_, rank_;
  Barriers* barriers_;
  const char* without_;
  Sites* reached_;
  mutable int block_phase_ = 0, team_phase_ = 0;
};
