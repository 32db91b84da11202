/*
 * What a device implements: one table of functions, each the twin of a call in kernels.h (which documents it).
 * Only kernels/device.c and the devices include this.
 */
#ifndef PEN_DEVICE_CLASS_H
#define PEN_DEVICE_CLASS_H

#include "kernels.h"

typedef struct pen_device_class {
    size_t (*scratch_bytes)(const pen_device *, const pen_limits *);
    pen_status (*reserve)(pen_device *, const pen_limits *);
    const char *(*name)(const pen_device *);
    size_t (*cache_bytes)(const pen_device *);                /* NULL: as the machine's own */
    pen_status (*own_memory)(pen_device *, pen_own_memory *); /* NULL: it has none */
    size_t (*bytes_used)(const pen_device *);
    void (*destroy)(pen_device *);
    void (*set_poke)(pen_device *, pen_poke *, void *);

    pen_status (*buffer_create)(pen_device *, size_t, pen_buffer **);
    void (*buffer_destroy)(pen_buffer *);
    void *(*buffer_host)(pen_buffer *);
    void (*buffer_write)(pen_buffer *, size_t, const void *, size_t);
    void (*buffer_read)(pen_buffer *, size_t, void *, size_t);
    pen_status (*host_create)(pen_device *, size_t, void **); /* NULL: plain memory */
    void (*host_destroy)(pen_device *, void *);
    size_t (*activation_bytes)(const pen_device *, int, int);
    size_t (*fine_bytes)(const pen_device *, int, int);
    size_t (*weight_bytes)(const pen_device *, pen_type, int, int);
    pen_status (*weight_create)(pen_device *, pen_type, int, int, pen_weight **);
    void (*weight_destroy)(pen_weight *);
    void (*weight_write)(pen_weight *, int, int, const void *);
    size_t (*kv_bytes)(const pen_device *, int, int, int);
    pen_status (*kv_create)(pen_device *, int, int, int, pen_kv **);
    void (*kv_destroy)(pen_kv *);
    size_t (*rope_bytes)(const pen_device *, const pen_rope_options *);
    pen_status (*rope_create)(pen_device *, const pen_rope_options *, pen_rope **);
    void (*rope_destroy)(pen_rope *);

    pen_status (*event_create)(pen_device *, pen_event **);
    void (*event_destroy)(pen_event *);
    void (*event_record)(pen_event *);
    bool (*event_done)(const pen_event *);
    int64_t (*event_due_ns)(const pen_event *); /* NULL: the device cannot know */
    pen_status (*sync)(pen_device *);
    pen_status (*status)(pen_device *); /* NULL: nothing fails behind the caller's back */
    void (*unit_begin)(pen_device *, int);
    void (*unit_end)(pen_device *);
    void (*unit_reset)(pen_device *);
    double (*unit_ms)(pen_device *, int);
    bool (*graph_begin)(pen_device *, const void *, int); /* both NULL: the device has none */
    bool (*graph_end)(pen_device *);

    void (*set_batch)(pen_device *, const pen_batch *);
    void (*embed)(pen_device *, const pen_embed_op *);
    void (*norm)(pen_device *, const pen_norm_op *);
    void (*qkv)(pen_device *, const pen_qkv_op *);
    void (*rope_kv)(pen_device *, const pen_rope_kv_op *);
    void (*kv_copy)(pen_device *, pen_kv *, int, int);
    void (*attention)(pen_device *, const pen_attention_op *);
    void (*out_project)(pen_device *, const pen_project_op *);
    void (*gate_up)(pen_device *, const pen_gate_up_op *);
    void (*down)(pen_device *, const pen_project_op *);
    void (*logits)(pen_device *, const pen_logits_op *);
    void (*pick)(pen_device *, const pen_buffer *, int, const pen_pick *, pen_buffer *);
} pen_device_class;

/* First member of every device, and of every object that a device makes. */
struct pen_device {
    const pen_device_class *class;
    pen_activations activations;
    pen_type kv_type; /* F32 in PEN_ACTIVATIONS_F32, else F16 or Q8_0 */
};
struct pen_buffer {
    pen_device *device;
    size_t bytes;
};
struct pen_weight {
    pen_device *device;
    pen_type type;
    int rows, cols;
};
struct pen_kv {
    pen_device *device;
};
struct pen_rope {
    pen_device *device;
};
struct pen_event {
    pen_device *device;
};

#endif
