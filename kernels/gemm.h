/* What a matrix product on the CPU is made of; nothing outside gemm_*.c includes it.
 *
 * gemm_cpu.c splits a Gemm into parts. A part is computed by the library (gemm_onednn2.c,
 * gemm_onednn3.c, or gemm_none.c where there is none: CMake chooses), or by gemm_tiles.c. Rows of
 * samples are not split: gemm_samples.c computes them.
 */
#pragma once

#include "kernels/cpu.h"

/* One part: C = alpha * op(A) op(B) + bias + beta * C. All that a compiled product depends on;
 * compared byte by byte, so it has no padding and starts zeroed. */
typedef struct {
    int64_t m, n, k, lda, ldb, ldc;
    int64_t threads;
    double alpha, beta;
    int32_t a_transposed, b_transposed, has_bias, padding;
} GemmPart;

/* A library's engine, and one product that it compiled. */
typedef struct Library Library;
typedef struct Product Product;

Library *library_open(void);
void library_close(Library *l);
Product *product_create(Library *l, const GemmPart *part); /* NULL: there is no library */
/* Whether a row's bits depend neither on the number of rows nor on that of threads. */
bool product_stands_alone(const Product *p);
void product_free(Product *p);
size_t product_workspace(const Product *p); /* bytes */
void product_run(Library *l, const Product *p, const real *a, const real *b, const real *bias,
                 real *c, void *workspace);

/* The same in our own loops, which any machine runs and whose bits depend on neither. */
size_t tiles_workspace(const GemmPart *part); /* bytes */
void tiles_run(const GemmPart *part, const real *a, const real *b, const real *bias, real *c,
               void *workspace);

/* Products whose rows are samples (Gemm.of_samples), members of a batch one by one. */
size_t samples_workspace(const Gemm *g); /* bytes */
void samples_run(const Gemm *g, const real *a, const real *b, const real *bias, real *c,
                 void *workspace);
