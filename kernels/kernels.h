/*
 * The device interface: everything the engine asks of a CPU, a GPU or the simulator.
 *
 * A device is an ordered stream of operations with memory behind it. Operations are *enqueued*: they may run later (a
 * GPU) or before the call returns (the CPU), always in the order of the calls. Host code that needs a result records
 * an event behind it and waits for that. All calls on a device come from one thread.
 *
 * Letters in shapes: T rows (tokens) of the current batch, L rows that want logits, H hidden size, F feed-forward size,
 * Nq / Nk query / key-value heads, D head size, V vocabulary. Matrices are row-major; a weight of shape [N][K] maps a
 * row of K values to N values, y[n] = Σ_k w[n][k]·x[k].
 *
 * Two forms of rows pass between operations. *f32 rows* are plain float [T][cols]. *Activation rows* are what a weight
 * is multiplied with, in the form that the device and its precision mode like (int8 with a scale per 32 values in
 * PEN_ACTIVATIONS_FAST, f32 in PEN_ACTIVATIONS_F32). *Fine activation rows* have about twice the bits in
 * PEN_ACTIVATIONS_FAST and are the same otherwise: QKV and the LM head, where rounding hurts most, multiply those.
 * Sizes: pen_device_activation_bytes() and pen_device_fine_bytes().
 *
 * The numeric contract: for the same build, device type and precision mode each output row depends on its own input
 * row and its own sequence's KV only, bit for bit, whatever T, the other rows, the threads and the split into batches.
 *
 * Ownership: what a device created is freed by the matching destroy call, before the device. Errors: creation can fail
 * (memory, unsupported type) and returns a status; operations only fail by asserting on misuse, or asynchronously
 * through pen_device_sync().
 */
#ifndef PEN_KERNELS_H
#define PEN_KERNELS_H

#include "status.h"
#include "types.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct pen_device pen_device;
typedef struct pen_buffer pen_buffer; /* device memory of a fixed size */
typedef struct pen_weight pen_weight; /* a matrix [N][K] in the device's own layout */
typedef struct pen_kv pen_kv;         /* the paged K and V of one layer */
typedef struct pen_rope pen_rope;     /* the rotation table of a model */
typedef struct pen_event pen_event;   /* a point in the stream */

typedef enum pen_activations { PEN_ACTIVATIONS_FAST, PEN_ACTIVATIONS_F32 } pen_activations;

enum {
    PEN_KV_BLOCK = 16,     /* positions in a block of paged KV */
    PEN_KV_GROUPS = 2,     /* kinds of block table: full attention, sliding window */
    PEN_TOP_LOGPROBS = 20, /* most log-probabilities that a choice reports */
};

/* ---- The device ------------------------------------------------------------------------------------------------ */

/* The largest shapes that operations will use; scratch memory is planned from it once, nothing is allocated later. */
typedef struct pen_limits {
    int rows;       /* T */
    int logit_rows; /* L */
    int hidden, ffn, heads, kv_heads, head_size, vocab;
    int context; /* positions of a sequence */
} pen_limits;

/* Bytes of scratch that pen_device_reserve would take. */
size_t pen_device_scratch_bytes(const pen_device *device, const pen_limits *limits);
pen_status pen_device_reserve(pen_device *device, const pen_limits *limits);

const char *pen_device_name(const pen_device *device); /* "cpu avx512vnni, 2 threads": goes into profiles and logs */
/* Bytes that the cache before its memory holds: what is to be cold must be more. 0: as the machine's own. */
size_t pen_device_cache_bytes(const pen_device *device);
pen_activations pen_device_activations(const pen_device *device);
pen_type pen_device_kv_type(const pen_device *device); /* what K and V are stored as: F32, F16 or Q8_0 */

/* Memory of the device's own: what nobody has taken yet, all of it, and where it is. For a device that computes in the
 * machine's memory everything is 0 here. */
