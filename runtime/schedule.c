/* The schedule; see schedule.h. */
#include "schedule.h"

#include "budget.h"
#include "kernels.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

typedef struct sequence {
    int64_t number; /* −1: the slot is free */
    pen_sequence_spec spec;
    int known;           /* tokens: the prompt, and what was appended */
    int next;            /* first position whose row was not scheduled since it was started */
    int asked;           /* last position whose logits were wanted, ever; −1: none */
    uint64_t microbatch; /* the last one that it is in */
} sequence;

struct pen_schedule {
    pen_schedule_options options;
    pen_kvcache *cache;
    int in_flight;
    bool *decodes;            /* [options.in_flight] whether microbatch n in flight, in n mod in_flight, has any */
    int carriers;             /* of them that have */
    uint64_t next_microbatch; /* from 1 on; 0 is none */
    uint64_t pauses;
    int64_t next_sequence;
    sequence *slots; /* [options.sequences] */
    int *order;      /* slots in use, oldest sequence first */
    int running;
    sequence *waiting; /* a queue, in the order of numbers */
    int waiting_count, waiting_capacity;
};

pen_status pen_schedule_create(const pen_schedule_options *options, pen_kvcache *cache, pen_schedule **out) {
    pen_schedule *schedule = calloc(1, sizeof *schedule);
    if (schedule) {
        schedule->options = *options;
        schedule->cache = cache;
        schedule->slots = malloc((size_t)options->sequences * sizeof *schedule->slots);
        schedule->order = malloc((size_t)options->sequences * sizeof *schedule->order);
        if (options->in_flight <= 0) schedule->options.in_flight = options->stages > 1 ? options->stages + 1 : 1;
        schedule->decodes = calloc((size_t)schedule->options.in_flight, sizeof *schedule->decodes);
    }
    if (!schedule || !schedule->slots || !schedule->order || !schedule->decodes) {
        pen_schedule_destroy(schedule);
        return pen_fail(PEN_NO_MEMORY, "no memory for the schedule of %d sequences", options->sequences);
    }
    for (int i = 0; i < options->sequences; i++) schedule->slots[i].number = -1;
    schedule->next_microbatch = 1;
    *out = schedule;
    return PEN_OK;
}

void pen_schedule_destroy(pen_schedule *schedule) {
    if (!schedule) return;
    free(schedule->slots);
    free(schedule->order);
    free(schedule->decodes);
    free(schedule->waiting);
    free(schedule);
}

int pen_schedule_waiting(const pen_schedule *schedule) {
    return schedule->waiting_count;
}

int pen_schedule_in_flight(const pen_schedule *schedule) {
    return schedule->in_flight;
}

uint64_t pen_schedule_pauses(const pen_schedule *schedule) {
    return schedule->pauses;
}

int pen_schedule_limit(const pen_schedule *schedule) {
    return schedule->options.in_flight;
}

/* ---- Sequences -------------------------------------------------------------------------------------------------- */

/* A place in the queue, at its head or its end. */
static sequence *claim_waiting(pen_schedule *schedule, bool head) {
    if (schedule->waiting_count == schedule->waiting_capacity) {
        int capacity = schedule->waiting_capacity ? 2 * schedule->waiting_capacity : 16;
        sequence *grown = realloc(schedule->waiting, (size_t)capacity * sizeof *grown);
        if (!grown) return NULL;
        schedule->waiting = grown;
        schedule->waiting_capacity = capacity;
    }
    sequence *queue = schedule->waiting;
    if (!head) return &queue[schedule->waiting_count++];
    memmove(queue + 1, queue, (size_t)schedule->waiting_count++ * sizeof *queue);
    return queue;
}

static void leave_queue(pen_schedule *schedule, int w) {
    sequence *queue = schedule->waiting;
    schedule->waiting_count--;
    memmove(queue + w, queue + w + 1, (size_t)(schedule->waiting_count - w) * sizeof *queue);
}

