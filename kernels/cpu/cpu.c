/*
 * The CPU device: its memory, its choice of instruction set, and the table that says which file does what.
 *
 * Everything runs before the call returns, so events and reads are trivial. The device owns the pool and the scratch;
 * objects own their memory and account for it in bytes_used.
 */
#include "clock.h"
#include "cpu_device.h"
#include "rope_table.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#if defined(PEN_CPU_X86)
#include <cpuid.h>
#endif

static pen_cpu_device *cpu(pen_device *device) {
    return (pen_cpu_device *)device;
}
static const pen_cpu_device *cpu_const(const pen_device *device) {
    return (const pen_cpu_device *)device;
}

/* ---- Memory ---------------------------------------------------------------------------------------------------- */

enum { CACHE_LINE = 64, HUGE_PAGE = 2 << 20 };

static size_t round_up(size_t bytes, size_t to) {
    return (bytes + to - 1) / to * to;
}

/* Aligned memory with undefined contents; on huge pages where it is large, for fewer TLB misses on KV. */
static pen_status allocate(pen_cpu_device *device, size_t bytes, void **memory) {
    bool large = bytes >= 2 * (size_t)HUGE_PAGE;
    size_t alignment = large ? HUGE_PAGE : CACHE_LINE;
    *memory = bytes <= SIZE_MAX / 2 ? aligned_alloc(alignment, round_up(bytes ? bytes : 1, alignment)) : NULL;
    if (!*memory) return pen_fail(PEN_NO_MEMORY, "cannot allocate %zu bytes on the CPU", bytes);
    if (large) madvise(*memory, round_up(bytes, alignment), MADV_HUGEPAGE); /* only advice: may fail */
    device->bytes_used += bytes;
    return PEN_OK;
}

static void release(pen_cpu_device *device, void *memory, size_t bytes) {
    if (!memory) return;
    free(memory);
    device->bytes_used -= bytes;
}

static pen_status no_memory(const char *what) {
    return pen_fail(PEN_NO_MEMORY, "no memory for %s", what);
}

/* ---- Scratch --------------------------------------------------------------------------------------------------- */

/* Pieces of the one allocation that reserve makes, as byte offsets. */
typedef struct scratch_plan {
    size_t runs, tokens, row_run, logit_rows, tables, linear, ops, total;
} scratch_plan;

