/* The simulated device; see sim.h. */
#include "sim.h"

#include "clock.h"
#include "device_class.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct sim_device {
    pen_device base;
    pen_sim_options options;
    char name[64];
    size_t bytes_used;
    void *rows; /* the area that all rows share, [limits.rows][hidden] f32; untouched pages of it take no memory */
    size_t rows_bytes;
    int64_t created_ns;
    int64_t end_ns; /* of the stream */
    pen_sim_load load;
    int unit; /* that the batch is in or was in last; −1: none yet */
    pen_poke *poke;
    void *poke_context;
    double unit_ms[PEN_UNITS_MAX];
} sim_device;

typedef struct sim_buffer {
    pen_buffer base;
    void *data; /* zeroed; pages that nobody touches take no memory */
} sim_buffer;

typedef struct sim_kv {
    pen_kv base;
    size_t bytes;
} sim_kv;

typedef struct sim_rope {
    pen_rope base;
    size_t bytes;
} sim_rope;

typedef struct sim_event {
    pen_event base;
    int64_t due_ns; /* 0: not recorded yet */
} sim_event;

static sim_device *sim(pen_device *device) {
    return (sim_device *)device;
}

static const sim_device *sim_const(const pen_device *device) {
    return (const sim_device *)device;
}

static pen_status no_memory(const char *what) {
    return pen_fail(PEN_NO_MEMORY, "no memory for %s", what);
}

/* ---- Memory: counted -------------------------------------------------------------------------------------------- */

static size_t scratch_bytes(const pen_device *device, const pen_limits *limits) {
    (void)device, (void)limits;
    return 0;
}

static pen_status reserve(pen_device *base, const pen_limits *limits) {
    sim_device *device = sim(base);
    size_t bytes = (size_t)limits->rows * (size_t)limits->hidden * sizeof(float);
    if (bytes <= device->rows_bytes) return PEN_OK;
    free(device->rows);
    device->rows = calloc(1, bytes);
    device->rows_bytes = device->rows ? bytes : 0;
    return device->rows ? PEN_OK : no_memory("the rows of a microbatch");
}

static pen_status buffer_create(pen_device *device, size_t bytes, pen_buffer **buffer) {
    sim_buffer *made = calloc(1, sizeof *made);
    if (!made) return no_memory("a buffer");
    *made = (sim_buffer){.base = {.device = device, .bytes = bytes}, .data = calloc(1, bytes ? bytes : 1)};
    if (!made->data) {
        free(made);
        return no_memory("a buffer");
    }
    sim(device)->bytes_used += bytes;
    *buffer = &made->base;
    return PEN_OK;
}

static void buffer_destroy(pen_buffer *base) {
    sim(base->device)->bytes_used -= base->bytes;
    free(((sim_buffer *)base)->data);
    free(base);
}

static void *buffer_host(pen_buffer *buffer) {
    assert(buffer->bytes <= sim(buffer->device)->rows_bytes);
    return sim(buffer->device)->rows;
}

static void buffer_write(pen_buffer *buffer, size_t offset, const void *source, size_t bytes) {
    memcpy((char *)((sim_buffer *)buffer)->data + offset, source, bytes);
}

static void buffer_read(pen_buffer *buffer, size_t offset, void *target, size_t bytes) {
    memcpy(target, (const char *)((sim_buffer *)buffer)->data + offset, bytes);
}

static size_t activation_bytes(const pen_device *device, int rows, int cols) {
    (void)device;
    return (size_t)rows * (size_t)cols * sizeof(uint16_t);
}

static size_t weight_bytes(const pen_device *device, pen_type type, int rows, int cols) {
    (void)device;
    return (size_t)rows * pen_type_row_bytes(type, cols);
}

static pen_status weight_create(pen_device *device, pen_type type, int rows, int cols, pen_weight **weight) {
    pen_weight *made = calloc(1, sizeof *made);
    if (!made) return no_memory("a weight");
    *made = (pen_weight){.device = device, .type = type, .rows = rows, .cols = cols};
    sim(device)->bytes_used += weight_bytes(device, type, rows, cols);
    *weight = made;
    return PEN_OK;
}

static void weight_destroy(pen_weight *weight) {
    sim(weight->device)->bytes_used -= weight_bytes(weight->device, weight->type, weight->rows, weight->cols);
    free(weight);
}

static void weight_write(pen_weight *weight, int first, int rows, const void *source) {
    (void)weight, (void)first, (void)rows, (void)source;
}

static size_t kv_bytes(const pen_device *device, int kv_heads, int head_size, int blocks) {
    (void)device;
    return 2 * sizeof(uint16_t) * PEN_KV_BLOCK * (size_t)kv_heads * (size_t)head_size * (size_t)blocks;
}