pen_status pen_schedule_add(pen_schedule *schedule, const pen_sequence_spec *spec, int64_t *number) {
    assert(spec->prompt > 0 && spec->output >= 0 && (spec->score || spec->output > 0));
    sequence *s = claim_waiting(schedule, false);
    if (!s) return pen_fail(PEN_NO_MEMORY, "no memory to queue another sequence");
    *number = schedule->next_sequence++;
    *s = (sequence){
        .number = *number, .spec = *spec, .known = spec->prompt, .asked = spec->score ? -1 : spec->prompt - 2};
    return PEN_OK;
}

/* Rows [first, returned) of a run at [s->next, s->next + rows) want logits. */
static int logits_of(const sequence *s, int rows, int *first) {
    int begin = s->asked + 1 > s->next ? s->asked + 1 : s->next, end = s->next + rows;
    int last = s->spec.output > 0 ? s->spec.prompt + s->spec.output : s->spec.prompt - 1;
    if (end > last) end = last;
    *first = end > begin ? begin - s->next : 0;
    return end > begin ? end - begin : 0;
}

/* What was paused prefills its output, too. */
static bool is_decoding(const sequence *s) {
    return s->next >= s->spec.prompt && s->known - s->next <= 1;
}

static int free_slot(const pen_schedule *schedule) {
    for (int i = 0; i < schedule->options.sequences; i++)
        if (schedule->slots[i].number < 0) return i;
    return -1;
}

/* Whether all groups have blocks for what a sequence has, and one more for everybody who runs. */
static bool has_room(const pen_schedule *schedule, const sequence *s) {
    if (schedule->running == 0) return true; /* what is too large even so is never queued */
    for (int g = 0; g < schedule->options.kv.count; g++) {
        int window = schedule->options.kv.windows[g];
        int wanted = pen_kv_blocks_held(window, schedule->options.rows, s->known) + schedule->running;
        if (wanted > pen_kvcache_free_blocks(schedule->cache, g)) return false;
    }
    return true;
}

/* The running sequences stay in the order of their numbers. */
static void start(pen_schedule *schedule, int slot, const sequence *waiting) {
    sequence *s = &schedule->slots[slot];
    *s = *waiting;
    /* What is found again need not be computed, but for rows whose logits are wanted. */
    int count = s->asked + 2 < s->known ? s->asked + 2 : s->known;
    s->next = pen_kvcache_open(schedule->cache, slot, s->spec.tokens, count);
    int i = schedule->running++;
    for (; i > 0 && schedule->slots[schedule->order[i - 1]].number > s->number; i--)
        schedule->order[i] = schedule->order[i - 1];
    schedule->order[i] = slot;
}

static void stop(pen_schedule *schedule, int i) {
    int slot = schedule->order[i];
    pen_kvcache_close(schedule->cache, slot);
    schedule->slots[slot].number = -1;
    schedule->running--;
    memmove(schedule->order + i, schedule->order + i + 1, (size_t)(schedule->running - i) * sizeof(int));
}

/* Starts waiting sequences, first come, first served, while a slot and KV are free. */
static void admit(pen_schedule *schedule) {
    while (schedule->waiting_count > 0) {
        int slot = free_slot(schedule);
        if (slot < 0 || !has_room(schedule, &schedule->waiting[0])) return;
        start(schedule, slot, &schedule->waiting[0]);
        leave_queue(schedule, 0);
    }
}

/* Takes the blocks of the youngest sequence that is not in this microbatch; false where there is none but `but`. */
static bool pause_youngest(pen_schedule *schedule, int64_t but) {
    for (int i = schedule->running - 1; i >= 0; i--) {
        const sequence *s = &schedule->slots[schedule->order[i]];
        if (s->number == but) return false; /* all others are older, or in this microbatch */
        if (s->microbatch == schedule->next_microbatch) continue;
        sequence *waiting = claim_waiting(schedule, true);
        if (!waiting) return false; /* it goes on when others have ended */
        *waiting = *s;
        stop(schedule, i);
        schedule->pauses++;
        return true;
    }
    return false;
}