enum { PEN_BUS_MAX = 32 };
typedef struct pen_own_memory {
    size_t free_bytes, total_bytes;
    char bus[PEN_BUS_MAX]; /* the device's address on the PCI bus, as "0000:3b:00.0" */
} pen_own_memory;
pen_status pen_device_own_memory(pen_device *device, pen_own_memory *memory);
size_t pen_device_bytes_used(const pen_device *device); /* all memory now held by this device's objects */
void pen_device_destroy(pen_device *device);

/* Called from within long operations, on the calling thread, never more than about 0.5 ms apart while it computes:
 * whoever must make progress elsewhere (MPI) does it there. NULL: none. */
typedef void pen_poke(void *context);
void pen_device_set_poke(pen_device *device, pen_poke *poke, void *context);

/* ---- Memory ---------------------------------------------------------------------------------------------------- */

pen_status pen_buffer_create(pen_device *device, size_t bytes, pen_buffer **buffer);
void pen_buffer_destroy(pen_buffer *buffer);
/* Host address of the memory if the host may use it directly (after the stream reached that point), else NULL. */
void *pen_buffer_host(pen_buffer *buffer);
/* Enqueued. The source may be changed when the call returns, unless it is of pen_host_create. */
void pen_buffer_write(pen_buffer *buffer, size_t offset, const void *source, size_t bytes);
/* Enqueued. The target has its bytes when the host has found an event behind it done, or has synchronised. */
void pen_buffer_read(pen_buffer *buffer, size_t offset, void *target, size_t bytes);

/* Host memory that a device copies to and from fastest: pinned on a GPU, plain on others. In pen_buffer_write and
 * pen_buffer_read it is used in place: the stream reads it, or has filled it, when it gets to the copy. */
pen_status pen_host_create(pen_device *device, size_t bytes, void **memory);
void pen_host_destroy(pen_device *device, void *memory);

/* Bytes of T activation rows, or of fine ones and what QKV wants besides, of `cols` values. */
size_t pen_device_activation_bytes(const pen_device *device, int rows, int cols);
size_t pen_device_fine_bytes(const pen_device *device, int rows, int cols);

/* A weight matrix [rows][cols] of a GGUF type. PEN_UNSUPPORTED names the type and the limit (cols not a multiple of
 * the block, …). pen_weight_bytes says what it takes on this device without making it. */
size_t pen_weight_bytes(const pen_device *device, pen_type type, int rows, int cols);
pen_status pen_weight_create(pen_device *device, pen_type type, int rows, int cols, pen_weight **weight);
void pen_weight_destroy(pen_weight *weight);
/* Fills rows [first, first + rows) from consecutive rows in GGUF layout. `first` and, but for the last rows of the
 * matrix, `rows` are multiples of 64. The source may be released when the call returns. */
void pen_weight_write(pen_weight *weight, int first, int rows, const void *source);

/* Paged KV of one layer: `blocks` blocks of PEN_KV_BLOCK positions × kv_heads × head_size, K and V, stored as the
 * device's KV type: F16, or Q8_0 if it was made so, in PEN_ACTIVATIONS_FAST, F32 in PEN_ACTIVATIONS_F32.
 * PEN_UNSUPPORTED where a head is no multiple of the type's block. */
pen_status pen_kv_check(pen_type type, int head_size);
size_t pen_kv_bytes(const pen_device *device, int kv_heads, int head_size, int blocks);
pen_status pen_kv_create(pen_device *device, int kv_heads, int head_size, int blocks, pen_kv **kv);
void pen_kv_destroy(pen_kv *kv);

/* Rotary embedding: for pair i of `dims`/2 the angle at position p is p·base^(−2i/dims)·scale ÷ factors[i].
 * `interleaved`: pairs are (2i, 2i+1), as in GGUF's llama files; otherwise (i, i + dims/2), the NeoX order.
 * Values past `dims` are not rotated. */
