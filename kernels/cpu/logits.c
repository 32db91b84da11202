/*
 * The LM head: final norm and logits of the rows that want them, or of a greedy batch the largest logit alone.
 *
 * The head multiplies fine activation rows, which are two int8 multiplications for one. A greedy row is multiplied in
 * its coarse form first; the fine one then has to meet only those groups of 16 weights that could hold the largest
 * logit. Let the fine row stand for x and the coarse one for c. The logits w·x and w·c differ by at most |w|·|x − c|.
 * So one fine logit is known, of the group that looks best, and what stays below it even with that much added is not
 * the largest. What does not is computed as ever: the token is that of the fine logits, among equals too. Mostly that
 * is a handful of groups in thousands. Where minima cancel codes, rounding has no such bound: those types take the long
 * way, and so do numbers, which multiply fine rows as fast.
 */
#include "linear.h"
#include "ops.h"
#include "pack.h"

#include <assert.h>
#include <float.h>
#include <math.h>

enum { ROWS = PEN_PACK_ROWS, BLOCK = PEN_QUANT_BLOCK };

/* For the rounding of lengths to floats; and the roundings of a sum of so many blocks, relative to its terms. */
static const double more = 1.01;
static double roundings(int blocks) {
    return 2 * (blocks + 8) * 0x1p-24;
}

typedef struct logits_job {
    const pen_cpu_device *device;
    const pen_logits_op *op;
    unsigned char *fine, *coarse; /* activation rows [L]; coarse ones, else NULL, where they are multiplied first */
    pen_cpu_best *best;           /* [L] */
    unsigned char *buffers;       /* f32 [H] for each thread */
    float *peaks;                 /* [L][groups of 16 logits] */
    int groups;
} logits_job;

static size_t row_bytes(const pen_cpu_device *device, bool fine, int cols) {
    return pen_activation_row_bytes(pen_row_form_of(device->base.activations, fine), cols);
}

size_t pen_cpu_logits_scratch(const pen_cpu_device *device, const pen_limits *limits) {
    size_t row = row_bytes(device, true, limits->hidden) + row_bytes(device, false, limits->hidden);
    return (size_t)limits->logit_rows * (row + sizeof(pen_cpu_best)) +
           (size_t)pen_pool_threads(device->pool) * pen_activation_row_bytes(PEN_ROW_F32, limits->hidden);
}

static void norm_task(void *context, int task, int thread) {
    const logits_job *job = context;
    int cols = job->op->norm.cols;
    float *normed = (void *)(job->buffers + pen_activation_row_bytes(PEN_ROW_F32, cols) * (size_t)thread);
    pen_cpu_norm_row(job->device, &job->op->norm, job->device->batch.logit_rows[task], normed);
    pen_row_form form = pen_row_form_of(job->device->base.activations, true);
    pen_cpu_activation_store(job->device, form, normed, cols,
                             job->fine + row_bytes(job->device, true, cols) * (size_t)task);
    if (!job->coarse) return;
    form = pen_row_form_of(job->device->base.activations, false);
    pen_cpu_activation_store(job->device, form, normed, cols,
                             job->coarse + row_bytes(job->device, false, cols) * (size_t)task);
}

static void multiply(const logits_job *job, const unsigned char *rows, bool fine, bool peaks) {
    const pen_cpu_device *device = job->device;
    pen_matmul m = {
        .device = device,
        .cols = job->op->norm.cols,
        .tokens = device->batch.logit_count,
        .products = {{.weight = (const pen_cpu_weight *)job->op->w,
                      .x = rows,
                      .form = pen_row_form_of(device->base.activations, fine),
                      .out = job->peaks}},
        .count = 1,
        .out_stride = (size_t)(peaks ? job->groups : job->op->w->rows),
        .softcap = job->op->softcap,
        .peaks = peaks,
    };
    pen_cpu_matmul(&m);
}

/* ---- Greedy rows ----------------------------------------------------------------------------------------------- */

static const unsigned char *group_of(const logits_job *job, int group) {
    const pen_weight *w = job->op->w;
    return ((const pen_cpu_weight *)w)->data + (size_t)group * pen_pack_group_bytes(w->type, w->cols);
}

enum { TASK_GROUPS = 64 };

/* The longest row of each group, infinite where one is not finite. */
static void measure_task(void *context, int task, int thread) {
    (void)thread;
    const logits_job *job = context;
    const pen_weight *w = job->op->w;
    for (int g = task * TASK_GROUPS; g < (task + 1) * TASK_GROUPS && g < job->groups; g++) {
        float squares[ROWS], most = 0;
        job->device->linear->squares[w->type](group_of(job, g), w->cols / BLOCK, squares);
        for (int n = 0; n < ROWS; n++) most = squares[n] <= FLT_MAX ? fmaxf(most, squares[n]) : INFINITY;
        pen_cpu_lengths((const pen_cpu_weight *)w)[g] = sqrtf(most);
    }
}

