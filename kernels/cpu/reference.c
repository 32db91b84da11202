/*
 * The oracle: norms, rotation, attention and picking as their definitions in kernels.h read, in plain C, with sums in
 * natural order and libm's functions. Slow, and only ever compared with a tolerance.
 */
#include "draw.h"
#include "ops.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void normalise(const float *x, const float *weight, const float *bias, int cols, float eps, bool mean,
                      float *out) {
    double center = 0, squares = 0;
    for (int i = 0; mean && i < cols; i++) center += (double)x[i] / cols;
    for (int i = 0; i < cols; i++) squares += ((double)x[i] - center) * ((double)x[i] - center);
    double scale = 1 / sqrt(squares / cols + (double)eps);
    for (int i = 0; i < cols; i++)
        out[i] = (float)(((double)x[i] - center) * scale * (double)weight[i] + (bias ? (double)bias[i] : 0));
}

void pen_reference_norm_row(const pen_norm_op *op, int row, float *out) {
    const float *x = (const float *)pen_cpu_data(op->x) + (size_t)row * (size_t)op->cols;
    normalise(x, pen_cpu_data(op->weight), op->bias ? pen_cpu_data(op->bias) : NULL, op->cols, op->eps, op->mean, out);
}

/* ---- Rotation and the KV cache --------------------------------------------------------------------------------- */

static void rotate(const pen_cpu_rope *rope, int position, float *head) {
    for (int i = 0; i < rope->dims / 2; i++) {
        const float *turn = rope->table + (size_t)position * (size_t)rope->dims + 2 * (size_t)i;
        int a = rope->interleaved ? 2 * i : i, b = rope->interleaved ? 2 * i + 1 : i + rope->dims / 2;
        float x = head[a], y = head[b];
        head[a] = x * turn[0] - y * turn[1];
        head[b] = x * turn[1] + y * turn[0];
    }
}

static void prepare_head(const pen_rope_kv_op *op, const pen_buffer *norm, int position, float *head) {
    if (norm) normalise(head, pen_cpu_data(norm), NULL, op->head_size, op->eps, false, head);
    if (op->rope) rotate((const pen_cpu_rope *)op->rope, position, head);
}

/* A head's page, and the indices of (position, d) within those of K and V; cpu_device.h has the layouts. */
static size_t page_of(const pen_cpu_kv *kv, const pen_run *run, int group, int position, int head) {
    return pen_cpu_kv_page(kv, (size_t)run->tables[group][position / PEN_KV_BLOCK], head);
}

static int k_index(const pen_cpu_kv *kv, int position, int d) {
    int slot = position % PEN_KV_BLOCK;
    return kv->type == PEN_TYPE_Q8_0 ? d / 4 * 4 * PEN_KV_BLOCK + 4 * slot + d % 4 : d * PEN_KV_BLOCK + slot;
}

static int v_index(const pen_cpu_kv *kv, int position, int d) {
    return position % PEN_KV_BLOCK * kv->head_size + d;
}

/* Of a q8_0 page's scale, in 16-bit numbers. */
static int scale_index(const pen_cpu_kv *kv, int position, int d) {
    return PEN_KV_BLOCK * (kv->head_size / 2 + d / PEN_QUANT_BLOCK) + position % PEN_KV_BLOCK;
}

static void store(const pen_cpu_kv *kv, unsigned char *page, int index, float value) {
    if (kv->type == PEN_TYPE_F32)
        ((float *)page)[index] = value;
    else
        ((uint16_t *)page)[index] = pen_f32_to_f16(value);
}

static float load(const pen_cpu_kv *kv, const unsigned char *page, int index, int zero, int scale) {
    if (kv->type == PEN_TYPE_F32) return ((const float *)page)[index];
    const uint16_t *halves = (const uint16_t *)page;
    if (kv->type == PEN_TYPE_F16) return pen_f16_to_f32(halves[index]);
    return pen_f16_to_f32(halves[scale]) * (float)((zero ? page[index] : ((const int8_t *)page)[index]) - zero);
}