typedef struct pen_rope_options {
    int dims;
    int positions;        /* table length: the longest context */
    double base;          /* 10000, 100000, … */
    double scale;         /* 1, or 1/factor of linear scaling */
    double magnitude;     /* what is rotated is multiplied by this, too: 1, or YaRN's attention factor */
    const float *factors; /* [dims/2] or NULL */
    bool interleaved;
} pen_rope_options;
size_t pen_rope_bytes(const pen_device *device, const pen_rope_options *options);
pen_status pen_rope_create(pen_device *device, const pen_rope_options *options, pen_rope **rope);
void pen_rope_destroy(pen_rope *rope);

/* ---- Events and markers ---------------------------------------------------------------------------------------- */

pen_status pen_event_create(pen_device *device, pen_event **event);
void pen_event_destroy(pen_event *event);
void pen_event_record(pen_event *event); /* at the end of what is enqueued so far */
/* Never blocks; true before the first record. On a device that failed no event is done any more, so that nothing is
 * passed on that was never computed: whoever waits asks pen_device_status, too. */
bool pen_event_done(const pen_event *event);
/* When it will be done by pen_clock_ns(), so that whoever waits can sleep until then; 0 where the device cannot know.
 */
int64_t pen_event_due_ns(const pen_event *event);
pen_status pen_device_sync(pen_device *device);
/* The device's first failure, without waiting. */
pen_status pen_device_status(pen_device *device);

/* Where a unit's operations begin and end in the stream. Units are numbered by the caller, below PEN_UNITS_MAX.
 * pen_device_unit_ms adds up each unit's time since the last reset; it synchronises. */
enum { PEN_UNITS_MAX = 4096 };
void pen_device_unit_begin(pen_device *device, int unit);
void pen_device_unit_end(pen_device *device);
void pen_device_unit_reset(pen_device *device);
double pen_device_unit_ms(pen_device *device, int unit);

/* ---- The batch ------------------------------------------------------------------------------------------------- */

/* A run: consecutive tokens of one sequence. The sequence's KV block of position p is tables[group][p / PEN_KV_BLOCK];
 * a table covers at least the positions up to the run's last. */
typedef struct pen_run {
    int row; /* its first row in the batch */
    int rows;
    int position; /* of its first row */
    const int32_t *tables[PEN_KV_GROUPS];
} pen_run;

/* A change to the logit of one token before a choice: to x = logit + add, then x / scale where it is positive and
 * x · scale where not, then x − less. */
typedef struct pen_logit_edit {
    int32_t token;
    float add;   /* −∞: is never chosen */
    float scale; /* > 0 */
    float less;
} pen_logit_edit;
typedef struct pen_logit_edits {
    const pen_logit_edit *list; /* each token once, in any order */
    int count;
} pen_logit_edits;

/* What the following operations work on. The device copies what it needs. */
typedef struct pen_batch {
    int rows; /* T ≥ 1, the sum of all runs' rows; runs are in row order without holes */
    int run_count;
    const pen_run *runs;
    const int32_t *tokens;        /* [T]; used by embed only, else may be NULL */
    int logit_count;              /* L ≥ 0 */
    const int32_t *logit_rows;    /* [L] ascending; used by logits only */
    const pen_logit_edits *edits; /* [L]; used by pick only, and kept by the caller until then; NULL: none */
    bool greedy; /* all picks are pen_pick_is_greedy, without edits: a device need not make the logits for that */
} pen_batch;
void pen_device_set_batch(pen_device *device, const pen_batch *batch);

/* Operations that are the same for every batch but for what the batch says, so that a device may keep them as a graph
 * and launch them at once. They are known by `owner`, who enqueues them, and by `variant`, whatever else they depend
 * on; a batch has been set, and what they read and write has room for the limits' rows.
 *     for (bool go = pen_device_graph_begin(…); go; go = pen_device_graph_end(device)) { enqueue them }
 * Where there is a graph already, begin launches it and is false; end is true where they must be enqueued once more.
 * In between only operations and markers of units are allowed. A launched graph's time is taken where all of it is one
 * unit's. */
