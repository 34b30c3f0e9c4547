// What the stand-ins of CANN's runtime share: streams as queues of tasks, events, and the counters that tests read.
#pragma once
#include <acl/acl.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <mutex>
#include <set>

#define API extern "C" __attribute__((visibility("default")))

namespace sim {

using Lock = std::lock_guard<std::recursive_mutex>;

struct Task {
  uint64_t number;
  std::function<void()> run;
};

// Tasks run in order. `queued` and `done` are the numbers of the last task that was queued, and that has run.
struct Stream {
  int id;
  uint64_t queued = 0;
  uint64_t done = 0;
  std::deque<Task> tasks;

  void run_until(uint64_t number);
  uint64_t push(std::function<void()> task);  // runs it at once, unless copies are lazy
};

struct Event {
  Stream *stream = nullptr;
  uint64_t task = 0;
  double milliseconds = -1;

  bool pending() const;
  void finish() const;
};

struct Counters {
  std::atomic<uint64_t> stream_syncs{0}, device_syncs{0}, event_syncs{0}, blocking_copies{0};
  std::atomic<uint64_t> bytes_to_device{0}, bytes_to_host{0}, bytes_on_device{0}, refused_in_capture{0};
};

extern std::recursive_mutex mutex;
extern Stream default_stream;
extern std::set<Stream *> streams;
extern Counters counters;
extern thread_local int inside_bridge;  // > 0: what the operators on the CPU do for themselves is not the host's doing
extern thread_local char message[256];

inline Stream *stream_of(aclrtStream handle) { return handle ? static_cast<Stream *>(handle) : &default_stream; }
void run_everything();

// The host is about to wait: count it, or refuse it during a capture as the device does.
aclError host_waits(std::atomic<uint64_t> &counter);

}  // namespace sim
