/*
 * CUDA graphs of decodes: what a stage enqueues for a batch of single rows, captured once and launched as one.
 *
 * A graph's kernels keep their arguments, so nothing that changes from step to step may be one. Tokens, positions and
 * tables lie in the batch's one place on the device, at offsets that follow from the number of rows; and that number is
 * rounded up to a bucket's. Rows that fill up a bucket have no pages and no tile (first_block −1, 0 rows): they write
 * to rows of the workspace that nobody reads, and nothing else. How long the contexts are is the tiles' business, not
 * the grid's. Copies to and from the host, choices and NCCL are enqueued outside.
 *
 * A graph is found by who enqueues it (owner, variant), and by its buckets. The first time its operations run as they
 * are, which loads kernels and lets libraries choose; the second time they are captured. All are thrown away when
 * memory is freed that one of them may use: a new plan makes them anew. Where no graph can be made the operations run
 * as they are from then on.
 */
#include "cuda_device.h"

#include <assert.h>
#include <stdlib.h>

enum { GRAPHS = 128 }; /* a microbatch slot has a dozen buckets at most */

typedef struct graph {
    const void *owner;
    int variant, rows, logit_rows;
    int unit;             /* whose operations all of them are, or one of those below */
    cudaGraphExec_t exec; /* NULL: ran once */
} graph;
enum { NO_UNIT = -1, SEVERAL_UNITS = -2 };

struct pen_cuda_graphs {
    pen_cuda_device *device;
    bool off;             /* one could not be made */
    graph *open;          /* between begin and end */
    bool capture;         /* its operations */
    pen_cuda_batch exact; /* the batch without what fills up the bucket, meanwhile */
    int count, oldest;
    graph list[GRAPHS];
};

int pen_cuda_graph_bucket(int count, int most) {
    static const int buckets[] = {1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64};
    if (count <= 0) return 0;
    for (size_t i = 0; i < sizeof buckets / sizeof *buckets; i++)
        if (count <= buckets[i]) return buckets[i] < most ? buckets[i] : most;
    return 0;
}

pen_status pen_cuda_graphs_create(pen_cuda_device *device, pen_cuda_graphs **graphs) {
    *graphs = calloc(1, sizeof **graphs);
    if (!*graphs) return pen_fail(PEN_NO_MEMORY, "no memory for graphs");
    (*graphs)->device = device;
    return PEN_OK;
}

static void drop(graph *one) {
    if (one->exec) cudaGraphExecDestroy(one->exec);
    *one = (graph){.unit = NO_UNIT};
}

void pen_cuda_graphs_forget(pen_cuda_graphs *graphs) {
    if (!graphs) return;
    assert(!graphs->open);
    for (int i = 0; i < graphs->count; i++) drop(&graphs->list[i]);
    graphs->count = graphs->oldest = 0;
}

void pen_cuda_graphs_destroy(pen_cuda_graphs *graphs) {
    pen_cuda_graphs_forget(graphs);
    free(graphs);
}

bool pen_cuda_graph_takes(const pen_cuda_device *device, int unit) {
    pen_cuda_graphs *graphs = device->graphs;
    if (!graphs || !graphs->open || !graphs->capture) return false;
    graph *one = graphs->open;
    one->unit = one->unit == NO_UNIT || one->unit == unit ? unit : SEVERAL_UNITS;
    return true;
}

/* Where it is one unit's, the markers are around it. */
static cudaError_t launch(pen_device *device, const graph *one) {
    if (one->unit >= 0) pen_cuda_unit_begin(device, one->unit);
    cudaError_t error = cudaGraphLaunch(one->exec, pen_cuda(device)->stream);
    if (one->unit >= 0) pen_cuda_unit_end(device);
    return error;
}

/* The graph of a key, or a place for it: that of the one which is there for the longest time, if all are taken. */
static graph *find(pen_cuda_graphs *graphs, const graph *key, bool *known) {
    *known = true;
    for (int i = 0; i < graphs->count; i++) {
        graph *one = &graphs->list[i];
        if (one->owner == key->owner && one->variant == key->variant && one->rows == key->rows &&
            one->logit_rows == key->logit_rows)
            return one;
    }
    *known = false;
    graph *made = &graphs->list[graphs->count < GRAPHS ? graphs->count++ : graphs->oldest++ % GRAPHS];
    drop(made);
    *made = *key;
    return made;
}

bool pen_cuda_graph_begin(pen_device *base, const void *owner, int variant) {
    pen_cuda_device *device = pen_cuda(base);
    pen_cuda_graphs *graphs = device->graphs;
    pen_cuda_batch *batch = &device->batch;
    if (!graphs || graphs->off || !batch->graph_rows || (batch->logit_count && !batch->graph_logit_rows)) return true;
    assert(!graphs->open);
    bool known;
    const graph key = {owner, variant, batch->graph_rows, batch->graph_logit_rows, NO_UNIT, NULL};
    graph *one = find(graphs, &key, &known);
    if (one->exec) {
        pen_cuda_check(device, launch(base, one), "launching a graph");
        return false;
    }
    graphs->open = one;
    graphs->capture = known;
    graphs->exact = *batch;
    batch->rows = batch->tile_count = batch->graph_rows;
    batch->logit_count = batch->graph_logit_rows;
    if (known)
        pen_cuda_check(device, cudaStreamBeginCapture(device->stream, cudaStreamCaptureModeThreadLocal),
                       "beginning a graph");
    return true;
}

bool pen_cuda_graph_end(pen_device *base) {
    pen_cuda_device *device = pen_cuda(base);
    pen_cuda_graphs *graphs = device->graphs;
    if (!graphs || !graphs->open) return false;
    graph *one = graphs->open;
    graphs->open = NULL;
    device->batch = graphs->exact;
    if (!graphs->capture) return false;
    cudaGraph_t captured = NULL;
    cudaError_t error = cudaStreamEndCapture(device->stream, &captured);
    if (error == cudaSuccess) error = cudaGraphInstantiateWithFlags(&one->exec, captured, 0);
    if (captured) cudaGraphDestroy(captured);
    if (error == cudaSuccess) error = launch(base, one);
    if (error == cudaSuccess) return false;
    cudaGetLastError(); /* the runtime keeps it otherwise */
    graphs->off = true;
    return true;
}