static size_t place(scratch_plan *plan, size_t count, size_t size) {
    size_t offset = plan->total;
    plan->total = round_up(offset + count * size, CACHE_LINE);
    return offset;
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static scratch_plan plan_scratch(const pen_cpu_device *device, const pen_limits *limits) {
    size_t rows = (size_t)limits->rows, blocks = (size_t)limits->context / PEN_KV_BLOCK + 1;
    scratch_plan plan = {0};
    plan.runs = place(&plan, rows, sizeof(pen_run));
    plan.tokens = place(&plan, rows, sizeof(int32_t));
    plan.row_run = place(&plan, rows, sizeof(int32_t));
    plan.logit_rows = place(&plan, (size_t)limits->logit_rows, sizeof(int32_t));
    plan.tables = place(&plan, rows * blocks * PEN_KV_GROUPS, sizeof(int32_t));
    plan.linear = place(&plan, pen_cpu_logits_scratch(device, limits), 1);
    size_t ops = larger(pen_cpu_ops_scratch(device, limits), pen_cpu_attention_scratch(device, limits));
    plan.ops = place(&plan, larger(ops, pen_cpu_pick_scratch(device, limits)), 1);
    return plan;
}

static size_t scratch_bytes(const pen_device *device, const pen_limits *limits) {
    return plan_scratch(cpu_const(device), limits).total;
}

static pen_status reserve(pen_device *base, const pen_limits *limits) {
    pen_cpu_device *device = cpu(base);
    release(device, device->scratch, device->scratch_bytes);
    device->scratch = NULL;
    device->batch = (pen_batch){0};
    scratch_plan plan = plan_scratch(device, limits);
    void *memory;
    PEN_TRY(allocate(device, plan.total, &memory));
    unsigned char *at = device->scratch = memory;
    device->scratch_bytes = plan.total;
    device->limits = *limits;
    device->runs = (pen_run *)(at + plan.runs);
    device->tokens = (int32_t *)(at + plan.tokens);
    device->row_run = (int32_t *)(at + plan.row_run);
    device->logit_rows = (int32_t *)(at + plan.logit_rows);
    device->tables = (int32_t *)(at + plan.tables);
    device->linear_scratch = at + plan.linear;
    device->op_scratch = at + plan.ops;
    return PEN_OK;
}

/* ---- Objects --------------------------------------------------------------------------------------------------- */

static pen_status buffer_create(pen_device *device, size_t bytes, pen_buffer **buffer) {
    pen_cpu_buffer *made = calloc(1, sizeof *made);
    if (!made) return no_memory("a buffer");
    made->base = (pen_buffer){.device = device, .bytes = bytes};
    pen_status status = allocate(cpu(device), bytes, &made->data);
    if (status != PEN_OK) {
        free(made);
        return status;
    }
    *buffer = &made->base;
    return PEN_OK;
}

static void buffer_destroy(pen_buffer *buffer) {
    release(cpu(buffer->device), pen_cpu_data(buffer), buffer->bytes);
    free(buffer);
}

static void *buffer_host(pen_buffer *buffer) {
    return pen_cpu_data(buffer);
}

static void buffer_write(pen_buffer *buffer, size_t offset, const void *source, size_t bytes) {
    memcpy((unsigned char *)pen_cpu_data(buffer) + offset, source, bytes);
}

static void buffer_read(pen_buffer *buffer, size_t offset, void *target, size_t bytes) {
    memcpy(target, (unsigned char *)pen_cpu_data(buffer) + offset, bytes);
}

static size_t activation_bytes(const pen_device *device, int rows, int cols) {
    return (size_t)rows * pen_activation_row_bytes(pen_row_form_of(device->activations, false), cols);
}

static size_t fine_bytes(const pen_device *device, int rows, int cols) {
    pen_row_form fine = pen_row_form_of(device->activations, true), score = pen_cpu_score_form(device);
    size_t row = pen_activation_row_bytes(fine, cols);
    return (size_t)rows * (score == fine ? row : row + pen_activation_row_bytes(score, cols));
}

static pen_status weight_create(pen_device *device, pen_type type, int rows, int cols, pen_weight **weight) {
    const pen_type_info *info = pen_type_get(type);
    int multiple = info->block_values > PEN_QUANT_BLOCK ? info->block_values : PEN_QUANT_BLOCK;
    if (cols % multiple)
        return pen_fail(PEN_UNSUPPORTED, "a %s weight of %d columns: the CPU needs a multiple of %d", info->name, cols,
                        multiple);
    pen_cpu_weight *made = calloc(1, sizeof *made);
    if (!made) return no_memory("a weight");
    made->base = (pen_weight){.device = device, .type = type, .rows = rows, .cols = cols};
    made->bytes = pen_cpu_weight_bytes(device, type, rows, cols);
    made->data = pen_arena_take(&cpu(device)->weights, made->bytes);
    if (!made->data) {
        size_t bytes = made->bytes;
        free(made);
        return pen_fail(PEN_NO_MEMORY, "cannot allocate %zu bytes for a weight on the CPU", bytes);
    }
    cpu(device)->bytes_used += made->bytes;
    *weight = &made->base;
    return PEN_OK;
}

static void weight_destroy(pen_weight *base) {
    pen_cpu_weight *weight = (pen_cpu_weight *)base;
    pen_arena_give(&cpu(base->device)->weights, weight->data);
    cpu(base->device)->bytes_used -= weight->bytes;
    free(weight);
}

enum { KV_SLACK = CACHE_LINE }; /* vectors may read past the last row */

/* Of one head and block, K or V. */
static size_t kv_page(const pen_device *device, int head_size) {
    return PEN_KV_BLOCK * pen_type_row_bytes(device->kv_type, head_size);
}

static size_t kv_bytes(const pen_device *device, int kv_heads, int head_size, int blocks) {
    return 2 * kv_page(device, head_size) * (size_t)kv_heads * (size_t)blocks + KV_SLACK;
}

static pen_status kv_create(pen_device *device, int kv_heads, int head_size, int blocks, pen_kv **kv) {
    PEN_TRY(pen_kv_check(device->kv_type, head_size));
    pen_cpu_kv *made = calloc(1, sizeof *made);
    if (!made) return no_memory("a KV cache");
    *made = (pen_cpu_kv){.base.device = device,
                         .kv_heads = kv_heads,
                         .head_size = head_size,
                         .blocks = blocks,
                         .type = device->kv_type,
                         .page = kv_page(device, head_size)};
    void *data;
    pen_status status = allocate(cpu(device), kv_bytes(device, kv_heads, head_size, blocks), &data);
    if (status != PEN_OK) {
        free(made);
        return status;
    }
    made->k = data;
    made->v = made->k + pen_cpu_kv_page(made, 0, kv_heads);
    *kv = &made->base;
    return PEN_OK;
}

static void kv_destroy(pen_kv *base) {
    pen_cpu_kv *kv = (pen_cpu_kv *)base;
    release(cpu(base->device), kv->k, kv_bytes(base->device, kv->kv_heads, kv->head_size, kv->blocks));
    free(kv);
}

static size_t rope_bytes(const pen_device *device, const pen_rope_options *options) {
    (void)device;
    return pen_rope_table_bytes(options);
}

static pen_status rope_create(pen_device *device, const pen_rope_options *options, pen_rope **rope) {
    pen_cpu_rope *made = calloc(1, sizeof *made);
    if (!made) return no_memory("a rotation table");
    *made = (pen_cpu_rope){.base.device = device,
                           .dims = options->dims,
                           .positions = options->positions,
                           .interleaved = options->interleaved,
                           .bytes = pen_rope_table_bytes(options)};
    void *table;
    pen_status status = allocate(cpu(device), made->bytes, &table);
    if (status != PEN_OK) {
        free(made);
        return status;
    }
    made->table = table;
    pen_rope_table_fill(options, made->table);
    *rope = &made->base;
    return PEN_OK;
}

static void rope_destroy(pen_rope *base) {
    pen_cpu_rope *rope = (pen_cpu_rope *)base;
    release(cpu(base->device), rope->table, rope->bytes);
    free(rope);
}

static void kv_copy(pen_device *device, pen_kv *base, int from, int to) {
    (void)device;
    const pen_cpu_kv *kv = (const pen_cpu_kv *)base;
    assert(from >= 0 && from < kv->blocks && to >= 0 && to < kv->blocks && from != to);
    for (int h = 0; h < kv->kv_heads; h++) {
        size_t source = pen_cpu_kv_page(kv, (size_t)from, h), target = pen_cpu_kv_page(kv, (size_t)to, h);
        memcpy(kv->k + target, kv->k + source, kv->page);
        memcpy(kv->v + target, kv->v + source, kv->page);
    }
}

/* ---- Events and markers: everything enqueued is already done --------------------------------------------------- */

static pen_status event_create(pen_device *device, pen_event **event) {
    pen_event *made = calloc(1, sizeof *made);
    if (!made) return no_memory("an event");
    made->device = device;
    *event = made;
    return PEN_OK;
}

static void event_destroy(pen_event *event) {
    free(event);
}

static void event_record(pen_event *event) {
    (void)event;
}

static bool event_done(const pen_event *event) {
    (void)event;
    return true;
}

static pen_status sync(pen_device *device) {
    (void)device;
    return PEN_OK;
}

/* A thread that computes alone is timed by its own clock: on a core that others use, too, the wall clock tells of them.
 * Several threads wait for each other, which only the wall clock sees. */
static int64_t unit_clock_ns(const pen_cpu_device *device) {
    return pen_pool_threads(device->pool) == 1 ? pen_clock_thread_cpu_ns() : pen_clock_ns();
}

static void unit_begin(pen_device *base, int unit) {
    pen_cpu_device *device = cpu(base);
    assert(device->unit < 0);
    device->unit = unit;
    device->unit_begin_ns = unit_clock_ns(device);
}

static void unit_end(pen_device *base) {
    pen_cpu_device *device = cpu(base);
    assert(device->unit >= 0);
    device->unit_ms[device->unit] += (double)(unit_clock_ns(device) - device->unit_begin_ns) / 1e6;
    device->unit = -1;
}

static void unit_reset(pen_device *device) {
    memset(cpu(device)->unit_ms, 0, sizeof cpu(device)->unit_ms);
}

static double unit_ms(pen_device *device, int unit) {
    return cpu(device)->unit_ms[unit];
}

/* ---- The batch ------------------------------------------------------------------------------------------------- */

static void set_batch(pen_device *base, const pen_batch *batch) {
    pen_cpu_device *device = cpu(base);
    assert(device->scratch && batch->rows <= device->limits.rows && batch->logit_count <= device->limits.logit_rows);
    device->batch = *batch;
    device->best = NULL;
    int32_t *table = device->tables;
    for (int r = 0; r < batch->run_count; r++) {
        pen_run *run = &device->runs[r];
        *run = batch->runs[r];
        assert(run->position + run->rows <= device->limits.context);
        size_t blocks = (size_t)((run->position + run->rows - 1) / PEN_KV_BLOCK + 1);
        for (int g = 0; g < PEN_KV_GROUPS; g++) {
            if (!run->tables[g]) continue;
            run->tables[g] = memcpy(table, run->tables[g], blocks * sizeof *table);
            table += blocks;
        }
        for (int row = run->row; row < run->row + run->rows; row++) device->row_run[row] = r;
    }
    device->batch.runs = device->runs;
    if (batch->tokens)
        device->batch.tokens = memcpy(device->tokens, batch->tokens, (size_t)batch->rows * sizeof *batch->tokens);
    if (batch->logit_count)
        device->batch.logit_rows =
            memcpy(device->logit_rows, batch->logit_rows, (size_t)batch->logit_count * sizeof *batch->logit_rows);
}

/* ---- The device ------------------------------------------------------------------------------------------------ */

static const char *name(const pen_device *device) {
    return cpu_const(device)->name;
}

static size_t bytes_used(const pen_device *device) {
    return cpu_const(device)->bytes_used;
}

static void set_poke(pen_device *device, pen_poke *poke, void *context) {
    pen_pool_set_poke(cpu(device)->pool, poke, context);
}

static void destroy(pen_device *base) {
    pen_cpu_device *device = cpu(base);
    pen_pool_destroy(device->pool);
    release(device, device->scratch, device->scratch_bytes);
    assert(device->bytes_used == 0);
    free(device);
}

static const pen_device_class cpu_class = {
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
    .fine_bytes = fine_bytes,
    .weight_bytes = pen_cpu_weight_bytes,
    .weight_create = weight_create,
    .weight_destroy = weight_destroy,
    .weight_write = pen_cpu_weight_write,
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
    .sync = sync,
    .unit_begin = unit_begin,
    .unit_end = unit_end,
    .unit_reset = unit_reset,
    .unit_ms = unit_ms,
    .set_batch = set_batch,
    .embed = pen_cpu_embed,
    .norm = pen_cpu_norm,
    .qkv = pen_cpu_qkv,
    .rope_kv = pen_cpu_rope_kv,
    .kv_copy = kv_copy,
    .attention = pen_cpu_attention,
    .out_project = pen_cpu_out_project,
    .gate_up = pen_cpu_gate_up,
    .down = pen_cpu_down,
    .logits = pen_cpu_logits,
    .pick = pen_cpu_pick,
};

/* ---- Instruction sets ------------------------------------------------------------------------------------------ */

static const struct {
    const char *name, *long_name;
} isas[] = {
    [PEN_CPU_AUTO] = {"auto", ""},
    [PEN_CPU_REFERENCE] = {"reference", "reference"},
    [PEN_CPU_PORTABLE] = {"portable", "portable"},
    [PEN_CPU_AVX2] = {"avx2", "avx2"},
    [PEN_CPU_AVXVNNI] = {"avxvnni", "avxvnni"},
    [PEN_CPU_AVX512] = {"avx512", "avx512vnni"},
};
enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

#if defined(PEN_CPU_X86)
/* clang's check by name knows all but these two. */
static bool has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
static bool has_avxvnni(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & bit_AVXVNNI);
}
#endif