static float load_k(const pen_cpu_kv *kv, const pen_run *run, int group, int position, int head, int d) {
    const unsigned char *page = kv->k + page_of(kv, run, group, position, head);
    return load(kv, page, k_index(kv, position, d), 128, scale_index(kv, position, d));
}

static float load_v(const pen_cpu_kv *kv, const pen_run *run, int group, int position, int head, int d) {
    const unsigned char *page = kv->v + page_of(kv, run, group, position, head);
    return load(kv, page, v_index(kv, position, d), 0, scale_index(kv, position, d));
}

void pen_reference_rope_kv(const pen_cpu_device *device, const pen_rope_kv_op *op) {
    const pen_cpu_kv *kv = (const pen_cpu_kv *)op->kv;
    int size = op->head_size;
    for (int row = 0; row < device->batch.rows; row++) {
        const pen_run *run = &device->runs[device->row_run[row]];
        int position = run->position + row - run->row;
        float *q = (float *)pen_cpu_data(op->qkv) + (size_t)row * (size_t)((op->heads + 2 * op->kv_heads) * size);
        float *k = q + op->heads * size, *v = k + op->kv_heads * size;
        for (int h = 0; h < op->heads; h++) prepare_head(op, op->q_norm, position, q + h * size);
        for (int h = 0; h < op->kv_heads; h++) {
            prepare_head(op, op->k_norm, position, k + h * size);
            size_t page = page_of(kv, run, op->group, position, h);
            if (kv->type == PEN_TYPE_Q8_0) {
                pen_cpu_store_q8_0(device, kv, page, position % PEN_KV_BLOCK, k + h * size, v + h * size);
                continue;
            }
            for (int d = 0; d < size; d++) {
                store(kv, kv->k + page, k_index(kv, position, d), k[h * size + d]);
                store(kv, kv->v + page, v_index(kv, position, d), v[h * size + d]);
            }
        }
    }
}

/* ---- Attention ------------------------------------------------------------------------------------------------- */

static double score(const pen_cpu_kv *kv, const pen_attention_op *op, const pen_run *run, const float *q, int position,
                    int head) {
    double s = 0;
    for (int d = 0; d < op->head_size; d++) s += (double)q[d] * (double)load_k(kv, run, op->group, position, head, d);
    s *= (double)op->scale;
    return op->softcap > 0 ? (double)op->softcap * tanh(s / (double)op->softcap) : s;
}

/* Scores are computed twice rather than kept: there is no bound on how many there are. */
static void attend(const pen_cpu_kv *kv, const pen_attention_op *op, const pen_run *run, const float *q, int position,
                   int head, float *out) {
    int first = op->window > 0 && position + 1 > op->window ? position + 1 - op->window : 0;
    double max = -INFINITY, sum = 0;
    for (int p = first; p <= position; p++) max = fmax(max, score(kv, op, run, q, p, head));
    memset(out, 0, (size_t)op->head_size * sizeof *out);
    for (int p = first; p <= position; p++) {
        double weight = exp(score(kv, op, run, q, p, head) - max);
        sum += weight;
        for (int d = 0; d < op->head_size; d++) out[d] += (float)weight * load_v(kv, run, op->group, p, head, d);
    }
    for (int d = 0; d < op->head_size; d++) out[d] = (float)((double)out[d] / sum);
}

void pen_reference_attention(const pen_cpu_device *device, const pen_attention_op *op, float *out) {
    int size = op->head_size, group = op->heads / op->kv_heads;
    for (int row = 0; row < device->batch.rows; row++) {
        const pen_run *run = &device->runs[device->row_run[row]];
        const float *q =
            (const float *)pen_cpu_data(op->qkv) + (size_t)row * (size_t)((op->heads + 2 * op->kv_heads) * size);
        for (int h = 0; h < op->heads; h++, out += size)
            attend((const pen_cpu_kv *)op->kv, op, run, q + h * size, run->position + row - run->row, h / group, out);
    }
}

