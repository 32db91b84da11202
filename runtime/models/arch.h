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
    PEN_SLOT_ATTENTION_NORM,
    PEN_SLOT_Q,
    PEN_SLOT_K,
    PEN_SLOT_V,
    PEN_SLOT_ATTENTION_OUT,
    PEN_SLOT_ROPE_FACTORS,
    PEN_SLOT_FFN_NORM,
    PEN_SLOT_GATE,
    PEN_SLOT_UP,
    PEN_SLOT_DOWN,
    PEN_SLOT_OUTPUT_NORM,
    PEN_SLOT_OUTPUT,
    PEN_SLOT_COUNT
} pen_slot;

/* A dimension of a tensor, as an expression over the hyper-parameters. */
typedef enum pen_dim {
    PEN_DIM_1,
    PEN_DIM_HIDDEN,
    PEN_DIM_Q,   /* heads · head_size */
    PEN_DIM_KV,  /* kv_heads · head_size */
    PEN_DIM_FFN, /* the layer's own width */
    PEN_DIM_VOCAB,
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
} pen_rule;

/* ---- Operations of a unit --------------------------------------------------------------------------------------- */

typedef struct pen_unit_run {
    pen_device *device;
    const pen_hparams *hparams;
    pen_weight *const *weights; /* [PEN_SLOT_COUNT], of this unit */
    pen_buffer *const *vectors; /* [PEN_SLOT_COUNT], of this unit */
    const pen_rope *rope;
    pen_kv *kv;
    const pen_workspace *workspace;
} pen_unit_run;

typedef struct pen_arch {
    const char *name;
    const pen_rule *rules;
    int rule_count;
    bool rope_interleaved;
    /* Fills hyper-parameters and the width of each layer (pen_model_set_layers first); pen_model_open checks them. */
    pen_status (*read)(const pen_gguf *gguf, pen_model *model);
    void (*embedding)(const pen_unit_run *run);
    void (*block)(const pen_unit_run *run);
    void (*head)(const pen_unit_run *run);
} pen_arch;

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
    bool tied;                   /* the table that embedding and head have in common */
    const pen_gguf_tensor *file; /* NULL in a synthetic model */
} pen_tensor;

struct pen_model {
    const pen_arch *arch;
    char name[64];
    char *path;     /* MODEL as it was given, for messages */
    pen_gguf *gguf; /* NULL: synthetic */
    pen_type synthetic_type;
    uint64_t seed; /* of a synthetic model */
    uint64_t hash;
    pen_hparams hparams;
    int *layer_ffn; /* [layers] */
    pen_unit *units;
    int unit_count;
    pen_tensor *tensors; /* in unit order; unit u has [tensor_first[u], tensor_first[u + 1]) */
    int *tensor_first;
};

/* Sets hparams.layers, checked, and makes layer_ffn. */
pen_status pen_model_set_layers(pen_model *model, int64_t layers);

uint64_t pen_tensor_bytes(const pen_tensor *tensor);

/* ---- Synthetic models (synthetic.c) ------------------------------------------------------------------------------ */

/* Reads `ARCH:key=value,…` (what follows "synthetic:"). */
pen_status pen_synthetic_parse(const char *spec, pen_model *model);
/* Rows [first, first + rows) of a tensor in GGUF layout: a function of seed, tensor name and row alone. */
void pen_synthetic_rows(const pen_tensor *tensor, const pen_hparams *hparams, uint64_t seed, int first, int rows,
                        void *target);

#endif