/* The compiler's checks include that the operating system saves the registers. */
static bool isa_present(pen_cpu_isa isa) {
#if defined(PEN_CPU_X86)
    if (isa == PEN_CPU_AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    if (isa == PEN_CPU_AVXVNNI) return has_avxvnni() && isa_present(PEN_CPU_AVX2);
    if (isa == PEN_CPU_AVX512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vnni") && isa_present(PEN_CPU_AVX2);
#endif
    return isa == PEN_CPU_REFERENCE || isa == PEN_CPU_PORTABLE;
}

const char *pen_cpu_isa_names(void) {
    static char names[64];
    size_t length = 0;
    for (int i = PEN_CPU_REFERENCE; i < ISA_COUNT; i++)
        if (isa_present((pen_cpu_isa)i))
            length += (size_t)snprintf(names + length, sizeof names - length, "%s%s", length ? " " : "", isas[i].name);
    return names;
}

pen_status pen_cpu_isa_parse(const char *text, pen_cpu_isa *isa) {
    for (int i = 0; i < ISA_COUNT; i++)
        if (strcasecmp(text, isas[i].name) == 0) return *isa = (pen_cpu_isa)i, PEN_OK;
    return pen_fail(PEN_USAGE, "unknown instruction set '%s'; this machine has auto %s", text, pen_cpu_isa_names());
}

pen_status pen_cpu_device_create(const pen_cpu_options *options, pen_device **device) {
    pen_cpu_isa isa = options->isa;
    if (isa == PEN_CPU_AUTO)
        for (isa = PEN_CPU_AVX512; !isa_present(isa); isa--) {
        }
    if (!isa_present(isa))
        return pen_fail(PEN_UNSUPPORTED, "this machine lacks the instruction set %s; it has %s", isas[isa].name,
                        pen_cpu_isa_names());
    pen_cpu_device *made = calloc(1, sizeof *made);
    if (!made) return no_memory("a CPU device");
    made->base = (pen_device){.class = &cpu_class,
                              .activations = options->activations,
                              .kv_type = options->activations == PEN_ACTIVATIONS_F32 ? PEN_TYPE_F32
                                         : options->kv_q8_0                          ? PEN_TYPE_Q8_0
                                                                                     : PEN_TYPE_F16};
    made->isa = isa;
    made->unit = -1;
    made->linear = pen_cpu_linear_kernels_get(isa);
    made->ops = pen_cpu_op_kernels_get(isa);
    snprintf(made->name, sizeof made->name, "cpu %s, %d thread%s", isas[isa].long_name, options->threads,
             options->threads == 1 ? "" : "s");
    pen_status status = pen_pool_create(options->threads, options->cpus, options->may_spin, &made->pool);
    if (status != PEN_OK) {
        free(made);
        return status;
    }
    *device = &made->base;
    return PEN_OK;
}
