/*
 * What the host files of the CUDA device share: the device struct and its objects.
 *
 * Memory. Every object has device memory of its own (cudaMalloc) that is made when the object is, at start-up; what
 * operations need besides is one arena that pen_device_reserve plans (batch.c). Nothing is allocated per step. What the
 * host writes and reads passes through pinned rings (staging.c), so that no call waits for the stream: a write is
 * copied into the ring at once; a read lands in the ring, and from there in its target the next time that the host
 * finds an event behind it done, or synchronises.
 *
 * Errors. A failed CUDA call is kept as the device's first failure, after which no event is done; pen_device_sync() and
 * pen_device_status() tell.
 */
#ifndef PEN_CUDA_DEVICE_H
#define PEN_CUDA_DEVICE_H

#include "cuda.h"
#include "cuda_kernels.h"
#include "device_class.h"
#include "pool.h"

typedef struct pen_cuda_buffer {
    pen_buffer base;
    unsigned char *data;
} pen_cuda_buffer;

typedef struct pen_cuda_weight {
    pen_weight base;
    pen_cuda_matrix matrix;
    size_t bytes;
} pen_cuda_weight;

typedef struct pen_cuda_kv {
    pen_kv base;
    pen_cuda_pages pages;
    int blocks;
    size_t block_bytes; /* of K, or of V */
} pen_cuda_kv;

typedef struct pen_cuda_rope {
    pen_rope base;
    int dims;
    bool interleaved;
    size_t bytes;
    float *table;
} pen_cuda_rope;

typedef struct pen_cuda_event {
    pen_event base;
    cudaEvent_t event;
    uint64_t reads; /* that were enqueued before it was recorded */
} pen_cuda_event;

/* The arena's pieces, on the device. */
typedef struct pen_cuda_arena {
    unsigned char *memory;
    size_t bytes;
    int32_t *batch;        /* what set_batch uploads; see batch.c */
    unsigned char *normed; /* fine activation rows [L][H], for the logits */
    float *gate_up;        /* f32 [T][2·F] */
    size_t gate_up_floats;
    uint16_t *dense_x, *dense_w; /* 16-bit floats for cuBLASLt; NULL where it is not used */
    size_t dense_x_bytes, dense_w_bytes;
    void *blas_workspace; /* [PEN_CUDA_BLAS_WORKSPACE] */
    float *attended;      /* f32 [T][Nq·D] */
    float *partials;      /* of attention, [partial_floats] */
    size_t partial_floats;
    int32_t *tickets;          /* of attention; all 0 between launches */
    pen_cuda_pick_args *picks; /* [L] */
    pen_cuda_edit *edits;      /* [PEN_CUDA_EDITS] */
    float *edited;             /* f32 [L][V] */
} pen_cuda_arena;
enum { PEN_CUDA_EDITS = 16384 }; /* that are uploaded at a time */
enum { PEN_CUDA_DENSE_BYTES = 32 << 20, PEN_CUDA_BLAS_WORKSPACE = 32 << 20 };

/* The current batch: where its parts lie on the device, and what the host needs to know of it. */
typedef struct pen_cuda_batch {
    int rows, logit_count, tile_count, large_count; /* large tiles are the last ones */
    int graph_rows, graph_logit_rows;               /* what a graph is made for, see graph.c; 0: none is */
    const int32_t *tokens, *position, *logit_rows, *tables, *first_block[PEN_KV_GROUPS];
    const pen_cuda_tile *tiles;
    const pen_logit_edits *edits; /* the caller's */
} pen_cuda_batch;

typedef struct pen_cuda_staging pen_cuda_staging; /* staging.c */
typedef struct pen_cuda_pinned pen_cuda_pinned;   /* pinned.c */
typedef struct pen_cuda_markers pen_cuda_markers; /* markers.c */
typedef struct pen_cuda_blas pen_cuda_blas;       /* blas.c */
enum { PEN_CUDA_MEASURED = 64 };                  /* types and shapes of weights */
typedef struct pen_cuda_graphs pen_cuda_graphs;   /* graph.c */

