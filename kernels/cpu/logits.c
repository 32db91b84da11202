/*
 * The LM head: final norm and logits of the rows that want them, or of a greedy batch the largest logit alone.
 *
 * The head multiplies fine activation rows, which are two int8 multiplications for one. A greedy row is multiplied in
 * its coarse form first; the fine one then has to meet only those groups of 16 weights that could hold the largest
 * logit. Let the fine row stand for x and the coarse one for c. A logit w·x differs from w·c by at most |w|·|x − c|,
 * and |w| by nothing more than the longest row of the weight. So what lies farther below the best than twice that is
 * smaller than another, and what does not is computed as ever: the token is that of the fine logits, among equals too.
 * Mostly that is one group or two. Where minima cancel codes, rounding has no such bound: those types take the long
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

static float *thread_buffer(const logits_job *job, int thread) {
    return (void *)(job->buffers + pen_activation_row_bytes(PEN_ROW_F32, job->op->norm.cols) * (size_t)thread);
}

static void norm_task(void *context, int task, int thread) {
    const logits_job *job = context;
    int cols = job->op->norm.cols;
    float *normed = thread_buffer(job, thread);
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
        .x = rows,
        .form = pen_row_form_of(device->base.activations, fine),
        .cols = job->op->norm.cols,
        .tokens = device->batch.logit_count,
        .products = {{(const pen_cpu_weight *)job->op->w, NULL, job->peaks}},
        .count = 1,
        .out_stride = (size_t)(peaks ? job->groups : job->op->w->rows),
        .softcap = job->op->softcap,
        .peaks = peaks,
    };
    pen_cpu_matmul(&m);
}

/* ---- Greedy rows ----------------------------------------------------------------------------------------------- */

enum { TASK_GROUPS = 64 };

static const unsigned char *group_of(const logits_job *job, int group) {
    const pen_weight *w = job->op->w;
    return ((const pen_cpu_weight *)w)->data + (size_t)group * pen_pack_group_bytes(w->type, w->cols);
}

static void square_task(void *context, int task, int thread) {
    const logits_job *job = context;
    const pen_weight *w = job->op->w;
    float *most = thread_buffer(job, thread);
    for (int g = task * TASK_GROUPS; g < (task + 1) * TASK_GROUPS && g < job->groups; g++) {
        float squares[ROWS];
        job->device->linear->squares[w->type](group_of(job, g), w->cols / BLOCK, squares);
        for (int n = 0; n < ROWS; n++) *most = squares[n] <= FLT_MAX ? fmaxf(*most, squares[n]) : INFINITY;
    }
}

/* The length of the weight's longest row, which is found once; infinite where one has no length. */
static float longest_row(const logits_job *job) {
    pen_cpu_weight *weight = (pen_cpu_weight *)job->op->w;
    if (weight->longest_row >= 0) return weight->longest_row;
    int threads = pen_pool_threads(job->device->pool);
    for (int t = 0; t < threads; t++) *thread_buffer(job, t) = 0;
    pen_pool_run(job->device->pool, square_task, (void *)job, (job->groups + TASK_GROUPS - 1) / TASK_GROUPS);
    float most = 0;
    for (int t = 0; t < threads; t++) most = fmaxf(most, *thread_buffer(job, t));
    return weight->longest_row = sqrtf(most);
}

/* By how much a row's logits may differ, multiplied in the coarse form and in the fine one. The scales of a block's two
 * forms are a power of two apart. */
static float most_difference(const logits_job *job, int row) {
    int cols = job->op->norm.cols, blocks = cols / BLOCK;
    const pen_fine_block *fine = (const void *)(job->fine + row_bytes(job->device, true, cols) * (size_t)row);
    const pen_activation_block *coarse =
        (const void *)(job->coarse + row_bytes(job->device, false, cols) * (size_t)row);
    double apart = 0, length = 0; /* squares of |x − c| and of what |x| is at most */
    for (int b = 0; b < blocks; b++) {
        int squares = 0;
        for (int k = 0; k < BLOCK; k++) {
            int apart_by = ((fine[b].parts[0][k] - coarse[b].q[k]) << PEN_FINE_SHIFT) + fine[b].parts[1][k];
            squares += apart_by * apart_by;
        }
        double scale = (double)fine[b].factors.scale, most = scale * PEN_FINE_MOST;
        apart += scale * scale * squares;
        length += BLOCK * most * most;
    }
    double longest = more * (double)((const pen_cpu_weight *)job->op->w)->longest_row;
    return (float)(more * longest * (sqrt(apart) + roundings(blocks) * sqrt(length)));
}

static void find_task(void *context, int row, int thread) {
    (void)thread;
    const logits_job *job = context;
    const pen_weight *w = job->op->w;
    const unsigned char *x = job->fine + row_bytes(job->device, true, w->cols) * (size_t)row;
    const float *peaks = job->peaks + (size_t)row * (size_t)job->groups;
    pen_logit_slice all = job->device->ops->slice(peaks, job->groups, false);
    pen_cpu_best *best = &job->best[row];
    *best = (pen_cpu_best){.bad = all.bad || all.max == -INFINITY};
    if (best->bad) return;
    float least = all.max - 2 * most_difference(job, row), largest = -INFINITY;
    for (int g = 0; g < job->groups; g++) {
        if (peaks[g] < least) continue;
        _Alignas(64) float y[ROWS];
        job->device->linear->dot[PEN_ROW_FINE][w->type](group_of(job, g), w->cols / BLOCK, x, 0, 1, y);
        for (int n = 0; n < ROWS && g * ROWS + n < w->rows; n++) {
            best->bad = best->bad || !(y[n] < INFINITY);
            if (!(y[n] > largest)) continue;
            largest = y[n];
            best->token = g * ROWS + n;
        }
    }
}

static bool has_short_way(const logits_job *job) {
    const pen_cpu_device *device = job->device;
    const pen_quant *quant = &pen_type_get(job->op->w->type)->quant;
    return device->batch.greedy && device->linear && device->base.activations == PEN_ACTIVATIONS_FAST &&
           quant->bits > 0 && quant->m < 0 && job->op->softcap == 0 && longest_row(job) <= FLT_MAX;
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
    pen_pool_run(device->pool, find_task, &job, count);
    device->best = job.best;
}
