// The one thread pool of the kernels: pinned workers that spin briefly, then sleep.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace fathom {

// Calls body(context, item, thread) for every item in 0 .. items - 1, on all threads of the pool;
// returns when all are done. Threads take items from one counter, so a thread that the system takes
// away holds up one item only. Not to be called from two threads at once, nor from a body.
void run_items(int64_t items, void (*body)(void* context, int64_t item, int thread), void* context);

// Threads of the pool, the one that calls the ops among them.
int pool_size();

// As above, for a callable.
template <class Body>
void parallel(int64_t items, Body&& body) {
  run_items(
      items,
      [](void* context, int64_t item, int thread) {
        (*static_cast<std::remove_reference_t<Body>*>(context))(item, thread);
      },
      &body);
}

// As above, but threads take `items` by runs that follow each other: neighbours in memory are then
// read in one go. There are at least a dozen runs for each thread, and the last ones are shorter
// and shorter, so that all end at about the same time.
template <class Body>
void parallel_runs(int64_t items, Body&& body) {
  static thread_local std::vector<int64_t> starts;
  starts.clear();
  const int64_t threads = pool_size(), longest = items / (12 * threads);
  for (int64_t next = 0; next < items;) {
    starts.push_back(next);
    next += std::max<int64_t>(1, std::min(longest, (items - next) / (3 * threads)));
  }
  const int64_t* start = starts.data();
  const int64_t runs = int64_t(starts.size());
  parallel(runs, [&, start, runs](int64_t run, int thread) {
    const int64_t end = run + 1 < runs ? start[run + 1] : items;
    for (int64_t item = start[run]; item < end; ++item) body(item, thread);
  });
}

// Starts the pool, or changes its size; the thread that calls the ops counts as one of `threads`.
// Workers are pinned to cpus[1 ..], and pin_caller puts the thread that calls it on cpus[0]. Gives
// false where a thread could not be started.
bool start_pool(int threads, const int* cpus);
void pin_caller();

// Nanoseconds that the threads of the pool spent in bodies, all together, since the start.
int64_t busy_nanoseconds();

// `bytes` of scratch of thread `thread`, 64-byte aligned, kept between calls. Null when memory
// ends.
void* scratch(int thread, size_t bytes);
// Makes the scratch of every thread anew, of this size; false when memory ends.
bool reserve_scratch(size_t bytes);
// Bytes held over all threads, and the most that one was asked for.
void scratch_bytes(int64_t* held, int64_t* asked);

}  // namespace fathom
