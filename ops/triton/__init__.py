"""The Triton kernels, one source for CUDA, Ascend and the interpreter. Imported when the first of them is launched.

What Ascend's compiler asks of them, and CUDA's does not mind: a one-dimensional grid of at most as many programs as there
are vector cores, each taking every so many blocks; fp32 arithmetic; `tl.sum` and `tl.max` only; masks in loads and stores
only; no 64-bit numbers; no pointer arithmetic on loaded values.
"""
