/* No library: every product is computed by gemm_tiles.c. The f64 build's choice. */
#include "kernels/gemm.h"

Library *library_open(void) { return NULL; }

void library_close(Library *l) { (void)l; }

Product *product_create(Library *l, const GemmPart *part) {
    (void)l, (void)part;
    return NULL;
}

bool product_stands_alone(const Product *p) {
    (void)p;
    return true;
}

void product_free(Product *p) { (void)p; }

size_t product_workspace(const Product *p) {
    (void)p;
    return 0;
}

void product_run(Library *l, const Product *p, const real *a, const real *b, const real *bias,
                 real *c, void *workspace) {
    (void)l, (void)p, (void)a, (void)b, (void)bias, (void)c, (void)workspace;
}
