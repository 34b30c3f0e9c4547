// One device: what it is called, its options, and operators that are never pretended to have run.
//   ACL_SIM_SOC   the name to report, Ascend910B2 if it is not set
#include "sim.h"

#include <acl/acl_op_compiler.h>

#include <cstdio>
#include <cstring>
#include <map>

namespace {

using namespace sim;

constexpr int kCores = 24;
std::atomic<int> current{-1};
int context;  // its address is the handle of the only context
std::map<int, int64_t> options;

aclError refuse(const char *name) {
  snprintf(message, sizeof message, "cann_sim: operator %s is not simulated", name);
  return ACL_ERROR_OP_NOT_FOUND;
}

}  // namespace

API aclError aclInit(const char *) { return ACL_SUCCESS; }
API aclError aclFinalize() { return ACL_SUCCESS; }
API const char *aclGetRecentErrMsg() { return message; }
API void aclAppLog(aclLogLevel, const char *, const char *, uint32_t, const char *, ...) {}
API aclError aclrtGetLastError(aclrtLastErrLevel) { return ACL_SUCCESS; }
API aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return ACL_SUCCESS; }

API const char *aclrtGetSocName() {
  const char *name = getenv("ACL_SIM_SOC");
  return name ? name : "Ascend910B2";
}
API aclError aclrtGetDeviceCount(uint32_t *count) {
  *count = 1;
  return ACL_SUCCESS;
}
API aclError aclrtSetDevice(int32_t device) {
  current = device;
  return ACL_SUCCESS;
}
API aclError aclrtResetDevice(int32_t) { return ACL_SUCCESS; }
API aclError aclrtGetDevice(int32_t *device) {
  if (current < 0) return ACL_ERROR_RT_CONTEXT_NULL;
  *device = current;
  return ACL_SUCCESS;
}
API aclError aclrtGetLogicDevIdByUserDevId(const int32_t user, int32_t *const logical) {
  *logical = user;
  return ACL_SUCCESS;
}
API aclError aclrtDeviceGetUuid(int32_t, aclrtUuid *uuid) {
  memset(uuid, 0x11, sizeof *uuid);
  return ACL_SUCCESS;
}
API aclError aclrtDeviceCanAccessPeer(int32_t *can, int32_t, int32_t) {
  *can = 0;
  return ACL_SUCCESS;
}
API aclError aclrtGetCurrentContext(aclrtContext *handle) {
  *handle = &context;
  return ACL_SUCCESS;
}
API aclError aclrtSetCurrentContext(aclrtContext) { return ACL_SUCCESS; }
API aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *active) {
  if (flags) *flags = 0;
  *active = current == device;
  return ACL_SUCCESS;
}

// ---- sizes and options ------------------------------------------------------------------------------------------------

API aclError aclGetDeviceCapability(uint32_t, aclDeviceInfo, int64_t *value) {
  *value = kCores;
  return ACL_SUCCESS;
}
API aclError aclrtGetDeviceInfo(uint32_t, aclrtDevAttr, int64_t *value) {
  *value = kCores;
  return ACL_SUCCESS;
}
API aclError aclrtGetDeviceResLimit(int32_t, aclrtDevResLimitType, uint32_t *value) {
  *value = kCores;
  return ACL_SUCCESS;
}
API aclError aclrtGetStreamResLimit(aclrtStream, aclrtDevResLimitType, uint32_t *value) {
  *value = kCores;
  return ACL_SUCCESS;
}
API aclError aclrtGetDeviceUtilizationRate(int32_t, aclrtUtilizationInfo *rate) {
  rate->cubeUtilization = rate->vectorUtilization = rate->aicpuUtilization = rate->memoryUtilization = 0;
  return ACL_SUCCESS;
}
API size_t aclGetCompileoptSize(aclCompileOpt) { return 8; }
API aclError aclGetCompileopt(aclCompileOpt, char *value, size_t size) {
  snprintf(value, size, "disable");
  return ACL_SUCCESS;
}
API aclError aclSetCompileopt(aclCompileOpt, const char *) { return ACL_SUCCESS; }
API aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t *value) {
  auto found = options.find(option);
  *value = found == options.end() ? 0 : found->second;
  return ACL_SUCCESS;
}
API aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value) {
  options[option] = value;
  return ACL_SUCCESS;
}
API aclError aclrtCtxSetSysParamOpt(aclSysParamOpt option, int64_t value) {
  options[option] = value;
  return ACL_SUCCESS;
}
API aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode) { return ACL_SUCCESS; }
API aclError aclrtSetOpExecuteTimeOut(uint32_t) { return ACL_SUCCESS; }
API aclError aclrtSetOpWaitTimeout(uint32_t) { return ACL_SUCCESS; }
API aclError aclrtSetStreamFailureMode(aclrtStream, uint64_t) { return ACL_SUCCESS; }
API aclError aclrtSetStreamAttribute(aclrtStream, aclrtStreamAttr, aclrtStreamAttrValue *) { return ACL_SUCCESS; }
API aclError aclrtGetStreamOverflowSwitch(aclrtStream, uint32_t *flag) {
  *flag = 0;
  return ACL_SUCCESS;
}
API aclError aclrtSetStreamOverflowSwitch(aclrtStream, uint32_t) { return ACL_SUCCESS; }

// ---- operators --------------------------------------------------------------------------------------------------------

API aclError aclopCompileAndExecute(const char *name, int, const aclTensorDesc *const[], const aclDataBuffer *const[], int,
                                    const aclTensorDesc *const[], aclDataBuffer *const[], const aclopAttr *, aclopEngineType,
                                    aclopCompileType, const char *, aclrtStream) {
  return refuse(name);
}
API aclError aclopCompileAndExecuteV2(const char *name, int, aclTensorDesc *[], aclDataBuffer *[], int, aclTensorDesc *[],
                                      aclDataBuffer *[], aclopAttr *, aclopEngineType, aclopCompileType, const char *,
                                      aclrtStream) {
  return refuse(name);
}
