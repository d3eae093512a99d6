/* Owns the arithmetic of shapes and the addresses of tensors. */
#include "autograd/tensor.h"

#include <stdio.h>

int64_t shape_count(Shape s) {
    int64_t n = 1;
    for (int i = 0; i < s.rank; i++) n *= s.dim[i];
    return n;
}

bool shape_equal(Shape a, Shape b) {
    if (a.rank != b.rank) return false;
    for (int i = 0; i < a.rank; i++)
        if (a.dim[i] != b.dim[i]) return false;
    return true;
}

const char *shape_text(Shape s, char text[64]) {
    int n = snprintf(text, 64, "[");
    for (int i = 0; i < s.rank && n < 60; i++)
        n += snprintf(text + n, (size_t)(64 - n), i ? ",%lld" : "%lld", (long long)s.dim[i]);
    if (n < 63) snprintf(text + n, (size_t)(64 - n), "]");
    return text;
}

int64_t tensor_count(const Tensor *t) { return shape_count(t->shape); }

size_t tensor_bytes(const Tensor *t) { return (size_t)tensor_count(t) * dtype_size(t->dtype); }

void *tensor_data(const Tensor *t) {
    const Tensor *root = t->base ? t->base : t;
    CHECK(root->data, "tensor %s (id %d) is read or written outside its life", t->name, root->id);
    return (char *)root->data + t->offset * (int64_t)dtype_size(t->dtype);
}
