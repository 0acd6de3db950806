#include "pool.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

namespace fathom {
namespace {

// A worker waits this long at full speed: the pause between two ops of a step. After that it
// sleeps, for another process may need its core.
constexpr int kSpins = 40000;
constexpr int kMaxThreads = 256;

struct alignas(64) Scratch {
  void* memory = nullptr;
  size_t bytes = 0, asked = 0;
};

struct Pool {
  alignas(64) std::atomic<uint32_t> round{0};
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int> running{0};
  alignas(64) std::atomic<int> sleepers{0};
  std::atomic<int64_t> busy_ns{0};
  std::atomic<bool> is_stopping{false};
  int caller_cpu = -1;
  int64_t items = 0;
  void (*body)(void*, int64_t, int) = nullptr;
  void* context = nullptr;
  std::vector<std::thread> workers;
  Scratch scratch[kMaxThreads];
};

Pool& pool() {
  // Never destroyed: workers may still wait on it while the process ends.
  static Pool* const the_pool = new Pool;
  return *the_pool;
}

int64_t now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t(time.tv_sec) * 1000000000 + time.tv_nsec;
}

void futex_wait(std::atomic<uint32_t>& word, uint32_t seen) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}

void futex_wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, kMaxThreads, nullptr, nullptr, 0);
}

void take_items(Pool& p, int thread) {
  const int64_t began = now_ns();
  for (;;) {
    const int64_t item = p.next.fetch_add(1, std::memory_order_relaxed);
    if (item >= p.items) break;
    p.body(p.context, item, thread);
  }
  p.busy_ns.fetch_add(now_ns() - began, std::memory_order_relaxed);
}

uint32_t next_round(Pool& p, uint32_t seen) {
  for (int i = 0; i < kSpins; ++i) {
    const uint32_t round = p.round.load(std::memory_order_acquire);
    if (round != seen) return round;
    _mm_pause();
  }
  p.sleepers.fetch_add(1);
  while (p.round.load() == seen) futex_wait(p.round, seen);
  p.sleepers.fetch_sub(1);
  return p.round.load(std::memory_order_acquire);
}

void pin_to(int cpu) {
  if (cpu < 0) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

void work(int thread, int cpu, uint32_t seen) {
  pin_to(cpu);
  Pool& p = pool();
  for (;;) {
    seen = next_round(p, seen);
    if (p.is_stopping.load()) return;
    take_items(p, thread);
    p.running.fetch_sub(1, std::memory_order_release);
  }
}

void stop_workers(Pool& p) {
  p.is_stopping.store(true);
  p.round.fetch_add(1);
  futex_wake_all(p.round);
  for (std::thread& worker : p.workers) worker.join();
  p.workers.clear();
  p.is_stopping.store(false);
}

}  // namespace

void run_items(int64_t items, void (*body)(void*, int64_t, int), void* context) {
  Pool& p = pool();
  const int helpers = int(p.workers.size());
  p.items = items;
  p.body = body;
  p.context = context;
  p.next.store(0, std::memory_order_relaxed);
  if (items > 1 && helpers > 0) {
    p.running.store(helpers, std::memory_order_relaxed);
    p.round.fetch_add(1);
    if (p.sleepers.load() > 0) futex_wake_all(p.round);
  }
  take_items(p, 0);
  if (items > 1 && helpers > 0) {
    // Workers end within one item; a core that another process holds is given a chance.
    for (int spins = 0; p.running.load(std::memory_order_acquire) > 0; ++spins) {
      if (spins < kSpins) _mm_pause();
      else sched_yield();
    }
  }
}

bool start_pool(int threads, const int* cpus) {
  Pool& p = pool();
  if (threads < 1 || threads > kMaxThreads) return false;
  stop_workers(p);
  p.caller_cpu = cpus[0];
  try {
    for (int i = 1; i < threads; ++i) p.workers.emplace_back(work, i, cpus[i], p.round.load());
  } catch (const std::system_error&) {
    stop_workers(p);
    return false;
  }
  return true;
}

void pin_caller() { pin_to(pool().caller_cpu); }

int pool_size() { return int(pool().workers.size()) + 1; }

int64_t busy_nanoseconds() { return pool().busy_ns.load(std::memory_order_relaxed); }

void* scratch(int thread, size_t bytes) {
  Scratch& own = pool().scratch[thread];
  if (own.asked < bytes) own.asked = bytes;
  if (own.bytes < bytes) {
    std::free(own.memory);
    const size_t size = (bytes + 63) / 64 * 64;
    own.memory = std::aligned_alloc(64, size);
    own.bytes = own.memory == nullptr ? 0 : size;
  }
  return own.memory;
}

bool reserve_scratch(size_t bytes) {
  bool has_memory = true;
  for (int thread = 0; thread < kMaxThreads; ++thread) {
    std::free(pool().scratch[thread].memory);
    pool().scratch[thread] = {};
    if (thread >= pool_size() || bytes == 0) continue;
    has_memory &= scratch(thread, bytes) != nullptr;
    pool().scratch[thread].asked = 0;
  }
  return has_memory;
}

void scratch_bytes(int64_t* held, int64_t* asked) {
  *held = *asked = 0;
  for (const Scratch& own : pool().scratch) {
    *held += int64_t(own.bytes);
    *asked = std::max(*asked, int64_t(own.asked));
  }
}

}  // namespace fathom
