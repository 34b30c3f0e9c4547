// Streams, events, host callbacks and graph capture. Lazy copies are decided here: a queued task runs only when its stream
// is synchronised, or when another stream, or the host, waits for an event behind it. Asking whether it has run does not
// make it run, unless somebody asks for ever.
#include "sim.h"

#include <chrono>
#include <cstdio>

namespace sim {

std::recursive_mutex mutex;
Stream default_stream{0};
std::set<Stream *> streams{&default_stream};
Counters counters;
thread_local int inside_bridge = 0;
thread_local char message[256] = "";

namespace {

std::atomic<bool> lazy{false};
std::atomic<int> next_id{1};
Stream *captured = nullptr;
constexpr int kPatience = 1000;  // questions in a row that are answered by "not yet"
int asked = 0;
int graph;  // its address is the handle of every graph

double now() {
  auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(time).count();
}

// Whether the task has run. So that a loop that polls comes to its end, it runs after many questions.
bool has_run(Stream *stream, uint64_t task) {
  if (stream->done >= task) {
    asked = 0;
  } else if (++asked > kPatience) {
    stream->run_until(task);
    asked = 0;
  }
  return stream->done >= task;
}

aclError create_stream(aclrtStream *handle) {
  Lock lock(mutex);
  auto *stream = new Stream{next_id++};
  streams.insert(stream);
  *handle = stream;
  return ACL_SUCCESS;
}

aclError destroy_stream(aclrtStream handle) {
  if (!handle) return ACL_SUCCESS;
  Lock lock(mutex);
  auto *stream = stream_of(handle);
  stream->run_until(stream->queued);
  streams.erase(stream);
  delete stream;
  return ACL_SUCCESS;
}

aclError synchronize_stream(aclrtStream handle) {
  if (auto error = host_waits(counters.stream_syncs)) return error;
  Lock lock(mutex);
  stream_of(handle)->run_until(stream_of(handle)->queued);
  return ACL_SUCCESS;
}

aclError synchronize_device() {
  if (auto error = host_waits(counters.device_syncs)) return error;
  run_everything();
  return ACL_SUCCESS;
}

}  // namespace

void Stream::run_until(uint64_t number) {
  while (!tasks.empty() && tasks.front().number <= number) {
    Task task = std::move(tasks.front());
    tasks.pop_front();
    task.run();
    done = task.number;
  }
  if (done < number) done = number;
}

uint64_t Stream::push(std::function<void()> task) {
  uint64_t number = ++queued;
  if (lazy || !tasks.empty()) {
    tasks.push_back({number, std::move(task)});
  } else {
    task();
    done = number;
  }
  return number;
}

bool Event::pending() const { return stream && streams.count(stream) && stream->done < task; }

void Event::finish() const {
  if (pending()) stream->run_until(task);
}

void run_everything() {
  Lock lock(mutex);
  for (auto *stream : streams) stream->run_until(stream->queued);
}

aclError host_waits(std::atomic<uint64_t> &counter) {
  if (inside_bridge) return ACL_SUCCESS;
  if (captured) {
    ++counters.refused_in_capture;
    snprintf(message, sizeof message, "cann_sim: the host waits for the device while a stream is being captured");
    return ACL_ERROR_RT_STREAM_CAPTURED;
  }
  ++counter;
  return ACL_SUCCESS;
}

}  // namespace sim

using namespace sim;

// ---- for the tests ----------------------------------------------------------------------------------------------------

API void cann_sim_lazy(int on) { lazy = on != 0; }
API void cann_sim_inside_bridge(int change) { inside_bridge += change; }
API uint64_t cann_sim_pending() {
  Lock lock(mutex);
  uint64_t count = 0;
  for (auto *stream : streams) count += stream->tasks.size();
  return count;
}
API void cann_sim_counters(uint64_t *values, int reset) {
  std::atomic<uint64_t> *all[] = {&counters.stream_syncs,    &counters.device_syncs,    &counters.event_syncs,
                                  &counters.blocking_copies, &counters.bytes_to_device, &counters.bytes_to_host,
                                  &counters.bytes_on_device, &counters.refused_in_capture};
  for (auto *counter : all) *values++ = reset ? counter->exchange(0) : counter->load();
}

// ---- streams ----------------------------------------------------------------------------------------------------------

API aclError aclrtCreateStream(aclrtStream *stream) { return create_stream(stream); }
API aclError aclrtCreateStreamWithConfig(aclrtStream *stream, uint32_t, uint32_t) { return create_stream(stream); }
API aclError aclrtDestroyStream(aclrtStream stream) { return destroy_stream(stream); }
API aclError aclrtDestroyStreamForce(aclrtStream stream) { return destroy_stream(stream); }
API aclError aclrtStreamGetId(aclrtStream stream, int32_t *id) {
  *id = stream_of(stream)->id;
  return ACL_SUCCESS;
}
API aclError aclrtStreamQuery(aclrtStream handle, aclrtStreamStatus *status) {
  Lock lock(mutex);
  auto *stream = stream_of(handle);
  *status = has_run(stream, stream->queued) ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
  return ACL_SUCCESS;
}
API aclError aclrtSynchronizeStream(aclrtStream stream) { return synchronize_stream(stream); }
API aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t) { return synchronize_stream(stream); }
API aclError aclrtSynchronizeDevice() { return synchronize_device(); }
API aclError aclrtSynchronizeDeviceWithTimeout(int32_t) { return synchronize_device(); }

