/*
 * A model: what a file (or a synthetic spec) says it is, unit by unit, and the units' weights on a device.
 *
 * An architecture is one file (llama.c, …) and one line in arch.def. It states its hyper-parameters, its tensors as
 * *rules* (name pattern, shape, which unit owns it, optional or not) and the operations of its units. The rules drive
 * everything else: which tensors a rank reads, the shape checks, the memory of a unit, and random weights for
 * `synthetic:` models and for profiling.
 *
 * Units, in order: 0 the embedding, 1 … layers the blocks, layers + 1 the LM head with the final norm. Models receive
 * unit ranges, never ranks.
 */
#ifndef PEN_MODEL_H
#define PEN_MODEL_H

#include "gguf.h"
#include "kernels.h"

typedef struct pen_model pen_model;

/* Opens MODEL: a GGUF path, or `synthetic:ARCH:key=value,…` (layers, hidden, heads, vocab; ffn, one width or a width
 * per layer as in 8192,4096*3,1024; and where the default will not do kv_heads, head_size, context, window, type, tied,
 * seed).
 * Reads metadata only. Checks that all tensors that the rules want are there with the right shapes. */
pen_status pen_model_open(const char *name, pen_model **model);
void pen_model_close(pen_model *model);

/* How positions turn queries and keys (pen_rope_options, without the factors). */
typedef struct pen_rotation {
    double base;
    double scale;                /* of the angles: 1, or 1/factor of linear scaling */
    double magnitude;            /* of what is rotated: 1, or the attention factor of YaRN and LongRoPE */
    double yarn;                 /* YaRN's factor, or 0 */
    double beta_fast, beta_slow; /* YaRN: pairs that turn more often than this in the original context keep their angle,
                                  * those that turn less often than that have it divided by the factor */
} pen_rotation;

enum { PEN_ROTATIONS = 2 }; /* of the layers, and of sliding layers where they have one of their own */

typedef struct pen_hparams {
    int layers, hidden, heads, kv_heads, head_size, vocab, context;
    int ffn; /* the widest layer's */
    float norm_eps;
    float embedding_scale; /* of the token embeddings */
    float attention_scale; /* of q·k */
    int rope_dims;         /* 0: positions do not rotate */
    int original_context;  /* that the model was trained with before its rotation was stretched; context: it was not */
    pen_rotation rotations[PEN_ROTATIONS];
    int window;                    /* positions that a sliding layer sees, or 0 where there is none */
    int kv_groups;                 /* 1 … PEN_KV_GROUPS kinds of layers, each with block tables of its own … */
    int kv_windows[PEN_KV_GROUPS]; /* … and the positions that they see; 0: all */
    bool tied;                     /* the LM head is the embedding table */
} pen_hparams;

const pen_hparams *pen_model_hparams(const pen_model *model);
const char *pen_model_arch(const pen_model *model);
const char *pen_model_name(const pen_model *model);     /* for people: "SmolLM2 135M", "synthetic llama" */
const pen_gguf *pen_model_gguf(const pen_model *model); /* NULL for a synthetic model */
uint64_t pen_model_hash(const pen_model *model);        /* the same on all ranks, or they have different files */

typedef enum pen_unit_kind { PEN_UNIT_EMBEDDING, PEN_UNIT_BLOCK, PEN_UNIT_HEAD } pen_unit_kind;

typedef struct pen_unit {
    char name[32]; /* "embedding", "block 7", "head" */
    pen_unit_kind kind;
    int layer;                   /* of a block, else −1 */
    uint64_t weight_bytes;       /* of its tensors, in the file's types */
    uint64_t tied_bytes;         /* of those, bytes shared with the other end: counted once where one stage has both */
    int kv_group;                /* of a block: which of the model's block tables it uses */
    uint64_t kv_bytes_per_token; /* in f16 */
    uint64_t class_hash;         /* equal for units of the same shapes and types: measured once */
} pen_unit;

int pen_model_unit_count(const pen_model *model);
const pen_unit *pen_model_unit(const pen_model *model, int unit);

