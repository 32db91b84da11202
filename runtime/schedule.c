/* The schedule; see schedule.h. */
#include "schedule.h"

#include "kernels.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct sequence {
    int64_t number; /* −1: the slot is free */
    int prompt, output;
    bool score;
    bool ready; /* decoding, and the token of the next row is known */
    int next;   /* first position that was not scheduled yet */
} sequence;

struct pen_schedule {
    pen_schedule_options options;
    pen_kvcache *cache;
    int in_flight;
    int chunk; /* rows of prompt in a microbatch, for the prompts that run now */
    uint64_t next_microbatch;
    int64_t next_sequence;
    sequence *slots; /* [options.sequences] */
    int *order;      /* slots in use, oldest sequence first */
    int running;
    sequence *waiting; /* a queue: [head, head + count) of capacity */
    int waiting_head, waiting_count, waiting_capacity;
};

pen_status pen_schedule_create(const pen_schedule_options *options, pen_kvcache *cache, pen_schedule **out) {
    pen_schedule *schedule = calloc(1, sizeof *schedule);
    if (schedule) {
        schedule->options = *options;
        schedule->cache = cache;
        schedule->slots = malloc((size_t)options->sequences * sizeof *schedule->slots);
        schedule->order = malloc((size_t)options->sequences * sizeof *schedule->order);
    }
    if (!schedule || !schedule->slots || !schedule->order) {
        pen_schedule_destroy(schedule);
        return pen_fail(PEN_NO_MEMORY, "no memory for the schedule of %d sequences", options->sequences);
    }
    for (int i = 0; i < options->sequences; i++) schedule->slots[i].number = -1;
    if (options->in_flight <= 0) schedule->options.in_flight = options->stages > 1 ? options->stages + 1 : 1;
    *out = schedule;
    return PEN_OK;
}

void pen_schedule_destroy(pen_schedule *schedule) {
    if (!schedule) return;
    free(schedule->slots);
    free(schedule->order);
    free(schedule->waiting);
    free(schedule);
}

int pen_schedule_waiting(const pen_schedule *schedule) {
    return schedule->waiting_count;
}

int pen_schedule_in_flight(const pen_schedule *schedule) {
    return schedule->in_flight;
}

int pen_schedule_limit(const pen_schedule *schedule) {
    return schedule->options.in_flight;
}

int pen_schedule_chunk(const pen_schedule_options *options, int rows) {
    int chunk = options->rows;
    if (options->stages > 1 && options->chunk_overhead > 0) {
        double chunks = sqrt((options->stages - 1) * (double)rows / options->chunk_overhead);
        chunk = (int)ceil(rows / fmax(round(chunks), 1));
        /* Whole KV blocks, so that no block is begun by one chunk and ended by the next. */
        chunk = (chunk + PEN_KV_BLOCK - 1) / PEN_KV_BLOCK * PEN_KV_BLOCK;
    }
    return chunk < options->rows ? chunk : options->rows;
}

/* ---- Sequences -------------------------------------------------------------------------------------------------- */

pen_status pen_schedule_add(pen_schedule *schedule, int prompt, int output, bool score, int64_t *number) {
    assert(prompt > 0 && (score ? output == 0 : output > 0));
    if (schedule->waiting_head + schedule->waiting_count == schedule->waiting_capacity) {
        if (schedule->waiting_head > 0) {
            memmove(schedule->waiting, schedule->waiting + schedule->waiting_head,
                    (size_t)schedule->waiting_count * sizeof *schedule->waiting);
            schedule->waiting_head = 0;
        }
        if (schedule->waiting_count == schedule->waiting_capacity) {
            int capacity = schedule->waiting_capacity ? 2 * schedule->waiting_capacity : 16;
            sequence *grown = realloc(schedule->waiting, (size_t)capacity * sizeof *grown);
            if (!grown) return pen_fail(PEN_NO_MEMORY, "no memory to queue another sequence");
            schedule->waiting = grown;
            schedule->waiting_capacity = capacity;
        }
    }
    *number = schedule->next_sequence++;
    schedule->waiting[schedule->waiting_head + schedule->waiting_count++] =
        (sequence){.number = *number, .prompt = prompt, .output = output, .score = score};
    return PEN_OK;
}

/* Positions whose KV a sequence needs: the last token of the output is never fed back. */
static int positions_of(const sequence *s) {
    return s->prompt + (s->output > 0 ? s->output - 1 : 0);
}

static int free_slot(const pen_schedule *schedule) {
    for (int i = 0; i < schedule->options.sequences; i++)
        if (schedule->slots[i].number < 0) return i;
    return -1;
}

/* Starts waiting sequences, first come, first served, while a slot and KV for all of their positions are free. */
static void admit(pen_schedule *schedule) {
    bool admitted = false;
    while (schedule->waiting_count > 0) {
        const sequence *first = &schedule->waiting[schedule->waiting_head];
        int slot = free_slot(schedule);
        if (slot < 0 || !pen_kvcache_reserve(schedule->cache, slot, positions_of(first))) break;
        schedule->slots[slot] = *first;
        schedule->order[schedule->running++] = slot;
        schedule->waiting_head++;
        schedule->waiting_count--;
        admitted = true;
    }
    if (!admitted) return;
    /* The chunk is chosen once for the prompts that run now; taken from what is left of them it would only shrink. */
    int rows = 0;
    for (int i = 0; i < schedule->running; i++) {
        const sequence *s = &schedule->slots[schedule->order[i]];
        if (s->next < s->prompt) rows += s->prompt - s->next;
    }
    schedule->chunk = pen_schedule_chunk(&schedule->options, rows);
}

