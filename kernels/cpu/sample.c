/*
 * Picking tokens: from logits [L][V] to choices [L].
 *
 * First pass, over slices of rows: maxima and sums of exponentials, merged in double and in slice order, so a
 * log-probability depends on neither threads nor neighbours. Second pass, over rows: the choice itself. A row is never
 * sorted: what top-k and top-p keep is everything from some key up, and that key is found by quick-select.
 */
#include "draw.h"
#include "exact.h"
#include "ops.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SLICE = 1024, TASK_SLICES = 8 };

static int slice_count(int vocab) {
    return (vocab + SLICE - 1) / SLICE;
}

/* ---- Drawing --------------------------------------------------------------------------------------------------- */

/* Larger keys come first: by logit, then by lower id. */
static uint64_t key_of(float logit, int id) {
    uint32_t bits;
    logit += 0.0F; /* −0 equals 0 */
    memcpy(&bits, &logit, sizeof bits);
    bits = bits & 0x80000000 ? ~bits : bits | 0x80000000;
    return (uint64_t)bits << 32 | (uint32_t)~id;
}

static int id_of(uint64_t key) {
    return (int)~(uint32_t)key;
}

static void swap(uint64_t *a, uint64_t *b) {
    uint64_t kept = *a;
    *a = *b;
    *b = kept;
}

/* Puts the median of the first, middle and last key first. */
static uint64_t pivot(uint64_t *keys, int n) {
    uint64_t *a = keys, *b = keys + n / 2, *c = keys + n - 1;
    if (*a < *b) swap(a, b);
    if (*a < *c) swap(a, c);
    if (*b < *c) swap(b, c);
    swap(a, b);
    return *a;
}

/* The key at which, from the largest key down, the weights (1 each where NULL) first add up to `need`; the smallest
 * key where they never do. Reorders keys[n]. */
static uint64_t select_key(uint64_t *keys, int n, const float *weights, double need) {
    uint64_t smallest = keys[0];
    for (int i = 1; i < n; i++)
        if (keys[i] < smallest) smallest = keys[i];
    while (n > 0) {
        uint64_t middle = pivot(keys, n);
        int larger = 0; /* keys[1 … larger] are larger than the pivot */
        double mass = 0;
        for (int i = 1; i < n; i++)
            if (keys[i] > middle) {
                mass += weights ? (double)weights[id_of(keys[i])] : 1;
                swap(&keys[i], &keys[++larger]);
            }
        if (larger > 0 && need <= mass) { /* among the larger ones */
            keys++;
            n = larger;
            continue;
        }
        need -= mass + (weights ? (double)weights[id_of(middle)] : 1);
        if (need <= 0) return middle;
        keys += larger + 1;
        n -= larger + 1;
    }
    return smallest;
}

size_t pen_pick_row_scratch(int vocab) {
    size_t padded = ((size_t)vocab + 15) / 16 * 16;
    return padded * (sizeof(uint64_t) + 2 * sizeof(float));
}

/* A row's scratch: keys, weights and edited logits. */
typedef struct pick_scratch {
    uint64_t *keys;
    float *weights, *edited;
} pick_scratch;

static pick_scratch divide_scratch(void *scratch, int vocab) {
    size_t padded = ((size_t)vocab + 15) / 16 * 16;
    uint64_t *keys = scratch;
    float *weights = (float *)(keys + padded);
    return (pick_scratch){keys, weights, weights + padded};
}