/* For `inspect`: a tensor of a unit, as the rules found it. */
typedef struct pen_tensor_info {
    const char *name;
    pen_type type;
    int rows, cols;
    uint64_t bytes;
    bool tied; /* the table that embedding and head have in common */
} pen_tensor_info;

int pen_model_tensor_count(const pen_model *model, int unit);
pen_tensor_info pen_model_tensor(const pen_model *model, int unit, int i);

/* A model of which only sizes are known: what there is to run where a profile stands for the model (outline.c). Weights
 * are 16-bit numbers; their bytes are rounded up to whole rows of the hidden size. */
typedef struct pen_outline_unit {
    const char *name;
    pen_unit_kind kind;
    uint64_t weight_bytes;
    uint64_t class_hash;
} pen_outline_unit;

typedef struct pen_model_outline {
    const char *name;
    int hidden, vocab, context;
    int kv_values; /* ≥ 1, of K and of V each, per token and block */
    int unit_count;
    const pen_outline_unit *units; /* copied */
    uint64_t hash;
} pen_model_outline;

pen_status pen_model_from_outline(const pen_model_outline *outline, pen_model **model);

/* Limits of operations for a stage of this model. */
void pen_model_limits(const pen_model *model, int rows, int logit_rows, int context, pen_limits *limits);

/* ---- The weights of a range of units on a device ----------------------------------------------------------------- */

typedef struct pen_shard pen_shard;

typedef enum pen_shard_source {
    PEN_SHARD_MODEL,  /* the file's weights, or the synthetic model's (a function of seed, tensor name and row) */
    PEN_SHARD_RANDOM, /* any weights of the right shapes and types, cheaply: for profiling */
} pen_shard_source;

/* Called now and then while loading; bytes of file data so far and in all. Returning false interrupts the load. */
typedef bool pen_shard_progress(void *context, uint64_t done, uint64_t total);

typedef struct pen_shard_options {
    int first, last; /* units */
    pen_shard_source source;
    int context;                  /* positions that the rotation table covers */
    int longest;                  /* that a sequence may ever have: says which of LongRoPE's factors apply */
    pen_shard_progress *progress; /* or NULL */
    void *progress_context;
} pen_shard_options;

/* Loads units [first, last]. Reads only their tensors; drops what it read from its own memory as it goes. */
pen_status pen_shard_load(const pen_model *model, pen_device *device, const pen_shard_options *options,
                          pen_shard **shard);
/* Bytes that these weights take on this device. */
size_t pen_shard_bytes(const pen_model *model, const pen_device *device, const pen_shard_options *options);
void pen_shard_destroy(pen_shard *shard);
int pen_shard_first(const pen_shard *shard);
uint64_t pen_shard_file_bytes(const pen_shard *shard);

/* Buffers that the operations of a unit work in, made for the largest batch. Owner: the caller. */
typedef struct pen_workspace {
    pen_buffer *x;      /* residual, f32 [T][H] */
    pen_buffer *h;      /* normalised rows, fine activation [T][H], or activation [T][Nq·D] */
    pen_buffer *qkv;    /* f32 [T][(Nq + 2·Nk)·D] */
    pen_buffer *ffn;    /* activation [T][F] */
    pen_buffer *branch; /* f32 [T][H], what a post-norm reads; only of models that have those */
    pen_buffer *logits; /* f32 [L][V]; only where the range has the head */
} pen_workspace;
pen_status pen_workspace_create(const pen_model *model, pen_device *device, int rows, int logit_rows, bool has_head,
                                pen_workspace *workspace);
void pen_workspace_destroy(pen_workspace *workspace);
/* Bytes of a workspace for these limits. */
size_t pen_workspace_bytes(const pen_model *model, const pen_device *device, int rows, int logit_rows, bool has_head);

/* Enqueues the operations of one unit on the device's current batch, markers included. `x` is the residual worked on
 * (workspace->x may be replaced by the caller per slot); `kv` is the layer's pages (blocks only). */
void pen_shard_run(pen_shard *shard, int unit, const pen_workspace *workspace, pen_kv *kv);

#endif
