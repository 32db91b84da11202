/*
 * What an architecture's file provides to the rest of runtime/models: its hyper-parameters, its tensors as rules, and
 * the operations of its units. Only the files of this folder include this.
 */
#ifndef PEN_ARCH_H
#define PEN_ARCH_H

#include "model.h"

/* ---- Rules: the tensors of an architecture ---------------------------------------------------------------------- */

/* What a tensor is to the operations; an architecture uses those that it has. */
typedef enum pen_slot {
    PEN_SLOT_TOKEN_EMBEDDING,
    PEN_SLOT_POSITION_EMBEDDING,
    PEN_SLOT_ATTENTION_NORM,
    PEN_SLOT_ATTENTION_NORM_BIAS,
    PEN_SLOT_Q,
    PEN_SLOT_K,
    PEN_SLOT_V,
    PEN_SLOT_Q_BIAS,
    PEN_SLOT_K_BIAS,
    PEN_SLOT_V_BIAS,
    PEN_SLOT_Q_NORM,
    PEN_SLOT_K_NORM,
    PEN_SLOT_ROPE_FACTORS,
    PEN_SLOT_ROPE_FACTORS_SHORT, /* LongRoPE: within the original context … */
    PEN_SLOT_ROPE_FACTORS_LONG,  /* … and beyond it */
    PEN_SLOT_ATTENTION_OUT,
    PEN_SLOT_ATTENTION_OUT_BIAS,
    PEN_SLOT_ATTENTION_POST_NORM, /* of what is added to the residual */
    PEN_SLOT_FFN_NORM,
    PEN_SLOT_FFN_NORM_BIAS,
    PEN_SLOT_GATE,
    PEN_SLOT_UP,
    PEN_SLOT_UP_BIAS,
    PEN_SLOT_DOWN,
    PEN_SLOT_DOWN_BIAS,
    PEN_SLOT_FFN_POST_NORM,
    PEN_SLOT_OUTPUT_NORM,
    PEN_SLOT_OUTPUT_NORM_BIAS,
    PEN_SLOT_OUTPUT,
    PEN_SLOT_COUNT
} pen_slot;

/* A dimension of a tensor, as an expression over the hyper-parameters. */
typedef enum pen_dim {
    PEN_DIM_0,
    PEN_DIM_1,
    PEN_DIM_HIDDEN,
    PEN_DIM_HEAD,    /* head_size */
    PEN_DIM_Q,       /* heads · head_size */
    PEN_DIM_KV,      /* kv_heads · head_size */
    PEN_DIM_QK,      /* Q + KV */
    PEN_DIM_QKV,     /* Q + 2·KV */
    PEN_DIM_FFN,     /* the layer's own width */
    PEN_DIM_FFN_FFN, /* twice that */
    PEN_DIM_VOCAB,
    PEN_DIM_CONTEXT,
    PEN_DIM_ROPE_PAIRS, /* rope_dims / 2 */
} pen_dim;

typedef enum pen_form {
    PEN_FORM_MATRIX,  /* [rows][cols], a pen_weight */
    PEN_FORM_VECTOR,  /* [cols], f32 in a pen_buffer */
    PEN_FORM_FACTORS, /* [cols], what the rotation table is made with; one tensor that all blocks share */
} pen_form;

typedef enum pen_presence {
    PEN_REQUIRED,
    PEN_OPTIONAL,
    PEN_OR_TIED, /* where the file lacks it, the token embedding takes its place */
} pen_presence;

typedef struct pen_rule {
    const char *name; /* in the file; a block's own tensors stand behind "blk.<layer>." */
    pen_slot slot;
    pen_unit_kind unit;
    pen_form form;
    pen_dim rows, cols;
    pen_presence presence;
    /* Where the file has several of our tensors in one: how long that is altogether (rows of a matrix, values of a
     * vector), and where ours begins in it. PEN_DIM_0, PEN_DIM_0: it is a tensor of its own. */
    pen_dim whole, begin;
} pen_rule;

/* ---- Operations of a unit --------------------------------------------------------------------------------------- */

typedef struct pen_arch pen_arch;

