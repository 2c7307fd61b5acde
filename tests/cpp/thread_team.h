// A team (csrc/team.h) of std::threads behind a barrier, for the programs in this folder. It records where each sync()
// of the sources is called, so that any one of them can be left out, which the tests must notice.
#pragma once
#include <pthread.h>

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

// The places of sync() calls: "FILE:LINE", with the file as it is given to the compiler.
using Sites = std::set<std::string>;

class ThreadTeam {
 public:
  static constexpr bool kSolo = false;
  // without: the sync() to leave out, as FILE:LINE with the end of the file's name, or nullptr for none.
  // reached: the set to which member 0 adds every sync() that it reaches, or nullptr.
  ThreadTeam(qpt::i32 rank, qpt::i32 size, Barrier* barrier, const char* without = nullptr, Sites* reached = nullptr)
      : rank_(rank), size_(size), barrier_(barrier), without_(without), reached_(rank == 0 ? reached : nullptr) {}
  qpt::i32 rank() const { return rank_; }
  qpt::i32 size() const { return size_; }
  // The defaults are the file and line of the caller.
  void sync(const char* file = __builtin_FILE(), int line = __builtin_LINE()) const {
    if (without_ || reached_) {
      const std::string site = std::string(file) + ":" + std::to_string(line);
      if (reached_) reached_->insert(site);
      if (without_ && is_left_out(site)) return;
    }
    barrier_->wait(phase_);
  }
  template <class Body>
  void once(Body body) const {
    if (rank_ == 0) body();
  }

 private:
  bool is_left_out(const std::string& site) const {
    const std::string end = without_;
    return site.size() > end.size() && site.compare(site.size() - end.size(), end.size(), end) == 0;
  }

  qpt::i32 rank_, size_;
  Barrier* barrier_;
  const char* without_;
  Sites* reached_;
  mutable int phase_ = 0;
};