static pen_status kv_create(pen_device *device, int kv_heads, int head_size, int blocks, pen_kv **kv) {
    sim_kv *made = calloc(1, sizeof *made);
    if (!made) return no_memory("a KV cache");
    *made = (sim_kv){.base.device = device, .bytes = kv_bytes(device, kv_heads, head_size, blocks)};
    sim(device)->bytes_used += made->bytes;
    *kv = &made->base;
    return PEN_OK;
}

static void kv_destroy(pen_kv *kv) {
    sim(kv->device)->bytes_used -= ((sim_kv *)kv)->bytes;
    free(kv);
}

static size_t rope_bytes(const pen_device *device, const pen_rope_options *options) {
    (void)device;
    return (size_t)options->positions * (size_t)options->dims * sizeof(float);
}

static pen_status rope_create(pen_device *device, const pen_rope_options *options, pen_rope **rope) {
    sim_rope *made = calloc(1, sizeof *made);
    if (!made) return no_memory("a rotation table");
    *made = (sim_rope){.base.device = device, .bytes = rope_bytes(device, options)};
    sim(device)->bytes_used += made->bytes;
    *rope = &made->base;
    return PEN_OK;
}

static void rope_destroy(pen_rope *rope) {
    sim(rope->device)->bytes_used -= ((sim_rope *)rope)->bytes;
    free(rope);
}

/* ---- The stream -------------------------------------------------------------------------------------------------- */

static pen_status event_create(pen_device *device, pen_event **event) {
    sim_event *made = calloc(1, sizeof *made);
    if (!made) return no_memory("an event");
    made->base.device = device;
    *event = &made->base;
    return PEN_OK;
}

static void event_destroy(pen_event *event) {
    free(event);
}

static void event_record(pen_event *event) {
    ((sim_event *)event)->due_ns = sim(event->device)->end_ns;
}

static int64_t event_due_ns(const pen_event *event) {
    return ((const sim_event *)event)->due_ns;
}

static bool event_done(const pen_event *event) {
    int64_t due = event_due_ns(event);
    return due == 0 || pen_clock_ns() >= due;
}

static pen_status sync(pen_device *base) {
    enum { SLICE_NS = 50 * 1000000 };
    const sim_device *device = sim(base);
    for (int64_t now; (now = pen_clock_ns()) < device->end_ns;) {
        if (device->poke) device->poke(device->poke_context);
        pen_clock_sleep_until(device->end_ns < now + SLICE_NS ? device->end_ns : now + SLICE_NS);
    }
    return PEN_OK;
}

/* A unit may be entered twice in a batch, as the LM head is for its logits and for the picks: it is paid for once. */
static void unit_begin(pen_device *base, int unit) {
    sim_device *device = sim(base);
    if (unit == device->unit) return;
    device->unit = unit;
    double scale = device->options.time_scale;
    device->load.at_s = (double)(device->end_ns - device->created_ns) * 1e-9 / scale;
    double ms = device->options.unit_ms(device->options.context, unit, &device->load) * scale;
    device->end_ns += llround(ms * 1e6);
    device->unit_ms[unit] += ms;
}

static void unit_end(pen_device *device) {
    (void)device;
}

static void unit_reset(pen_device *device) {
    memset(sim(device)->unit_ms, 0, sizeof sim(device)->unit_ms);
}

static double unit_ms(pen_device *device, int unit) {
    return sim(device)->unit_ms[unit];
}

static void set_batch(pen_device *base, const pen_batch *batch) {
    sim_device *device = sim(base);
    pen_sim_load load = {.rows = batch->rows, .logit_rows = batch->logit_count};
    double decode_positions = 0, prompt_positions = 0;
    for (int r = 0; r < batch->run_count; r++) {
        const pen_run *run = &batch->runs[r];
        load.decodes += run->rows == 1;
        *(run->rows == 1 ? &decode_positions : &prompt_positions) += (double)run->rows * run->position;
    }
    if (load.decodes > 0) load.decode_context = decode_positions / load.decodes;
    if (load.rows > load.decodes) load.prompt_context = prompt_positions / (load.rows - load.decodes);
    device->load = load;
    device->unit = -1;
    int64_t now = pen_clock_ns();
    if (device->end_ns < now) device->end_ns = now; /* the stream was idle */
}

/* ---- Operations: only the choices have an outcome ---------------------------------------------------------------- */

