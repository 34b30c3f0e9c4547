// ATen operators of device 'npu' on the CPU: each one that torch_npu registers and that needs a device kernel is sent to
// ATen's CPU kernel. Allocation, views, plain copies, streams, events and pinned memory stay torch_npu's own code.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

extern "C" void cann_sim_inside_bridge(int change);

namespace {

struct InsideBridge {
  InsideBridge() { cann_sim_inside_bridge(1); }
  ~InsideBridge() { cann_sim_inside_bridge(-1); }
};

std::vector<std::unique_ptr<torch::Library>> libraries;
std::optional<c10::SafeKernelFunction> plain_copy;  // torch_npu's copy_, taken before it is replaced

void wait_for_current_stream() {
  auto *guard = c10::impl::getDeviceGuardImpl(c10::DeviceType::PrivateUse1);
  guard->synchronizeStream(guard->getStream(guard->getDevice()));
}

bool lacks_bfloat16() {
  static const bool lacks = [] {
    const char *soc = getenv("ACL_SIM_SOC");
    return soc && strstr(soc, "310P");
  }();
  return lacks;
}

// The dtype rules of the hardware: no double on the vector and cube units, no complex indices, no bf16 on the 310P.
void check_dtype(const std::string &name, const at::Tensor &tensor) {
  if (!tensor.defined() || !tensor.is_privateuseone()) return;
  auto dtype = tensor.scalar_type();
  TORCH_CHECK(dtype != at::kDouble && dtype != at::kComplexDouble, "cann_sim: ", name, ": float64 has no kernel on the NPU");
  const bool indexes = name.rfind("aten::index", 0) == 0;
  TORCH_CHECK(!tensor.is_complex() || !indexes, "cann_sim: ", name, ": complex tensors cannot be indexed");
  TORCH_CHECK(dtype != at::kBFloat16 || !lacks_bfloat16(), "cann_sim: ", name, ": bfloat16 is not supported on Ascend310P");
}

void check_dtypes(const std::string &name, const c10::IValue &value) {
  if (value.isTensor()) check_dtype(name, value.toTensor());
  if (value.isTensorList())
    for (const at::Tensor &tensor : value.toTensorList()) check_dtype(name, tensor);
}

// An NPU generator draws other numbers than a CPU one; a CPU generator of the same seed stands in for it.
at::Generator stand_in(const at::Generator &generator) {
  static std::map<c10::GeneratorImpl *, std::pair<uint64_t, at::Generator>> known;
  auto &entry = known[generator.unsafeGetGeneratorImpl()];
  auto seed = generator.current_seed();
  if (!entry.second.defined() || entry.first != seed) entry = {seed, at::detail::createCPUGenerator(seed)};
  return entry.second;
}

// An index that is a mask: the host has to know how many elements it selects.
bool has_mask(const c10::IValue &value) {
  if (!value.isList()) return false;
  for (const c10::IValue &item : value.toListRef()) {
    if (!item.isTensor() || !item.toTensor().defined()) continue;
    auto dtype = item.toTensor().scalar_type();
    if (dtype == at::kBool || dtype == at::kByte) return true;
  }
  return false;
}

// Operators whose result, or its shape, the host has to know: equal, nonzero, masked_select, unique, x[mask], ...
bool host_must_wait(const c10::OperatorHandle &op, bool masked) {
  if (op.operator_name().name.rfind("aten::index", 0) == 0) return masked;
  return op.hasTag(at::Tag::dynamic_output_shape) || op.hasTag(at::Tag::data_dependent_output);
}

void run_on_cpu(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
  const auto &name = op.schema().operator_name().name;
  bool masked = false;
  for (size_t i = stack->size() - op.schema().arguments().size(); i < stack->size(); ++i) {
    auto &value = (*stack)[i];
    check_dtypes(name, value);
    masked = masked || has_mask(value);
    if (value.isGenerator() && value.toGenerator().device().is_privateuseone()) value = stand_in(value.toGenerator());
  }
  if (host_must_wait(op, masked)) wait_for_current_stream();  // counted, and refused during a capture
  InsideBridge inside;
  wait_for_current_stream();  // an operator comes after what is queued on its stream
  at::native::cpu_fallback(op, stack, /*error_on_views=*/false);
}

// The same memory as a CPU tensor.
at::Tensor on_cpu(const at::Tensor &tensor) {
  if (!tensor.is_privateuseone()) return tensor;
  auto options = tensor.options().device(at::kCPU).pinned_memory(false);
  return at::from_blob(const_cast<void *>(tensor.const_data_ptr()), tensor.sizes(), tensor.strides(), options);
}

bool is_plain_copy(const at::Tensor &to, const at::Tensor &from) {
  auto plain = [](const at::Tensor &tensor) { return tensor.is_contiguous() && !tensor.is_conj() && !tensor.is_neg(); };
  return to.dtype() == from.dtype() && to.sizes() == from.sizes() && plain(to) && plain(from);
}

at::Tensor &copy_npu(at::Tensor &to, const at::Tensor &from, bool non_blocking) {
  if (is_plain_copy(to, from)) {
    torch::jit::Stack stack{to, from, non_blocking};
    auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
    plain_copy->callBoxed(op, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), &stack);
    return to;
  }
  check_dtype("aten::copy_", lacks_bfloat16() ? from : at::Tensor());
  check_dtype("aten::copy_", lacks_bfloat16() ? to : at::Tensor());
  const bool to_host = !to.is_privateuseone(), from_host = !from.is_privateuseone();
  if (to_host || (from_host && !non_blocking)) wait_for_current_stream();  // counted: here the host waits on a device too
  InsideBridge inside;
  wait_for_current_stream();
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

at::Tensor clone_npu(const at::Tensor &self, std::optional<at::MemoryFormat> format) {
  auto out = at::empty_like(self, self.options(), format);
  out.copy_(self);
  return out;
}

at::Tensor contiguous_npu(const at::Tensor &self, at::MemoryFormat format) {
  return self.is_contiguous(format) ? self : clone_npu(self, format);
}

at::Tensor to_copy_npu(const at::Tensor &self, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                   std::optional<at::Device> device, std::optional<bool> pinned, bool non_blocking,
                   std::optional<at::MemoryFormat> format) {
  auto options = self.options();
  if (dtype) options = options.dtype(*dtype);
  if (device) options = options.device(*device);
  options = options.pinned_memory(pinned.value_or(false) && options.device().is_cpu());
  auto out = at::empty_like(self, options, format.value_or(at::MemoryFormat::Preserve));
  out.copy_(self, non_blocking);
  return out;
}

void replace(const std::string &name) {
  constexpr auto key = c10::DispatchKey::PrivateUse1;
  auto library = std::make_unique<torch::Library>(torch::Library::IMPL, "aten", key, __FILE__, __LINE__);
  if (name == "copy_") library->impl("copy_", TORCH_FN(copy_npu));
  else if (name == "clone") library->impl("clone", TORCH_FN(clone_npu));
  else if (name == "contiguous") library->impl("contiguous", TORCH_FN(contiguous_npu));
  else if (name == "_to_copy") library->impl("_to_copy", TORCH_FN(to_copy_npu));
  else library->impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  libraries.push_back(std::move(library));
}

}  // namespace

// `names`: without "aten::", one a line. Returns nullptr, or what went wrong.
extern "C" __attribute__((visibility("default"))) const char *cann_sim_replace_operators(const char *names) {
  static std::string error;
  try {
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
    plain_copy = op.getComputedKernelForDispatchKey(c10::DispatchKey::PrivateUse1);
    const std::string all(names);
    for (size_t start = 0, end; start < all.size(); start = end + 1) {
      end = std::min(all.find('\n', start), all.size());
      replace(all.substr(start, end - start));
    }
    return nullptr;
  } catch (const std::exception &failure) {
    error = failure.what();
    return error.c_str();
  }
}
