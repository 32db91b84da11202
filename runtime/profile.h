/*
 * Profiles: what each unit of a model costs on a device, measured.
 *
 * Units of one shape and types are one class, measured once, on a small grid: rows of the microbatch (for the head:
 * rows that want logits) at two contexts. Between rows is interpolated. What the context adds is in proportion to the
 * positions that the rows attend to, at a price for each position before a decode, which reads its keys and values for
 * one row alone, and a lower one before the rows of a chunk, which share them. A profile is plain data: it travels as
 * JSON text, from the ranks to rank 0 and to the cache on disk (profile_cache.h).
 */
#ifndef PEN_PROFILE_H
#define PEN_PROFILE_H

#include "model.h"

enum {
    PEN_PROFILE_ROWS = 10,
    PEN_PROFILE_CONTEXTS = 2,
    PEN_PROFILE_DECODES = 16, /* up to here rows are decodes, each of its own sequence; above, one prompt's chunk */
};

/* What a microbatch costs by. Averages may be fractions. */
typedef struct pen_step_shape {
    double rows, logit_rows;
    double decodes;        /* of the rows, those that are their sequence's only one */
    double decode_context; /* positions before a decode */
    double prompt_context; /* positions before the chunk that another row belongs to */
} pen_step_shape;

/* Repetitions of one measurement, in milliseconds. */
typedef struct pen_profile_point {
    double median, mean, deviation, min, max;
    int count;
} pen_profile_point;

typedef struct pen_profile_class {
    uint64_t hash; /* pen_unit's class_hash */
    int row_count, context_count;
    int rows[PEN_PROFILE_ROWS];         /* ascending from 1; logit rows where the class is the head's */
    int contexts[PEN_PROFILE_CONTEXTS]; /* ascending from 0; 1 of them where the context does not matter */
    pen_profile_point points[PEN_PROFILE_CONTEXTS][PEN_PROFILE_ROWS];
} pen_profile_class;

typedef struct pen_profile {
    char device[64]; /* pen_device_name() */
    int class_count;
    pen_profile_class classes[]; /* in order of the units that have them first */
} pen_profile;

typedef struct pen_profile_options {
    int context; /* the workload's: the larger of the two contexts, where the model can have it */
    /* All ranks of a machine measure each class together; NULL: alone. */
    pen_status (*barrier)(void *context);
    void *barrier_context;
    /* Classes measured so far and in all; returning false interrupts. NULL: silent. */
    bool (*progress)(void *context, int done, int total);
    void *progress_context;
} pen_profile_options;

/* Measures all classes of the model on the device, with cold weights of the right shapes and types. Takes seconds, and
 * memory for the weights that it cycles through; reserves the device's scratch for its own shapes. */
pen_status pen_profile_measure(const pen_model *model, pen_device *device, const pen_profile_options *options,
                               pen_profile **profile);
void pen_profile_destroy(pen_profile *profile);

/* JSON text, NUL-terminated, that the caller frees; NULL: no memory. Decoding checks everything; PEN_BAD_INPUT. */
char *pen_profile_encode(const pen_profile *profile);
pen_status pen_profile_decode(const char *text, size_t length, pen_profile **profile);

/* Whether the profile has every class of the model. */
bool pen_profile_covers(const pen_profile *profile, const pen_model *model);

/* The class of a unit; the profile covers the model. */
const pen_profile_class *pen_profile_class_of(const pen_profile *profile, const pen_model *model, int unit);

/* Milliseconds of a unit in such a microbatch. */
double pen_profile_unit_ms(const pen_profile *profile, const pen_model *model, int unit, const pen_step_shape *shape);

/* The microbatch that a workload makes in the steady state: `prompt` tokens in and `output` tokens out per sequence
 * (each ≥ 1), `sequences` of them in `microbatches` microbatches, or fewer where there are fewer sequences. */
typedef struct pen_steady {
    int microbatches; /* in flight */
    double decode_rows, rows, logit_rows;
    double context;        /* before a decode */
    double prompt_context; /* before a row of prompt */
} pen_steady;
pen_steady pen_profile_steady(int prompt, int output, int sequences, int microbatches);
pen_step_shape pen_profile_shape(const pen_steady *steady);

#endif