typedef struct pen_cuda_device {
    pen_device base;
    cudaStream_t stream;
    int processors; /* SMs */
    char name[320];
    char bus[PEN_BUS_MAX]; /* the address on it */
    size_t cache_bytes;    /* of L2 */
    size_t bytes_used;
    pen_limits limits;
    pen_cuda_arena arena;
    pen_cuda_batch batch;
    pen_cuda_staging *writes, *reads;
    pen_cuda_pinned *pinned; /* a list */
    pen_cuda_markers *markers;
    pen_cuda_blas *blas; /* or NULL: deterministic, or there is no cuBLASLt */
    pen_cuda_matrix measured[PEN_CUDA_MEASURED];
    int measured_count;
    pen_pool *pool;          /* packs weights */
    pen_cuda_graphs *graphs; /* NULL: off */
    pen_poke *poke;
    void *poke_context;
    cudaError_t failure; /* the first one */
    const char *failed;  /* what failed then */
} pen_cuda_device;

static inline pen_cuda_device *pen_cuda(const pen_device *device) {
    return (pen_cuda_device *)(uintptr_t)device;
}
static inline void *pen_cuda_data(const pen_buffer *buffer) {
    return ((const pen_cuda_buffer *)buffer)->data;
}

/* Bytes of an activation row, and the parts of a fine one. */
size_t pen_cuda_row_bytes(pen_activations activations, int cols);
int pen_cuda_parts(pen_activations activations);

/* ---- cuda.c ---------------------------------------------------------------------------------------------------- */

/* Device memory, accounted for. */
pen_status pen_cuda_allocate(pen_cuda_device *device, size_t bytes, void *memory);
void pen_cuda_release(pen_cuda_device *device, void *memory, size_t bytes);

/* Keeps a failure; true where there is none. */
bool pen_cuda_check(pen_cuda_device *device, cudaError_t error, const char *what);
/* Whether an event is done: cudaErrorNotReady, which does not stay behind as the runtime's last error, where libraries
 * would find it. */
cudaError_t pen_cuda_query(cudaEvent_t event);
/* Polls an event while poking: it is done, or the device has failed. */
void pen_cuda_wait(pen_cuda_device *device, cudaEvent_t event);
pen_status pen_cuda_sync(pen_device *device);

/* ---- weight.c -------------------------------------------------------------------------------------------------- */

size_t pen_cuda_weight_bytes(const pen_device *device, pen_type type, int rows, int cols);
pen_status pen_cuda_weight_create(pen_device *device, pen_type type, int rows, int cols, pen_weight **weight);
void pen_cuda_weight_destroy(pen_weight *weight);
void pen_cuda_weight_write(pen_weight *weight, int first, int rows, const void *source);

/* ---- batch.c: the arena, the batch and the operations ---------------------------------------------------------- */

size_t pen_cuda_scratch_bytes(const pen_device *device, const pen_limits *limits);
pen_status pen_cuda_reserve(pen_device *device, const pen_limits *limits);
void pen_cuda_set_batch(pen_device *device, const pen_batch *batch);
void pen_cuda_embed(pen_device *device, const pen_embed_op *op);
void pen_cuda_norm(pen_device *device, const pen_norm_op *op);
void pen_cuda_qkv(pen_device *device, const pen_qkv_op *op);
void pen_cuda_rope_kv(pen_device *device, const pen_rope_kv_op *op);
void pen_cuda_attention(pen_device *device, const pen_attention_op *op);
void pen_cuda_project(pen_device *device, const pen_project_op *op);
void pen_cuda_gate_up(pen_device *device, const pen_gate_up_op *op);
void pen_cuda_logits(pen_device *device, const pen_logits_op *op);
void pen_cuda_pick(pen_device *device, const pen_buffer *logits, int vocab, const pen_pick *picks, pen_buffer *choices);

/* ---- blas.c ---------------------------------------------------------------------------------------------------- */

/* PEN_UNSUPPORTED says why there is no cuBLASLt. */
pen_status pen_cuda_blas_create(pen_cuda_blas **blas);
void pen_cuda_blas_destroy(pen_cuda_blas *blas);

/* out[tokens][rows] (+)= x[tokens][cols]·w[rows][cols]ᵀ (+ bias): w and x f16 or bf16, the sums f32. */
typedef struct pen_cuda_gemm {
    const void *w, *x;
    const float *bias; /* [rows] or NULL */
    float *out;        /* rows out_stride floats apart */
    size_t out_stride;
    int rows, cols, tokens;
    bool bf16, add;
} pen_cuda_gemm;
/* Whether cuBLASLt can make such a product; then it can be run. Only the alignment of `out` counts of the addresses. */
bool pen_cuda_blas_can(pen_cuda_blas *blas, const pen_cuda_gemm *gemm);
void pen_cuda_blas_run(pen_cuda_device *device, const pen_cuda_gemm *gemm);

