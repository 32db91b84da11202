/* The plan of a model: its units with their bytes, and their times from a profile or, without one, an estimate. */
#ifndef PEN_PLAN_MODEL_H
#define PEN_PLAN_MODEL_H

#include "model.h"
#include "plan.h"
#include "profile.h"

typedef struct pen_plan_model_options {
    pen_plan_workload workload;
    int stages;                    /* that the workload's microbatch is divided for */
    const pen_profile *profile;    /* covers the model; NULL: times are estimated from bytes and operations */
    const pen_plan_unit *sizes;    /* what each unit takes, of pen_plan_model_sizes; NULL: that is asked here */
    const pen_device *device;      /* says what things take on it; NULL: the file's bytes, 16-bit activations … */
    bool kv_q8_0;                  /* … and K and V in q8_0, not f16 */
    int rows, logit_rows, context; /* largest microbatch and sequence that memory is planned for; with a device */
    int sequences, positions;      /* that run at a time, and the longest of them: what windows hold KV for */
    int slots;                     /* residual buffers of a stage; with a device */
    int numa_nodes;                /* as in pen_plan_device */
} pen_plan_model_options;

/* The microbatch that the workload makes in the steady state of `stages` stages (pen_profile_steady), in proportion no
 * larger than `rows` rows, the largest microbatch that there is; 0: no such limit. */
pen_steady pen_plan_steady(const pen_plan_workload *workload, int stages, int rows);

/* The bytes of each unit into sizes[units], whose other fields stay as they are. */
void pen_plan_model_sizes(const pen_model *model, const pen_plan_model_options *options, pen_plan_unit *sizes);

/* One device, of speed 1 and without a memory limit; not solved. */
pen_status pen_plan_from_model(const pen_model *model, const pen_plan_model_options *options, pen_plan **plan);

#endif