typedef struct pen_unit_run {
    pen_device *device;
    const pen_arch *arch;
    const pen_hparams *hparams;
    pen_weight *const *weights; /* [PEN_SLOT_COUNT], of this unit; NULL where the file has none */
    pen_buffer *const *vectors; /* [PEN_SLOT_COUNT], of this unit; likewise */
    const pen_rope *rope;       /* this and the following: of a block */
    pen_kv *kv;
    int kv_group, window;
    const pen_workspace *workspace;
} pen_unit_run;

typedef enum pen_rope_style {
    PEN_ROPE_NONE,
    PEN_ROPE_INTERLEAVED, /* pairs are neighbours, as in GGUF's llama files */
    PEN_ROPE_NEOX,        /* a pair's halves lie half the rotated dimensions apart */
} pen_rope_style;

struct pen_arch {
    const char *name;
    const pen_rule *rules;
    int rule_count;
    bool layer_norm; /* instead of RMS norm */
    pen_rope_style rope;
    int sliding_period;                  /* where layers slide, all do but each one that ends a period; 0: all do */
    double local_rope_base;              /* of sliding layers, where it is not that of the others */
    void (*adapt)(pen_hparams *hparams); /* what is particular in them, after the common ones are known; or NULL */
    void (*embedding)(const pen_unit_run *run);
    void (*block)(const pen_unit_run *run);
    void (*head)(const pen_unit_run *run);
};

#define PEN_ARCH(name) extern const pen_arch pen_arch_##name;
#include "arch.def"
#undef PEN_ARCH

const pen_arch *pen_arch_find(const char *name, size_t length); /* NULL: none */
/* "llama, …": for messages. */
const char *pen_arch_names(void);

/* ---- The model's inside ----------------------------------------------------------------------------------------- */

enum { PEN_TENSOR_NAME_MAX = 64 };

/* A tensor that a rule asks for and that the model has. */
typedef struct pen_tensor {
    const pen_rule *rule;
    char name[PEN_TENSOR_NAME_MAX];
    pen_type type;
    int rows, cols;
    int begin;                   /* where it begins in the file's tensor: a row of a matrix, a value of a vector */
    bool tied;                   /* the table that embedding and head have in common */
    const pen_gguf_tensor *file; /* NULL in a synthetic model */
} pen_tensor;

typedef struct pen_layer {
    int ffn;
    bool sliding;
} pen_layer;

struct pen_model {
    const pen_arch *arch;
    char name[64];
    char *path;     /* MODEL as it was given, for messages */
    pen_gguf *gguf; /* NULL: synthetic, or an outline */
    bool outline;   /* the weights have sizes and no values */
    pen_type synthetic_type;
    uint64_t seed; /* of a synthetic model */
    uint64_t hash;
    pen_hparams hparams;
    pen_layer *layers; /* [hparams.layers] */
    pen_unit *units;
    int unit_count;
    pen_tensor *tensors; /* in unit order; unit u has [tensor_first[u], tensor_first[u + 1]) */
    int *tensor_first;
};

/* ---- Hyper-parameters (hparams.c) -------------------------------------------------------------------------------- */

/* Sets hparams.layers, checked, and makes the layers. */
pen_status pen_hparams_set_layers(pen_model *model, int64_t layers);
/* Reads those that all architectures have, from the keys `<architecture>.…`. */
pen_status pen_hparams_read(pen_model *model);
/* The rest of a model's hyper-parameters where a synthetic spec has given the shape. */
void pen_hparams_default(pen_model *model);
/* Checks them all, and sets what follows from them (the widest ffn, the KV groups). */
pen_status pen_hparams_finish(pen_model *model);
int pen_layer_kv_group(const pen_model *model, int layer);

/* ---- Rotation (rope.c) ------------------------------------------------------------------------------------------- */

/* YaRN's factors[dims/2] of a rotation with `yarn` set. */
void pen_rope_yarn(const pen_rotation *rotation, int dims, int original_context, float *factors);

uint64_t pen_tensor_bytes(const pen_tensor *tensor);

/* ---- Synthetic models (synthetic.c) ------------------------------------------------------------------------------ */

/* Reads `ARCH:key=value,…` (what follows "synthetic:"). */
pen_status pen_synthetic_parse(const char *spec, pen_model *model);
/* Rows [first, first + rows) of a tensor in GGUF layout: a function of seed, tensor name and row alone. */
void pen_synthetic_rows(const pen_tensor *tensor, const pen_hparams *hparams, uint64_t seed, int first, int rows,
                        void *target);

#endif