/* ---- Picking --------------------------------------------------------------------------------------------------- */

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

static int better_first(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id - y->id;
}

static double weight_of(const candidate *c, float best, float temperature) {
    return exp(((double)c->logit - (double)best) / (double)temperature);
}

/* How many of the sorted candidates are kept. */
static int kept(const candidate *sorted, int n, const pen_pick *pick) {
    float best = sorted[0].logit;
    if (pick->top_k > 0 && pick->top_k < n) n = pick->top_k;
    if (pick->top_p < 1) {
        double mass = 0, sum = 0;
        for (int i = 0; i < n; i++) mass += weight_of(&sorted[i], best, pick->temperature);
        for (int i = 0; i < n; i++) {
            sum += weight_of(&sorted[i], best, pick->temperature);
            if (sum >= (double)pick->top_p * mass) n = i + 1;
        }
    }
    while (n > 1 && weight_of(&sorted[n - 1], best, pick->temperature) < (double)pick->min_p) n--;
    return n;
}

/* The kept ones are laid side by side in the order of their ids, and the uniform number points at one. */
static int32_t draw(candidate *sorted, int vocab, const pen_pick *pick) {
    int n = kept(sorted, vocab, pick);
    float best = sorted[0].logit;
    candidate last = sorted[n - 1];
    double total = 0;
    for (int i = 0; i < n; i++) total += weight_of(&sorted[i], best, pick->temperature);
    double left = pen_pick_uniform(pick) * total;
    for (int32_t id = 0, seen = 0; seen < n; id++)
        for (int i = 0; i < n; i++) {
            if (sorted[i].id != id) continue;
            seen++;
            last = sorted[i];
            left -= weight_of(&last, best, pick->temperature);
            if (left < 0) return last.id;
        }
    return last.id;
}

static void edit(candidate *sorted, int vocab, const pen_logit_edits *edits) {
    for (int i = 0; i < vocab; i++)
        for (int e = 0; e < edits->count; e++) {
            const pen_logit_edit *by = &edits->list[e];
            if (by->token != sorted[i].id) continue;
            float x = sorted[i].logit + by->add;
            if (x > 0)
                x /= by->scale;
            else
                x *= by->scale;
            sorted[i].logit = fminf(x - by->less, FLT_MAX);
        }
    qsort(sorted, (size_t)vocab, sizeof *sorted, better_first);
}

void pen_reference_pick(const float *logits, int vocab, const pen_pick *pick, const pen_logit_edits *edits,
                        void *scratch, pen_choice *choice) {
    candidate *sorted = scratch; /* [vocab] */
    *choice = (pen_choice){0};
    for (int i = 0; i < vocab; i++) {
        if (isnan(logits[i])) choice->bad_logits = 1;
        sorted[i] = (candidate){logits[i], i};
    }
    if (choice->bad_logits) return;
    qsort(sorted, (size_t)vocab, sizeof *sorted, better_first);
    choice->bad_logits = isinf(sorted[0].logit) != 0;
    if (choice->bad_logits) return;
    double sum = 0;
    for (int i = 0; i < vocab; i++) sum += exp((double)logits[i] - (double)sorted[0].logit);
    double log_sum = (double)sorted[0].logit + log(sum);
    choice->argmax = sorted[0].id;
    for (int i = 0; i < pick->top_logprobs && i < vocab; i++) {
        choice->top_ids[i] = sorted[i].id;
        choice->top_logprobs[i] = (float)((double)sorted[i].logit - log_sum);
    }
    if (edits) edit(sorted, vocab, edits);
    choice->token = pick->target >= 0 ? pick->target : pick->temperature > 0 ? draw(sorted, vocab, pick) : sorted[0].id;
    choice->logprob = (float)((double)logits[choice->token] - log_sum);
}