static int find_running(const pen_schedule *schedule, int64_t number) {
    for (int i = 0; i < schedule->running; i++)
        if (schedule->slots[schedule->order[i]].number == number) return i;
    return -1;
}

static sequence *find(pen_schedule *schedule, int64_t number) {
    int i = find_running(schedule, number);
    if (i >= 0) return &schedule->slots[schedule->order[i]];
    for (int w = 0; w < schedule->waiting_count; w++) /* paused */
        if (schedule->waiting[w].number == number) return &schedule->waiting[w];
    return NULL;
}

void pen_schedule_continue(pen_schedule *schedule, int64_t number) {
    sequence *s = find(schedule, number);
    assert(s && s->known < s->spec.prompt + s->spec.output);
    s->known++;
}

void pen_schedule_finish(pen_schedule *schedule, int64_t number) {
    int i = find_running(schedule, number);
    if (i >= 0) {
        stop(schedule, i);
        return;
    }
    const sequence *s = find(schedule, number);
    assert(s);
    leave_queue(schedule, (int)(s - schedule->waiting));
}

/* ---- Microbatches ----------------------------------------------------------------------------------------------- */

/* A table that the stages have never heard of may be long; a microbatch tells of one such at most. */
static bool is_long_news(const pen_schedule *schedule, int slot) {
    return pen_kvcache_told(schedule->cache, slot) == 0 && schedule->slots[slot].next > 0;
}

/* Adds rows of a sequence, if its tables can grow by them. */
static bool append(pen_schedule *schedule, pen_microbatch *microbatch, int slot, int rows) {
    sequence *s = &schedule->slots[slot];
    if (is_long_news(schedule, slot) && microbatch->long_news) return false;
    if (!pen_kvcache_grow(schedule->cache, slot, s->next, rows)) return false;
    microbatch->long_news = microbatch->long_news || is_long_news(schedule, slot);
    int first, logits = logits_of(s, rows, &first);
    microbatch->runs[microbatch->run_count++] = (pen_scheduled_run){.slot = slot,
                                                                    .sequence = s->number,
                                                                    .position = s->next,
                                                                    .rows = rows,
                                                                    .logit_first = first,
                                                                    .logit_rows = logits};
    microbatch->rows += rows;
    microbatch->logit_count += logits;
    s->next += rows;
    s->microbatch = schedule->next_microbatch;
    if (s->next - 1 > s->asked) s->asked = s->next - 1;
    pen_kvcache_remember(schedule->cache, slot, s->spec.tokens, s->next);
    return true;
}

/* What the running sequences ask for. */
typedef struct demand {
    int decodes, ready;                    /* sequences that decode, and those of them whose next row may run */
    int prompt_rows;                       /* of prompts that wait */
    int groups;                            /* of decodes: microbatches that they are spread over */
    double decode_context, prompt_context; /* on average */
} demand;

static demand look(const pen_schedule *schedule) {
    demand d = {0};
    int prompts = 0;
    for (int i = 0; i < schedule->running; i++) {
        const sequence *s = &schedule->slots[schedule->order[i]];
        if (!is_decoding(s)) {
            d.prompt_rows += s->known - s->next;
            d.prompt_context += (s->next + s->known) / 2.0;
            prompts++;
        } else if (s->spec.output > 0) {
            d.decodes++;
            d.ready += s->next < s->known;
            d.decode_context += s->next;
        }
    }
    if (prompts > 0) d.prompt_context /= prompts;
    if (d.decodes > 0) {
        d.decode_context /= d.decodes;
        if (!schedule->options.cost) return d;
        d.groups = pen_budget_groups(schedule->options.cost, d.decodes, d.decode_context, schedule->options.in_flight);
    }
    return d;
}

static int divide_up(int a, int b) {
    return (a + b - 1) / b;
}

/* Rows of decodes in the next microbatch: an even share of those that are ready for each group that is not in flight,
 * but no more than of all, so that groups which have grown apart in size become even again. */