static int draw(const pen_cpu_device *device, const float *logits, int vocab, float max, const pen_pick *pick,
                const pick_scratch *scratch) {
    uint64_t *keys = scratch->keys, floor = 0;
    float *weights = scratch->weights;
    device->ops->weights(logits, vocab, max, 1.0F / pick->temperature, weights); /* the largest is 1 */
    if (pick->top_k > 0 && pick->top_k < vocab) {
        for (int i = 0; i < vocab; i++) keys[i] = key_of(logits[i], i);
        floor = select_key(keys, vocab, NULL, pick->top_k);
    }
    if (pick->top_p < 1) {
        int n = 0;
        double mass = 0;
        for (int i = 0; i < vocab; i++) {
            uint64_t key = key_of(logits[i], i);
            if (key < floor) continue;
            keys[n++] = key;
            mass += (double)weights[i];
        }
        floor = select_key(keys, n, weights, (double)pick->top_p * mass);
    }
    double total = 0;
    for (int i = 0; i < vocab; i++) {
        if (weights[i] < pick->min_p || key_of(logits[i], i) < floor) weights[i] = 0;
        total += (double)weights[i];
    }
    double left = pen_pick_uniform(pick) * total;
    int chosen = 0;
    for (int i = 0; i < vocab; i++) {
        if (weights[i] == 0) continue;
        chosen = i; /* rounding may leave the last one to be the chosen */
        left -= (double)weights[i];
        if (left < 0) break;
    }
    return chosen;
}

/* ---- Rows ------------------------------------------------------------------------------------------------------ */

typedef struct pick_job {
    pen_cpu_device *device;
    const float *logits; /* [L][V] */
    int vocab;
    const pen_pick *picks;
    const pen_logit_edits *edits; /* [L] or NULL */
    pen_choice *choices;
    pen_logit_slice *slices; /* [L][slices of a row] */
    unsigned char *scratch;  /* one row's per thread */
} pick_job;

static bool wants_logprob(const pick_job *job, int row) {
    return job->picks[row].top_logprobs >= 0;
}

/* The best `count` logits by insertion: few get past the first comparison. */
static void find_top(const float *logits, int vocab, int count, double log_sum, pen_choice *choice) {
    int found = 0;
    for (int i = 0; count > 0 && i < vocab; i++) {
        if (found == count && !(logits[i] > choice->top_logprobs[count - 1])) continue;
        int at = found < count ? found++ : count - 1;
        for (; at > 0 && logits[i] > choice->top_logprobs[at - 1]; at--) {
            choice->top_ids[at] = choice->top_ids[at - 1];
            choice->top_logprobs[at] = choice->top_logprobs[at - 1];
        }
        choice->top_ids[at] = i;
        choice->top_logprobs[at] = logits[i];
    }
    for (int i = 0; i < found; i++) choice->top_logprobs[i] = (float)((double)choice->top_logprobs[i] - log_sum);
}

/* The row's logits with the changes made, and which is then the best; the lowest id among equals. */
static int edit_row(const float *logits, int vocab, const pen_logit_edits *edits, float *edited) {
    memcpy(edited, logits, (size_t)vocab * sizeof *edited);
    for (int i = 0; i < edits->count; i++) {
        const pen_logit_edit *edit = &edits->list[i];
        float x = logits[edit->token] + edit->add;
        x = (x > 0 ? x / edit->scale : x * edit->scale) - edit->less;
        edited[edit->token] = x < FLT_MAX ? x : FLT_MAX;
    }
    int best = 0;
    for (int i = 1; i < vocab; i++)
        if (edited[i] > edited[best]) best = i;
    return best;
}

/* The token of a row whose best logit is that of `best`. */
static int choose(const pick_job *job, int row, const float *logits, int best, void *row_scratch) {
    const pen_pick *pick = &job->picks[row];
    const pen_logit_edits *edits = job->edits && job->edits[row].count > 0 ? &job->edits[row] : NULL;
    if (pick->target >= 0) return pick->target;
    if (pick->temperature == 0 && !edits) return best;
    pick_scratch scratch = divide_scratch(row_scratch, job->vocab);
    if (edits) {
        best = edit_row(logits, job->vocab, edits, scratch.edited);
        logits = scratch.edited;
        if (pick->temperature == 0 || logits[best] == -INFINITY) return best;
    }
    return draw(job->device, logits, job->vocab, logits[best], pick, &scratch);
}