// ---- events -----------------------------------------------------------------------------------------------------------

API aclError aclrtCreateEventWithFlag(aclrtEvent *event, uint32_t) {
  *event = new Event;
  return ACL_SUCCESS;
}
API aclError aclrtCreateEventExWithFlag(aclrtEvent *event, uint32_t) {
  *event = new Event;
  return ACL_SUCCESS;
}
API aclError aclrtDestroyEvent(aclrtEvent handle) {
  delete static_cast<Event *>(handle);  // who waits for it has a copy
  return ACL_SUCCESS;
}
API aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream stream) {
  Lock lock(mutex);
  auto *event = static_cast<Event *>(handle);
  event->stream = stream_of(stream);
  event->task = event->stream->push([] {});
  event->milliseconds = now();
  return ACL_SUCCESS;
}
API aclError aclrtResetEvent(aclrtEvent, aclrtStream) { return ACL_SUCCESS; }
API aclError aclrtQueryEventStatus(aclrtEvent handle, aclrtEventRecordedStatus *status) {
  Lock lock(mutex);
  auto *event = static_cast<Event *>(handle);
  bool done = !event->pending() || has_run(event->stream, event->task);
  *status = done ? ACL_EVENT_RECORDED_STATUS_COMPLETE : ACL_EVENT_RECORDED_STATUS_NOT_READY;
  return ACL_SUCCESS;
}
API aclError aclrtQueryEventWaitStatus(aclrtEvent, aclrtEventWaitStatus *status) {
  *status = ACL_EVENT_WAIT_STATUS_COMPLETE;
  return ACL_SUCCESS;
}
API aclError aclrtSynchronizeEvent(aclrtEvent handle) {
  if (auto error = host_waits(counters.event_syncs)) return error;
  Lock lock(mutex);
  static_cast<Event *>(handle)->finish();
  return ACL_SUCCESS;
}
API aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent handle) {
  Lock lock(mutex);
  Event event = *static_cast<Event *>(handle);  // as it is recorded now
  if (event.stream) stream_of(stream)->push([event] { event.finish(); });
  return ACL_SUCCESS;
}
API aclError aclrtEventElapsedTime(float *milliseconds, aclrtEvent start, aclrtEvent end) {
  *milliseconds = float(static_cast<Event *>(end)->milliseconds - static_cast<Event *>(start)->milliseconds);
  return ACL_SUCCESS;
}
API aclError aclrtEventGetTimestamp(aclrtEvent event, uint64_t *nanoseconds) {
  *nanoseconds = uint64_t(static_cast<Event *>(event)->milliseconds * 1e6);
  return ACL_SUCCESS;
}

// ---- callbacks --------------------------------------------------------------------------------------------------------

API aclError aclrtLaunchCallback(aclrtCallback function, void *data, aclrtCallbackBlockType, aclrtStream stream) {
  Lock lock(mutex);
  stream_of(stream)->push([=] { function(data); });
  return ACL_SUCCESS;
}
API aclError aclrtLaunchHostFunc(aclrtStream stream, aclrtHostFunc function, void *data) {
  Lock lock(mutex);
  stream_of(stream)->push([=] { function(data); });
  return ACL_SUCCESS;
}
API aclError aclrtSubscribeReport(uint64_t, aclrtStream) { return ACL_SUCCESS; }
API aclError aclrtUnSubscribeReport(uint64_t, aclrtStream) { return ACL_SUCCESS; }

// ---- graph capture: what it forbids. Nothing is recorded, so a replay is refused --------------------------------------

API aclError aclmdlRICaptureBegin(aclrtStream stream, aclmdlRICaptureMode) {
  if (captured) return ACL_ERROR_RT_STREAM_CAPTURED;
  captured = stream_of(stream);
  return ACL_SUCCESS;
}
API aclError aclmdlRICaptureEnd(aclrtStream, aclmdlRI *model) {
  captured = nullptr;
  *model = reinterpret_cast<aclmdlRI>(&graph);
  return ACL_SUCCESS;
}
API aclError aclmdlRICaptureGetInfo(aclrtStream stream, aclmdlRICaptureStatus *status, aclmdlRI *model) {
  bool active = captured && stream_of(stream) == captured;
  *status = active ? ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE : ACL_MODEL_RI_CAPTURE_STATUS_NONE;
  if (model) *model = reinterpret_cast<aclmdlRI>(&graph);
  return ACL_SUCCESS;
}
API aclError aclmdlRIDestroy(aclmdlRI) { return ACL_SUCCESS; }
API aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode *) { return ACL_SUCCESS; }
API aclError aclmdlRIExecuteAsync(aclmdlRI, aclrtStream) {
  snprintf(message, sizeof message, "cann_sim: replaying a captured graph is not simulated");
  return ACL_ERROR_API_NOT_SUPPORT;
}