static void embed(pen_device *device, const pen_embed_op *op) {
    (void)device, (void)op;
}
static void norm(pen_device *device, const pen_norm_op *op) {
    (void)device, (void)op;
}
static void qkv(pen_device *device, const pen_qkv_op *op) {
    (void)device, (void)op;
}
static void rope_kv(pen_device *device, const pen_rope_kv_op *op) {
    (void)device, (void)op;
}
static void kv_copy(pen_device *device, pen_kv *kv, int from, int to) {
    (void)device, (void)kv, (void)from, (void)to;
}
static void attention(pen_device *device, const pen_attention_op *op) {
    (void)device, (void)op;
}
static void project(pen_device *device, const pen_project_op *op) {
    (void)device, (void)op;
}
static void gate_up(pen_device *device, const pen_gate_up_op *op) {
    (void)device, (void)op;
}
static void logits(pen_device *device, const pen_logits_op *op) {
    (void)device, (void)op;
}

/* The finaliser of SplitMix64. */
static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

int32_t pen_sim_token(uint64_t seed, int choice, int position, int vocab) {
    uint64_t key = mix(seed + 0x9E3779B97F4A7C15u) + (uint64_t)choice;
    return (int32_t)(mix(mix(key) + (uint64_t)position) % (uint64_t)vocab);
}

/* Every token is as likely as any other. */
static void pick(pen_device *base, const pen_buffer *from, int vocab, const pen_pick *picks, pen_buffer *choices) {
    (void)from;
    pen_choice *choice = ((sim_buffer *)choices)->data;
    float logprob = -logf((float)vocab);
    for (int l = 0; l < sim_const(base)->load.logit_rows; l++, choice++) {
        int32_t token = pen_sim_token(picks[l].seed, picks[l].choice, picks[l].position, vocab);
        *choice =
            (pen_choice){.token = picks[l].target >= 0 ? picks[l].target : token, .logprob = logprob, .argmax = token};
        for (int i = 0; i < picks[l].top_logprobs; i++) {
            choice->top_ids[i] = (int32_t)(((int64_t)token + i) % vocab);
            choice->top_logprobs[i] = logprob;
        }
    }
}

/* ---- The device -------------------------------------------------------------------------------------------------- */

static const char *name(const pen_device *device) {
    return sim_const(device)->name;
}

static size_t bytes_used(const pen_device *device) {
    return sim_const(device)->bytes_used;
}

static void set_poke(pen_device *device, pen_poke *poke, void *context) {
    sim(device)->poke = poke;
    sim(device)->poke_context = context;
}

static void destroy(pen_device *base) {
    sim_device *device = sim(base);
    assert(device->bytes_used == 0);
    free(device->rows);
    free(device);
}

static const pen_device_class sim_class = {
    .scratch_bytes = scratch_bytes,
    .reserve = reserve,
    .name = name,
    .bytes_used = bytes_used,
    .destroy = destroy,
    .set_poke = set_poke,
    .buffer_create = buffer_create,
    .buffer_destroy = buffer_destroy,
    .buffer_host = buffer_host,
    .buffer_write = buffer_write,
    .buffer_read = buffer_read,
    .activation_bytes = activation_bytes,
    .fine_bytes = activation_bytes,
    .weight_bytes = weight_bytes,
    .weight_create = weight_create,
    .weight_destroy = weight_destroy,
    .weight_write = weight_write,
    .kv_bytes = kv_bytes,
    .kv_create = kv_create,
    .kv_destroy = kv_destroy,
    .rope_bytes = rope_bytes,
    .rope_create = rope_create,
    .rope_destroy = rope_destroy,
    .event_create = event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .event_done = event_done,
    .event_due_ns = event_due_ns,
    .sync = sync,
    .unit_begin = unit_begin,
    .unit_end = unit_end,
    .unit_reset = unit_reset,
    .unit_ms = unit_ms,
    .set_batch = set_batch,
    .embed = embed,
    .norm = norm,
    .qkv = qkv,
    .rope_kv = rope_kv,
    .kv_copy = kv_copy,
    .attention = attention,
    .out_project = project,
    .gate_up = gate_up,
    .down = project,
    .logits = logits,
    .pick = pick,
};

pen_status pen_sim_device_create(const pen_sim_options *options, pen_device **device) {
    assert(options->time_scale > 0 && options->unit_ms);
    sim_device *made = calloc(1, sizeof *made);
    if (!made) return no_memory("a simulated device");
    made->base = (pen_device){.class = &sim_class, .activations = PEN_ACTIVATIONS_FAST, .kv_type = PEN_TYPE_F16};
    made->options = *options;
    snprintf(made->name, sizeof made->name, "%s", options->name);
    made->created_ns = made->end_ns = pen_clock_ns();
    made->unit = -1;
    *device = &made->base;
    return PEN_OK;
}