static int share_of_decodes(const pen_schedule *schedule, const demand *d) {
    const pen_schedule_options *options = &schedule->options;
    int share = d->ready;
    if (options->cost && d->ready > 0) {
        int groups_left = d->groups - schedule->carriers, even = divide_up(d->decodes, d->groups);
        if (groups_left <= 0) return 0;
        share = divide_up(d->ready, groups_left);
        if (share > even) share = even;
    }
    if (share > options->rows) share = options->rows;
    return share < options->logit_rows ? share : options->logit_rows;
}

/* One row of each decode that is ready, oldest first. Older ones take the blocks that they need from the youngest. */
static void take_decodes(pen_schedule *schedule, const demand *d, pen_microbatch *microbatch) {
    int share = share_of_decodes(schedule, d);
    for (int i = 0; i < schedule->running && microbatch->rows < share; i++) {
        int slot = schedule->order[i];
        const sequence *s = &schedule->slots[slot];
        if (!is_decoding(s) || s->next == s->known) continue;
        while (!append(schedule, microbatch, slot, 1) && pause_youngest(schedule, s->number)) continue;
    }
}

/* Rows of prompt in the next microbatch. While others decode, one of prompts alone is only formed where the stages have
 * time for it. */
static int share_of_prompts(const pen_schedule *schedule, const demand *d, int decodes) {
    const pen_schedule_options *options = &schedule->options;
    int room = options->rows - decodes;
    if (d->prompt_rows == 0 || room <= 0) return 0;
    if (!options->cost) return room;
    int chunk = pen_budget_chunk(options->cost, decodes, d->prompt_context, d->prompt_rows, room);
    if (decodes > 0 || d->decodes == 0) return chunk;
    double share = (double)d->decodes / d->groups;
    pen_step_shape shape = {share + chunk, share, d->decode_context};
    return schedule->in_flight < pen_budget_depth(options->cost, &shape, options->in_flight) ? chunk : 0;
}

/* Chunks of the running prompts, oldest first, until the microbatch has its share of them. */
static void take_prompts(pen_schedule *schedule, const demand *d, pen_microbatch *microbatch) {
    int budget = share_of_prompts(schedule, d, microbatch->rows);
    for (int i = 0; i < schedule->running && budget > 0; i++) {
        int slot = schedule->order[i], first;
        const sequence *s = &schedule->slots[slot];
        if (is_decoding(s)) continue;
        int rows = s->known - s->next < budget ? s->known - s->next : budget;
        while (rows > 0 && logits_of(s, rows, &first) > schedule->options.logit_rows - microbatch->logit_count) rows--;
        if (rows == 0 || !append(schedule, microbatch, slot, rows)) break;
        budget -= rows;
    }
}

bool pen_schedule_next(pen_schedule *schedule, pen_microbatch *microbatch) {
    if (schedule->in_flight == schedule->options.in_flight) return false;
    admit(schedule);
    microbatch->rows = microbatch->run_count = microbatch->logit_count = 0;
    microbatch->long_news = false;
    demand d = look(schedule);
    take_decodes(schedule, &d, microbatch);
    bool decodes = microbatch->rows > 0;
    take_prompts(schedule, &d, microbatch);
    /* Prompts that have begun may hold all blocks between them. When nobody is left to give any up, the youngest must.
     */
    while (microbatch->rows == 0 && schedule->in_flight == 0 && schedule->running > 1 &&
           pause_youngest(schedule, schedule->slots[schedule->order[0]].number))
        take_prompts(schedule, &d, microbatch);
    if (microbatch->rows == 0) return false;
    schedule->decodes[schedule->next_microbatch % (uint64_t)schedule->options.in_flight] = decodes;
    schedule->carriers += decodes;
    microbatch->number = schedule->next_microbatch++ - 1;
    schedule->in_flight++;
    return true;
}

void pen_schedule_complete(pen_schedule *schedule) {
    assert(schedule->in_flight > 0);
    uint64_t oldest = schedule->next_microbatch - (uint64_t)schedule->in_flight--;
    schedule->carriers -= schedule->decodes[oldest % (uint64_t)schedule->options.in_flight];
}