/* ---- dense.c --------------------------------------------------------------------------------------------------- */

/* Enqueues the products by cuBLASLt where that is faster and can be done; else false, and nothing is enqueued. */
bool pen_cuda_dense_product(pen_cuda_device *device, const pen_cuda_product_args *args);

/* From how many rows on that is so for matrices like w, or INT_MAX; measured once. */
int pen_cuda_dense_from(pen_cuda_device *device, const pen_cuda_matrix *w);

/* The choice: from the fewest rows on from which, at every measured number, cuBLASLt is faster by more than 5 %. */
typedef struct pen_cuda_timing {
    int rows; /* ascending */
    float own_ms, dense_ms;
} pen_cuda_timing;
int pen_cuda_crossover(const pen_cuda_timing *timings, int count);

/* ---- staging.c ------------------------------------------------------------------------------------------------- */

pen_status pen_cuda_staging_create(pen_cuda_device *device, size_t bytes, pen_cuda_staging **staging);
void pen_cuda_staging_destroy(pen_cuda_staging *staging);
size_t pen_cuda_staging_bytes(const pen_cuda_staging *staging);

/* Room for a copy of `bytes`, at most half of the ring, in pinned memory; waits where the stream has not yet done what
 * it was last used for. pen_cuda_staging_sent() enqueues the end of its use. */
void *pen_cuda_staging_room(pen_cuda_staging *staging, size_t bytes);
void pen_cuda_staging_sent(pen_cuda_staging *staging);

/* Waits until the stream has done all that the ring was used for. */
void pen_cuda_staging_drain(pen_cuda_staging *staging);

/* Enqueues copies of any size: `source` may be changed when the call returns; `target` has its bytes after
 * pen_cuda_staging_land() of at least this read. */
void pen_cuda_staging_write(pen_cuda_staging *staging, void *device_target, const void *source, size_t bytes);
void pen_cuda_staging_read(pen_cuda_staging *staging, void *target, const void *device_source, size_t bytes);
/* Reads enqueued so far; and the copies to the targets of the first `reads` of them, which the stream has done. */
uint64_t pen_cuda_staging_reads(const pen_cuda_staging *staging);
void pen_cuda_staging_land(pen_cuda_staging *staging, uint64_t reads);

/* ---- pinned.c -------------------------------------------------------------------------------------------------- */

pen_status pen_cuda_host_create(pen_device *device, size_t bytes, void **memory);
void pen_cuda_host_destroy(pen_device *device, void *memory);
/* Whether the bytes lie in memory of pen_cuda_host_create. */
bool pen_cuda_is_pinned(const pen_cuda_device *device, const void *at, size_t bytes);

/* ---- markers.c ------------------------------------------------------------------------------------------------- */

pen_status pen_cuda_markers_create(pen_cuda_device *device, pen_cuda_markers **markers);
void pen_cuda_markers_destroy(pen_cuda_markers *markers);
void pen_cuda_unit_begin(pen_device *device, int unit);
void pen_cuda_unit_end(pen_device *device);
void pen_cuda_unit_reset(pen_device *device);
double pen_cuda_unit_ms(pen_device *device, int unit);

/* ---- graph.c --------------------------------------------------------------------------------------------------- */

pen_status pen_cuda_graphs_create(pen_cuda_device *device, pen_cuda_graphs **graphs);
void pen_cuda_graphs_destroy(pen_cuda_graphs *graphs);
/* Rows that a graph for `count` rows is made for, at most `most`; 0: more than graphs are for. */
int pen_cuda_graph_bucket(int count, int most);
/* Memory is freed that graphs may use. */
void pen_cuda_graphs_forget(pen_cuda_graphs *graphs);
/* Whether a unit's operations are being captured: then markers are not part of them. */
bool pen_cuda_graph_takes(const pen_cuda_device *device, int unit);
bool pen_cuda_graph_begin(pen_device *device, const void *owner, int variant);
bool pen_cuda_graph_end(pen_device *device);

#endif
