// Device memory is host memory with a register of who owns which range, and copies between the two.
#include "sim.h"

#include <cstring>
#include <map>

namespace {

using namespace sim;
using Ranges = std::map<char *, size_t>;  // begin -> bytes

constexpr size_t kTotal = size_t(64) << 30;
constexpr size_t kAlignment = 512;
constexpr size_t kPage = 4096;
constexpr int kGarbage = 0xA5;  // nobody clears device memory for you
Ranges device_ranges, host_ranges;
size_t used = 0;

bool holds(const Ranges &ranges, const void *address) {
  auto *byte = static_cast<char *>(const_cast<void *>(address));
  auto next = ranges.upper_bound(byte);
  if (next == ranges.begin()) return false;
  auto range = std::prev(next);
  return byte < range->first + range->second;
}

aclError allocate(void **address, size_t bytes) {
  if (posix_memalign(address, kAlignment, bytes ? bytes : 1)) return ACL_ERROR_RT_MEMORY_ALLOCATION;
  memset(*address, kGarbage, bytes);
  Lock lock(mutex);
  device_ranges[static_cast<char *>(*address)] = bytes;
  used += bytes;
  return ACL_SUCCESS;
}

aclError allocate_pinned(void **address, size_t bytes) {
  if (posix_memalign(address, kPage, bytes ? bytes : 1)) return ACL_ERROR_RT_MEMORY_ALLOCATION;
  Lock lock(mutex);
  host_ranges[static_cast<char *>(*address)] = bytes;
  return ACL_SUCCESS;
}

void note_bytes(aclrtMemcpyKind kind, size_t bytes) {
  if (inside_bridge) return;
  if (kind == ACL_MEMCPY_HOST_TO_DEVICE) counters.bytes_to_device += bytes;
  else if (kind == ACL_MEMCPY_DEVICE_TO_HOST) counters.bytes_to_host += bytes;
  else counters.bytes_on_device += bytes;
}

}  // namespace

API aclError aclrtMalloc(void **address, size_t bytes, aclrtMemMallocPolicy) { return allocate(address, bytes); }
API aclError aclrtMallocAlign32(void **address, size_t bytes, aclrtMemMallocPolicy) { return allocate(address, bytes); }
API aclError aclrtFree(void *address) {
  run_everything();
  Lock lock(mutex);
  auto range = device_ranges.find(static_cast<char *>(address));
  if (range == device_ranges.end()) return ACL_ERROR_INVALID_PARAM;
  used -= range->second;
  device_ranges.erase(range);
  free(address);
  return ACL_SUCCESS;
}
API aclError aclrtMallocHost(void **address, size_t bytes) { return allocate_pinned(address, bytes); }
API aclError aclrtMallocHostWithCfg(void **address, uint64_t bytes, aclrtMallocConfig *) {
  return allocate_pinned(address, bytes);
}
API aclError aclrtFreeHost(void *address) {
  run_everything();
  Lock lock(mutex);
  host_ranges.erase(static_cast<char *>(address));
  free(address);
  return ACL_SUCCESS;
}
API aclError aclrtGetMemInfo(aclrtMemAttr, size_t *free_bytes, size_t *total) {
  *total = kTotal;
  *free_bytes = kTotal - used;
  return ACL_SUCCESS;
}
API aclError aclrtPointerGetAttributes(const void *address, aclrtPtrAttributes *attributes) {
  memset(attributes, 0, sizeof *attributes);
  Lock lock(mutex);
  attributes->location.type = holds(device_ranges, address) ? ACL_MEM_LOCATION_TYPE_DEVICE
                              : holds(host_ranges, address) ? ACL_MEM_LOCATION_TYPE_HOST
                                                            : ACL_MEM_LOCATION_TYPE_UNREGISTERED;
  return ACL_SUCCESS;
}

API aclError aclrtMemcpy(void *to, size_t room, const void *from, size_t bytes, aclrtMemcpyKind kind) {
  if (bytes > room) return ACL_ERROR_INVALID_PARAM;
  if (auto error = host_waits(counters.blocking_copies)) return error;
  note_bytes(kind, bytes);
  memmove(to, from, bytes);
  return ACL_SUCCESS;
}
API aclError aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t bytes, aclrtMemcpyKind kind,
                              aclrtStream stream) {
  if (bytes > room) return ACL_ERROR_INVALID_PARAM;
  note_bytes(kind, bytes);
  Lock lock(mutex);
  stream_of(stream)->push([=] { memmove(to, from, bytes); });
  return ACL_SUCCESS;
}
API aclError aclrtMemset(void *to, size_t room, int32_t value, size_t bytes) {
  if (bytes > room) return ACL_ERROR_INVALID_PARAM;
  memset(to, value, bytes);
  return ACL_SUCCESS;
}
API aclError aclrtMemsetAsync(void *to, size_t room, int32_t value, size_t bytes, aclrtStream stream) {
  if (bytes > room) return ACL_ERROR_INVALID_PARAM;
  Lock lock(mutex);
  stream_of(stream)->push([=] { memset(to, value, bytes); });
  return ACL_SUCCESS;
}