bool pen_device_graph_begin(pen_device *device, const void *owner, int variant);
bool pen_device_graph_end(pen_device *device);
/* Whether there may be graphs. Each is made when its operations are enqueued for the second time. */
bool pen_device_keeps_graphs(const pen_device *device);

/* ---- Operations ------------------------------------------------------------------------------------------------ */

/* x[T][H] = scale · table[token[t]] (+ positions[position of row t]). */
typedef struct pen_embed_op {
    const pen_weight *table;     /* [V][H] */
    const pen_weight *positions; /* [context][H], of models that learned theirs, or NULL */
    float scale;
    pen_buffer *x; /* f32 */
} pen_embed_op;
void pen_op_embed(pen_device *device, const pen_embed_op *op);

/* RMS norm, or layer norm where `mean` is set: v = x·rsqrt(mean(x²) + eps)·weight (+ bias), over the last dimension.
 * The result goes to `out` as activation rows [T][cols]; or, where `add_to` is given instead, it is added to those f32
 * rows (the post-norms of some models). The two are exclusive. */
typedef struct pen_norm_op {
    const pen_buffer *x;      /* f32 [T][cols] */
    const pen_buffer *weight; /* f32 [cols] */
    const pen_buffer *bias;   /* f32 [cols] or NULL */
    int cols;
    float eps;
    bool mean;          /* subtract the mean first (layer norm) */
    bool fine;          /* `out` gets fine activation rows */
    pen_buffer *out;    /* activation [T][cols], or NULL */
    pen_buffer *add_to; /* f32 [T][cols], or NULL */
} pen_norm_op;
void pen_op_norm(pen_device *device, const pen_norm_op *op);

/* qkv[T][(Nq + 2·Nk)·D] = x·[q; k; v]ᵀ (+ bias): the three projections in one operation, results side by side. */
typedef struct pen_qkv_op {
    const pen_buffer *x;                        /* fine activation [T][H] */
    const pen_weight *q, *k, *v;                /* [Nq·D][H], [Nk·D][H], [Nk·D][H] */
    const pen_buffer *q_bias, *k_bias, *v_bias; /* f32, one value per row of the weight, or NULL */
    pen_buffer *qkv;                            /* f32 */
} pen_qkv_op;
void pen_op_qkv(pen_device *device, const pen_qkv_op *op);

/* Rotates Q (in place) and K, and stores K and V in the pages at the rows' positions, rounded to the storage type.
 * With q_norm/k_norm each head is RMS-normalised first. rope NULL: no rotation. */
typedef struct pen_rope_kv_op {
    pen_buffer *qkv; /* f32 [T][(Nq + 2·Nk)·D] */
    int heads, kv_heads, head_size;
    const pen_buffer *q_norm, *k_norm; /* f32 [D] or NULL */
    float eps;
    const pen_rope *rope;
    pen_kv *kv;
    int group; /* block table to use, below PEN_KV_GROUPS */
} pen_rope_kv_op;
void pen_op_rope_kv(pen_device *device, const pen_rope_kv_op *op);

/* Copies block `from` of a layer's pages, K and V, to block `to`. */
void pen_op_kv_copy(pen_device *device, pen_kv *kv, int from, int to);

/* Causal attention of every row over its sequence's pages, grouped-query: query head h reads kv head h·Nk/Nq.
 * out[t][h·D + d] = Σ_p softmax_p(scale·q·k_p)·v_p over positions p ≤ own, and > own − window where window > 0. */
typedef struct pen_attention_op {
    const pen_buffer *qkv; /* f32, as pen_op_rope_kv left it */
    int heads, kv_heads, head_size;
    float scale;
    float softcap; /* s = softcap·tanh(s/softcap) before the softmax, or 0 */
    int window;    /* positions seen, or 0: all */
    const pen_kv *kv;
    int group;
    pen_buffer *out; /* activation [T][Nq·D] */
} pen_attention_op;
void pen_op_attention(pen_device *device, const pen_attention_op *op);

