/* The graph: what a model function records. Nodes in the order of the calls; tensors without
 * memory.
 *
 * A graph belongs to one list of sample shapes. It owns its tensors, nodes and every array handed
 * to it through graph_keep; names are kept as pointers into that memory too.
 */
#pragma once

#include "autograd/op.h"
#include "autograd/param.h"

typedef struct Graph {
    DType dtype;      /* of activations and compute copies */
    ParamSet *params; /* may be NULL (tests of single ops) */
    Comm *sequence;   /* ranks that share the rows of each sample; NULL: all rows are here */
    int segment;      /* given to the nodes that are recorded now */
    Tensor **tensors; /* [n_tensors] by id */
    int n_tensors;
    Node **nodes; /* [n_nodes] in order */
    int n_nodes;
    Tensor **bucket; /* [params->n_buckets] compute copies; NULL where unused */
    Tensor *
        *bucket_grad; /* [params->n_buckets] f32 gradients of trained buckets; NULL where unused */
    Tensor *draws;    /* input [4] u32, a DropoutState; NULL: nothing is drawn */
    void **owned;     /* memory freed with the graph */
    int n_owned;
} Graph;

Graph *graph_open(DType dtype, ParamSet *params);
void graph_close(Graph *g);

/* Memory of the graph's own, zeroed. */
void *graph_alloc(Graph *g, size_t bytes);

Tensor *graph_tensor(Graph *g, const char *name, Shape shape, DType dtype, Role role);
Tensor *graph_input(Graph *g, const char *name, Shape shape, DType dtype);
/* What the graph's dropout draws with; run_plan gives it. */
Tensor *graph_draws(Graph *g);
/* Contents are copied. */
Tensor *graph_const(Graph *g, const char *name, Shape shape, DType dtype, const void *contents);
/* Elements [offset, offset + count of shape) of t under another shape. Shares t's gradient. */
Tensor *graph_view(Graph *g, Tensor *t, int64_t offset, Shape shape);
/* The whole of t under another shape of as many elements. */
Tensor *graph_reshape(Graph *g, Tensor *t, Shape shape);

/* The tensor of parameter `first` (an index of the graph's ParamSet), or of several that lie side
 * by side, under `shape` (e.g. to_q, to_k, to_v as [3,D,D]); CHECKs that they do. */
Tensor *graph_param(Graph *g, int first, int n, Shape shape);

/* Which of the rows of a run that ranks share are this rank's. */
Range graph_part(const Graph *g, int64_t rows);

/* Records a node whose outputs already have shapes; out[0] needs a gradient where an input does. */
Tensor *graph_record(Graph *g, const Op *op, Attr attr, int n_in, Tensor *const *in, int n_out,
                     Tensor *const *out);