static int find_running(const pen_schedule *schedule, int64_t number) {
    for (int i = 0; i < schedule->running; i++)
        if (schedule->slots[schedule->order[i]].number == number) return i;
    return -1;
}

void pen_schedule_continue(pen_schedule *schedule, int64_t number) {
    int i = find_running(schedule, number);
    assert(i >= 0);
    schedule->slots[schedule->order[i]].ready = true;
}

void pen_schedule_finish(pen_schedule *schedule, int64_t number) {
    int i = find_running(schedule, number);
    if (i >= 0) {
        int slot = schedule->order[i];
        pen_kvcache_release(schedule->cache, slot);
        schedule->slots[slot].number = -1;
        schedule->running--;
        memmove(schedule->order + i, schedule->order + i + 1, (size_t)(schedule->running - i) * sizeof(int));
        return;
    }
    sequence *queue = schedule->waiting + schedule->waiting_head;
    for (int w = 0; w < schedule->waiting_count; w++) {
        if (queue[w].number != number) continue;
        schedule->waiting_count--;
        memmove(queue + w, queue + w + 1, (size_t)(schedule->waiting_count - w) * sizeof *queue);
        return;
    }
    assert(!"a sequence that the schedule knows");
}

/* ---- Microbatches ----------------------------------------------------------------------------------------------- */

static void append(pen_schedule *schedule, pen_microbatch *microbatch, int slot, int rows, int logit_first,
                   int logit_rows) {
    sequence *s = &schedule->slots[slot];
    microbatch->runs[microbatch->run_count++] = (pen_scheduled_run){.slot = slot,
                                                                    .sequence = s->number,
                                                                    .position = s->next,
                                                                    .rows = rows,
                                                                    .logit_first = logit_first,
                                                                    .logit_rows = logit_rows};
    microbatch->rows += rows;
    microbatch->logit_count += logit_rows;
    pen_kvcache_grow(schedule->cache, slot, s->next, rows);
    s->next += rows;
}

/* One row of each decode that is ready, up to an even share of all decodes for every microbatch in flight. */
static void take_decodes(pen_schedule *schedule, pen_microbatch *microbatch) {
    const pen_schedule_options *options = &schedule->options;
    int decoding = 0;
    for (int i = 0; i < schedule->running; i++) {
        const sequence *s = &schedule->slots[schedule->order[i]];
        decoding += s->next >= s->prompt && !s->score;
    }
    int share = (decoding + options->in_flight - 1) / options->in_flight;
    if (share > options->rows) share = options->rows;
    if (share > options->logit_rows) share = options->logit_rows;
    for (int i = 0; i < schedule->running && microbatch->rows < share; i++) {
        sequence *s = &schedule->slots[schedule->order[i]];
        if (!s->ready) continue;
        s->ready = false;
        append(schedule, microbatch, schedule->order[i], 1, 0, 1);
    }
}

/* Chunks of the running prompts, oldest first, until the microbatch has a chunk's worth of them. */
static void take_prompts(pen_schedule *schedule, pen_microbatch *microbatch) {
    const pen_schedule_options *options = &schedule->options;
    int budget = options->rows - microbatch->rows;
    if (budget > schedule->chunk) budget = schedule->chunk;
    for (int i = 0; i < schedule->running && budget > 0; i++) {
        int slot = schedule->order[i];
        const sequence *s = &schedule->slots[slot];
        int rows = s->prompt - s->next;
        if (rows <= 0) continue;
        if (rows > budget) rows = budget;
        /* The last position of a prompt wants logits when it is to go on, and all others when it is to be scored. */
        int logits_left = options->logit_rows - microbatch->logit_count, first, logits;
        if (s->score) {
            if (rows > logits_left) rows = logits_left;
            first = 0;
            logits = s->next + rows == s->prompt ? rows - 1 : rows;
        } else {
            bool last = s->next + rows == s->prompt;
            if (last && logits_left == 0) rows--, last = false;
            first = last ? rows - 1 : 0;
            logits = last;
        }
        if (rows == 0) break;
        append(schedule, microbatch, slot, rows, first, logits);
        budget -= rows;
    }
}

bool pen_schedule_next(pen_schedule *schedule, pen_microbatch *microbatch) {
    if (schedule->in_flight == schedule->options.in_flight) return false;
    admit(schedule);
    microbatch->rows = microbatch->run_count = microbatch->logit_count = 0;
    take_decodes(schedule, microbatch);
    take_prompts(schedule, microbatch);
    if (microbatch->rows == 0) return false;
    microbatch->number = schedule->next_microbatch++;
    schedule->in_flight++;
    return true;
}

void pen_schedule_complete(pen_schedule *schedule) {
    assert(schedule->in_flight > 0);
    schedule->in_flight--;
}
