/* A bare loop over the library's matrix product, to compare ours with. */
#pragma once

#include "kernels/kernels.h"

/* Seconds of the product g on the GPU in use, by the fastest of the algorithms that cuBLASLt offers
 * for it: the least of `repeat` runs of `calls` calls each, per call. Where it offers none with the
 * bias, epilogue or sums of g, it is without them. All work given to the GPU before must be done.
 * 0: there is no such library or algorithm. C, aux and sums are written. */
double bare_gemm(const Gemm *g, const void *a, const void *b, const void *bias, void *c, int repeat,
                 int calls);
