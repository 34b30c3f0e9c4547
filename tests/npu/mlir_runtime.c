/* What lowered kernels call on the CPU: memory for local buffers, the copy between them, and a few scalar functions. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MOST_DIMENSIONS 8

/* On-chip memory is not cleared: a buffer that a kernel reads before it writes holds this byte. Set from Python. */
int poison = 0xff;

void *_mlir_memref_to_llvm_aligned_alloc(uint64_t alignment, uint64_t size) {
  uint64_t whole = (size + alignment - 1) / alignment * alignment;
  void *buffer = aligned_alloc(alignment, whole ? whole : alignment);
  if (!buffer) abort();
  return memset(buffer, poison, whole);
}

void *_mlir_memref_to_llvm_alloc(uint64_t size) { return _mlir_memref_to_llvm_aligned_alloc(64, size); }

void _mlir_memref_to_llvm_free(void *buffer) { free(buffer); }

/* fp32 -> bf16, to nearest even. Compilers before GCC 13 lack it. Both types travel in the low half of xmm0. */
_Float16 __truncsfbf2(float value) {
  uint32_t bits;
  uint16_t half;
  _Float16 result;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) half = bits >> 16 | 0x40; /* NaN stays NaN */
  else half = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  memcpy(&result, &half, sizeof result);
  return result;
}

/* Functions of the device's library, as libm has them. */
float _mlir_ciface___hmf_tanhf(float x) { return tanhf(x); }
float _mlir_ciface___hmf_roundf(float x) { return roundf(x); }
float _mlir_ciface___hmf_powf(float x, float y) { return powf(x, y); }
_Bool _mlir_ciface___hmf_isnan(float x) { return isnan(x); }
_Bool _mlir_ciface___hmf_isinf(float x) { return isinf(x); }

/* A memref without a static rank; `descriptor` holds allocated, aligned, offset, sizes[rank], strides[rank]. */
struct unranked {
  int64_t rank;
  int64_t *descriptor;
};

/* Copy all elements, whatever the strides of the two are. */
void memrefCopy(int64_t element_size, struct unranked *source, struct unranked *target) {
  int64_t rank = source->rank, index[MOST_DIMENSIONS] = {0};
  const int64_t *sizes = source->descriptor + 3;
  const int64_t *from = sizes + rank, *to = target->descriptor + 3 + rank;
  const char *read = (const char *)source->descriptor[1] + source->descriptor[2] * element_size;
  char *write = (char *)target->descriptor[1] + target->descriptor[2] * element_size;
  if (rank > MOST_DIMENSIONS) abort();
  for (int64_t axis = 0; axis < rank; ++axis)
    if (sizes[axis] <= 0) return;
  for (;;) {
    int64_t read_at = 0, write_at = 0, axis = rank - 1;
    for (int64_t k = 0; k < rank; ++k) {
      read_at += index[k] * from[k];
      write_at += index[k] * to[k];
    }
    memcpy(write + write_at * element_size, read + read_at * element_size, element_size);
    while (axis >= 0 && ++index[axis] == sizes[axis]) index[axis--] = 0;
    if (axis < 0) return;
  }
}