/* |x − c| of a row, and with it all that the roundings of logits may come to for a weight of length 1. The scales of a
 * block's two forms are a power of two apart. */
static float distance(const logits_job *job, int row) {
    int cols = job->op->norm.cols, blocks = cols / BLOCK;
    const pen_fine_block *fine = (const void *)(job->fine + row_bytes(job->device, true, cols) * (size_t)row);
    const pen_activation_block *coarse =
        (const void *)(job->coarse + row_bytes(job->device, false, cols) * (size_t)row);
    double apart = 0, length = 0; /* squares of |x − c| and of what |x| is at most */
    for (int b = 0; b < blocks; b++) {
        int squares = 0;
        for (int k = 0; k < BLOCK; k++) {
            int by = (fine[b].parts[0][k] - coarse[b].q[k]) * (1 << PEN_FINE_SHIFT) + fine[b].parts[1][k];
            squares += by * by;
        }
        double scale = (double)fine[b].factors.scale, most = scale * PEN_FINE_MOST;
        apart += scale * scale * squares;
        length += BLOCK * most * most;
    }
    return (float)(more * (sqrt(apart) + roundings(blocks) * sqrt(length)));
}

/* The largest logits so far. */
typedef struct search {
    float largest;
    pen_cpu_best best;
} search;

static void look_into(const logits_job *job, int row, int group, search *s) {
    const pen_weight *w = job->op->w;
    const unsigned char *x = job->fine + row_bytes(job->device, true, w->cols) * (size_t)row;
    _Alignas(64) float y[ROWS];
    job->device->linear->dot[PEN_ROW_FINE][w->type](group_of(job, group), w->cols / BLOCK, x, 0, 1, y);
    for (int n = 0; n < ROWS && group * ROWS + n < w->rows; n++) {
        s->best.bad |= !(y[n] < INFINITY);
        if (!(y[n] > s->largest)) continue;
        s->largest = y[n];
        s->best.token = group * ROWS + n;
    }
}

static void find_task(void *context, int row, int thread) {
    (void)thread;
    const logits_job *job = context;
    const float *peaks = job->peaks + (size_t)row * (size_t)job->groups;
    const float *lengths = pen_cpu_lengths((const pen_cpu_weight *)job->op->w);
    pen_logit_slice all = job->device->ops->slice(peaks, job->groups, false);
    job->best[row] = (pen_cpu_best){.bad = true};
    if (all.bad || all.max == -INFINITY) return;
    int first = 0;
    while (peaks[first] != all.max) first++;
    search any = {.largest = -INFINITY}, s = any;
    look_into(job, row, first, &any);
    float apart = distance(job, row);
    for (int g = 0; g < job->groups; g++)
        if (!(peaks[g] + lengths[g] * apart < any.largest)) look_into(job, row, g, &s);
    job->best[row] = s.best;
}

static bool has_short_way(const logits_job *job) {
    const pen_cpu_device *device = job->device;
    const pen_quant *quant = &pen_type_get(job->op->w->type)->quant;
    return device->batch.greedy && device->linear && device->base.activations == PEN_ACTIVATIONS_FAST &&
           quant->bits > 0 && quant->m < 0 && job->op->softcap == 0;
}

void pen_cpu_logits(pen_device *base, const pen_logits_op *op) {
    pen_cpu_device *device = (pen_cpu_device *)base;
    int count = device->batch.logit_count, cols = op->norm.cols;
    device->best = NULL;
    if (count == 0) return;
    logits_job job = {.device = device, .op = op};
    job.fine = device->linear_scratch;
    job.coarse = job.fine + row_bytes(device, true, cols) * (size_t)count;
    job.buffers = job.coarse + row_bytes(device, false, cols) * (size_t)count;
    job.best =
        (void *)(job.buffers + pen_activation_row_bytes(PEN_ROW_F32, cols) * (size_t)pen_pool_threads(device->pool));
    job.peaks = pen_cpu_data(op->logits);
    job.groups = (op->w->rows + ROWS - 1) / ROWS;
    bool greedy = has_short_way(&job);
    if (!greedy) job.coarse = NULL;
    pen_pool_run(device->pool, norm_task, &job, count);
    multiply(&job, greedy ? job.coarse : job.fine, !greedy, greedy);
    if (!greedy) return;
    pen_cpu_weight *weight = (pen_cpu_weight *)op->w;
    if (!weight->has_lengths)
        pen_pool_run(device->pool, measure_task, &job, (job.groups + TASK_GROUPS - 1) / TASK_GROUPS);
    weight->has_lengths = true;
    pen_pool_run(device->pool, find_task, &job, count);
    device->best = job.best;
}
