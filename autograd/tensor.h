/* Tensors: shapes without memory, until a plan places them.
 *
 * Tensors are contiguous and row-major. A view is a run of another tensor's elements under another
 * shape; views of views refer to the root. Shape letters: B samples in a pack, T text rows, V video
 * rows, S all rows, D width, N heads, E head size, R LoRA rank.
 */
#pragma once

#include "kernels/base.h"

enum { MAX_DIMS = 5 };

typedef struct {
    int rank;
    int64_t dim[MAX_DIMS];
} Shape;

#define SHAPE(...)                                                                                 \
    ((Shape){(int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), {__VA_ARGS__}})

typedef enum {
    ROLE_INPUT,  /* written before each run; its memory may be reused after its last use */
    ROLE_CONST,  /* follows from the shapes alone: written once, when the plan is bound */
    ROLE_PARAM,  /* a view of a parameter bucket */
    ROLE_BUCKET, /* what steps compute with of one parameter bucket */
    ROLE_VALUE,  /* the output of a node */
    ROLE_GRAD,   /* the gradient of any of these */
} Role;

typedef struct Node Node;
typedef struct Tensor Tensor;

struct Tensor {
    const char *name;
    Shape shape;
    DType dtype;
    Role role;
    int id;
    bool needs_grad;  /* some trained parameter (or a test's input) lies upstream */
    bool output;      /* stays alive to the end of the run */
    Node *from;       /* the node that writes it; NULL for the other roles */
    Tensor *grad;     /* made by plan_backward; NULL: nobody needs it */
    Tensor *base;     /* the root that this is a view of; NULL: a root */
    int64_t offset;   /* elements from the root's first */
    const void *host; /* ROLE_CONST: the contents, tensor_bytes() of them */
    bool resident;    /* memory is owned elsewhere (a bucket's home): never placed */
    void *data;       /* roots: where it is now, while alive */
};

int64_t shape_count(Shape s);
bool shape_equal(Shape a, Shape b);
/* "[2,3,4]" into a buffer of the caller's; returns it. */
const char *shape_text(Shape s, char text[64]);

static inline Tensor *tensor_root(Tensor *t) { return t->base ? t->base : t; }
int64_t tensor_count(const Tensor *t);
size_t tensor_bytes(const Tensor *t);
/* The address of the first element; CHECKs that the tensor is alive. */
void *tensor_data(const Tensor *t);