static void pick_row(const pick_job *job, int row, void *scratch) {
    const pen_pick *pick = &job->picks[row];
    pen_choice *choice = &job->choices[row];
    const float *logits = job->logits + (size_t)row * (size_t)job->vocab;
    int slices = slice_count(job->vocab), best = 0;
    const pen_logit_slice *slice = job->slices + (size_t)row * (size_t)slices;
    bool bad = false;
    for (int s = 0; s < slices; s++) {
        bad |= slice[s].bad;
        if (slice[s].max > slice[best].max) best = s;
    }
    float max = slice[best].max;
    *choice = (pen_choice){.bad_logits = bad || max == -INFINITY};
    if (choice->bad_logits) return;

    for (choice->argmax = best * SLICE; logits[choice->argmax] != max;) choice->argmax++;
    choice->token = choose(job, row, logits, choice->argmax, scratch);
    if (!wants_logprob(job, row)) return;
    double sum = 0;
    for (int s = 0; s < slices; s++)
        if (slice[s].sum > 0) sum += slice[s].sum * pen_exact_exp((double)slice[s].max - (double)max);
    double log_sum = (double)max + pen_exact_log(sum);
    choice->logprob = (float)((double)logits[choice->token] - log_sum);
    find_top(logits, job->vocab, pick->top_logprobs < job->vocab ? pick->top_logprobs : job->vocab, log_sum, choice);
}

static void row_task(void *context, int row, int thread) {
    const pick_job *job = context;
    pick_row(job, row, job->scratch + (size_t)thread * pen_pick_row_scratch(job->vocab));
}

static void slice_task(void *context, int task, int thread) {
    (void)thread;
    const pick_job *job = context;
    int slices = slice_count(job->vocab), tasks = (slices + TASK_SLICES - 1) / TASK_SLICES;
    int row = task / tasks, first = task % tasks * TASK_SLICES;
    const float *logits = job->logits + (size_t)row * (size_t)job->vocab;
    for (int s = first; s < first + TASK_SLICES && s < slices; s++) {
        int left = job->vocab - s * SLICE;
        job->slices[(size_t)row * (size_t)slices + (size_t)s] =
            job->device->ops->slice(logits + s * SLICE, left < SLICE ? left : SLICE, wants_logprob(job, row));
    }
}

/* Slices of the rows, then one row's scratch for each thread. */
static size_t slices_bytes(int rows, int vocab) {
    return ((size_t)rows * (size_t)slice_count(vocab) * sizeof(pen_logit_slice) + 63) / 64 * 64;
}

size_t pen_cpu_pick_scratch(const pen_cpu_device *device, const pen_limits *limits) {
    size_t rows = (size_t)pen_pool_threads(device->pool) * pen_pick_row_scratch(limits->vocab);
    return slices_bytes(limits->logit_rows, limits->vocab) + rows;
}

void pen_cpu_pick(pen_device *base, const pen_buffer *logits, int vocab, const pen_pick *picks, pen_buffer *choices) {
    pen_cpu_device *device = (pen_cpu_device *)base;
    int rows = device->batch.logit_count;
    for (int row = 0; device->best && row < rows; row++) {
        const pen_cpu_best *best = &device->best[row];
        ((pen_choice *)pen_cpu_data(choices))[row] =
            (pen_choice){.token = best->token, .argmax = best->token, .bad_logits = best->bad};
    }
    if (device->best) return;
    pick_job job = {.device = device,
                    .logits = pen_cpu_data(logits),
                    .vocab = vocab,
                    .picks = picks,
                    .edits = device->batch.edits,
                    .choices = pen_cpu_data(choices),
                    .slices = device->op_scratch,
                    .scratch = (unsigned char *)device->op_scratch + slices_bytes(rows, vocab)};
    if (device->isa == PEN_CPU_REFERENCE) {
        for (int row = 0; row < rows; row++)
            pen_reference_pick(job.logits + (size_t)row * (size_t)vocab, vocab, &picks[row],
                               job.edits ? &job.edits[row] : NULL, job.scratch, &job.choices[row]);
        return;
    }
    pen_pool_run(device->pool, slice_task, &job, rows * ((slice_count(vocab) + TASK_SLICES - 1) / TASK_SLICES));
    pen_pool_run(device->pool, row_task, &job, rows);
}