/* y = x·wᵀ (+ bias), added to or stored over f32 rows: the attention's output projection and the feed-forward's second
 * half ("down"). With `store` y overwrites `out` (a post-norm follows), otherwise out += y (the residual). */
typedef struct pen_project_op {
    const pen_buffer *x;    /* activation [T][K] */
    const pen_weight *w;    /* [N][K] */
    const pen_buffer *bias; /* f32 [N] or NULL */
    bool store;
    pen_buffer *out; /* f32 [T][N] */
} pen_project_op;
void pen_op_out_project(pen_device *device, const pen_project_op *op);
void pen_op_down(pen_device *device, const pen_project_op *op);

typedef enum pen_gate { PEN_GATE_SILU, PEN_GATE_GELU_TANH } pen_gate;

/* out[T][F] = act(x·gateᵀ) ⊙ (x·upᵀ); without a gate, act(x·upᵀ + bias). */
typedef struct pen_gate_up_op {
    const pen_buffer *x;         /* activation [T][H] */
    const pen_weight *gate, *up; /* [F][H]; gate may be NULL */
    const pen_buffer *bias;      /* of up: f32 [F] or NULL */
    pen_gate act;
    pen_buffer *out; /* activation [T][F] */
} pen_gate_up_op;
void pen_op_gate_up(pen_device *device, const pen_gate_up_op *op);

/* logits[L][V] = norm(x[logit rows])·wᵀ: final norm and LM head for the batch's logit rows only. Of a greedy batch the
 * device may know the largest ones, for the pick that follows, and leave `logits` undefined. */
typedef struct pen_logits_op {
    pen_norm_op norm;    /* x, weight, bias, cols, eps, mean; out and add_to unused */
    const pen_weight *w; /* [V][H] */
    float softcap;       /* or 0 */
    pen_buffer *logits;  /* f32 [L][V] */
} pen_logits_op;
void pen_op_logits(pen_device *device, const pen_logits_op *op);

/* How a row's next token is chosen. temperature 0: the largest logit (the lowest id among equals). Otherwise the
 * logits are divided by the temperature, cut by top_k (0: off), top_p (1: off) and min_p (0: off), in this order, and
 * one is drawn with the counter-based generator keyed by (seed, choice, position), so the draw depends on nothing else.
 * Where the batch has edits for the row, the choice is made from the edited logits; the log-probabilities are those of
 * the unmodified ones all the same. */
typedef struct pen_pick {
    float temperature, top_p, min_p;
    int top_k;
    uint64_t seed;
    int choice;   /* which of several completions of a prompt */
    int position; /* of the token being chosen */
    int target;   /* token whose log-probability is wanted instead of a choice (scoring), or −1 */
    /* How many of the best log-probabilities to report, ≤ PEN_TOP_LOGPROBS; −1: not even the token's own. */
    int top_logprobs;
} pen_pick;

/* Whether all that it asks for is which logit is the largest. */
static inline bool pen_pick_is_greedy(const pen_pick *pick) {
    return pick->temperature == 0 && pick->target < 0 && pick->top_logprobs < 0;
}

/* Log-probabilities are natural logarithms of the softmax of the unmodified logits. */
typedef struct pen_choice {
    int32_t token;                     /* chosen, or the target */
    float logprob;                     /* of `token`; undefined where top_logprobs is −1 */
    int32_t argmax;                    /* the token with the largest logit */
    int32_t bad_logits;                /* 1 where a logit was NaN: nothing else is valid then */
    int32_t top_ids[PEN_TOP_LOGPROBS]; /* best first, ties by lower id */
    float top_logprobs[PEN_TOP_LOGPROBS];
} pen_choice;

/* choices[L] (pen_choice in a buffer) from logits[L][V] with picks[L]. */
void pen_op_pick(pen_device *device, const pen_buffer *logits, int vocab, const pen_pick *picks, pen_buffer *choices);

#endif
