/* The library's own matrix product, as a measure of gemm on a CPU. */
#pragma once

#include "kernels/kernels.h"

/* Seconds of the product g without epilogue or sums by one call of the library for each of its
 * batch, whatever order it sums in; caches are warm. 0: there is no library. C is written twice. */
double gemm_bare_seconds(const Gemm *g, const void *a, const void *b, const void *bias, void *c);
