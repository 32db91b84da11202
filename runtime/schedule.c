/* The schedule; see schedule.h. */
#include "schedule.h"

#include "budget.h"
#include "kernels.h"

#include <assert.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What a sequence that ended still counts for when another has. */
#define FORGETS 0.97

typedef struct sequence {
    int64_t number; /* −1: the slot is free */
    pen_sequence_spec spec;
    int raised;          /* priority when it starts: of the most urgent one for whom it was put aside */
    int known;           /* tokens: the prompt, and what was appended */
    int next;            /* first position whose row was not scheduled since it was started */
    int asked;           /* last position whose logits were wanted, ever; −1: none */
    uint64_t microbatch; /* the last one that it is in */
} sequence;

struct pen_schedule {
    pen_schedule_options options;
    pen_kvcache *cache;
    int in_flight, depth;
    bool exhausted;           /* there was nothing to run, and nothing has happened since */
    bool *decodes;            /* [options.in_flight] whether microbatch n in flight, in n mod in_flight, has any */
    int carriers;             /* of them that have */
    uint64_t next_microbatch; /* from 1 on; 0 is none */
    uint64_t pauses, preemptions;
    double ended;                        /* sequences, the latest ones for the most part, … */
    double ended_prompts, ended_outputs; /* … and their tokens */
    int64_t next_sequence;
    sequence *slots; /* [options.sequences] */
    int *order;      /* slots in use, most urgent sequence first */
    int running;
    sequence *waiting; /* a queue, most urgent first: a ring, whose capacity is a power of two or 0 */
    int waiting_head, waiting_count, waiting_capacity;
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
    schedule->depth = schedule->options.in_flight;
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

uint64_t pen_schedule_preemptions(const pen_schedule *schedule) {
    return schedule->preemptions;
}

int pen_schedule_limit(const pen_schedule *schedule) {
    return schedule->options.in_flight;
}

int pen_schedule_depth(const pen_schedule *schedule) {
    return schedule->depth;
}

pen_step_shape pen_microbatch_shape(const pen_microbatch *microbatch) {
    pen_step_shape shape = {.rows = microbatch->rows, .logit_rows = microbatch->logit_count};
    double decode_positions = 0, prompt_positions = 0;
    for (int i = 0; i < microbatch->run_count; i++) {
        const pen_scheduled_run *run = &microbatch->runs[i];
        shape.decodes += run->rows == 1;
        *(run->rows == 1 ? &decode_positions : &prompt_positions) += (double)run->rows * run->position;
    }
    shape.decode_context = decode_positions / fmax(shape.decodes, 1);
    shape.prompt_context = prompt_positions / fmax(shape.rows - shape.decodes, 1);
    return shape;
}

/* ---- Sequences -------------------------------------------------------------------------------------------------- */

/* The sequence at a place of the queue, counted from its head. */
static sequence *queued(const pen_schedule *schedule, int w) {
    return &schedule->waiting[(schedule->waiting_head + w) & (schedule->waiting_capacity - 1)];
}

static bool grow_queue(pen_schedule *schedule) {
    int capacity = schedule->waiting_capacity ? 2 * schedule->waiting_capacity : 16;
    sequence *grown = malloc((size_t)capacity * sizeof *grown);
    if (!grown) return false;
    for (int w = 0; w < schedule->waiting_count; w++) grown[w] = *queued(schedule, w);
    free(schedule->waiting);
    schedule->waiting = grown;
    schedule->waiting_head = 0;
    schedule->waiting_capacity = capacity;
    return true;
}

static bool is_before(const sequence *s, int priority, int64_t number) {
    return s->spec.priority < priority || (s->spec.priority == priority && s->number < number);
}

/* The first place in the queue that does not belong to somebody more urgent. */
static int place_in_queue(const pen_schedule *schedule, int priority, int64_t number) {
    int w = 0, end = schedule->waiting_count;
    while (w < end) {
        int middle = w + (end - w) / 2;
        if (is_before(queued(schedule, middle), priority, number))
            w = middle + 1;
        else
            end = middle;
    }
    return w;
}

/* The shorter part of the queue makes room. */
static bool join_queue(pen_schedule *schedule, const sequence *s) {
    if (schedule->waiting_count == schedule->waiting_capacity && !grow_queue(schedule)) return false;
    int w = place_in_queue(schedule, s->spec.priority, s->number), last = schedule->waiting_count++;
    if (w < last - w) {
        schedule->waiting_head = (schedule->waiting_head - 1) & (schedule->waiting_capacity - 1);
        for (int i = 0; i < w; i++) *queued(schedule, i) = *queued(schedule, i + 1);
    } else {
        for (int i = last; i > w; i--) *queued(schedule, i) = *queued(schedule, i - 1);
    }
    *queued(schedule, w) = *s;
    return true;
}

/* The shorter part of the queue closes the gap. */
static void leave_queue(pen_schedule *schedule, int w) {
    int last = schedule->waiting_count - 1;
    if (w < last - w) {
        for (; w > 0; w--) *queued(schedule, w) = *queued(schedule, w - 1);
        schedule->waiting_head = (schedule->waiting_head + 1) & (schedule->waiting_capacity - 1);
    } else {
        for (; w < last; w++) *queued(schedule, w) = *queued(schedule, w + 1);
    }
    schedule->waiting_count--;
}

static int find_running(const pen_schedule *schedule, int64_t number) {
    for (int i = 0; i < schedule->running; i++)
        if (schedule->slots[schedule->order[i]].number == number) return i;
    return -1;
}

static int find_waiting(const pen_schedule *schedule, int64_t number) {
    for (int w = 0; w < schedule->waiting_count;) {
        int priority = queued(schedule, w)->spec.priority;
        w = place_in_queue(schedule, priority, number);
        if (w < schedule->waiting_count && queued(schedule, w)->number == number) return w;
        w = place_in_queue(schedule, priority, INT64_MAX);
    }
    return -1;
}

pen_status pen_schedule_add(pen_schedule *schedule, const pen_sequence_spec *spec, int64_t *number) {
    assert(spec->prompt > 0 && spec->output >= 0 && (spec->score || spec->output > 0));
    assert(spec->given == 0 || (spec->given < spec->output && spec->parent < 0));
    assert(spec->parent < schedule->next_sequence && !(spec->parent >= 0 && spec->score));
    int known = spec->prompt + spec->given;
    const sequence s = {.number = schedule->next_sequence,
                        .spec = *spec,
                        .raised = spec->priority,
                        .known = known,
                        .asked = spec->score ? -1 : known - 2};
    if (!join_queue(schedule, &s)) return pen_fail(PEN_NO_MEMORY, "no memory to queue another sequence");
    schedule->exhausted = false;
    *number = schedule->next_sequence++;
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

/* A child waits for its parent to get through the prompt. Where the parent has ended it begins like any other. */
static bool may_start(const pen_schedule *schedule, const sequence *s) {
    if (s->spec.parent < 0) return true;
    int i = find_running(schedule, s->spec.parent);
    if (i >= 0) return schedule->slots[schedule->order[i]].next >= s->spec.prompt - 1;
    return find_waiting(schedule, s->spec.parent) < 0;
}

/* Slot of the sequence that `s`, which may start, shares its prompt with; −1: none. */
static int parent_slot(const pen_schedule *schedule, const sequence *s) {
    int i = s->spec.parent >= 0 ? find_running(schedule, s->spec.parent) : -1;
    if (i < 0 || !pen_kvcache_can_fork(schedule->cache, schedule->order[i], s->spec.prompt - 1)) return -1;
    return schedule->order[i];
}

/* Whether all groups have blocks for what a sequence has, and for what those who run have and did not compute yet; and
 * of the blocks that all of them may yet add one for everybody who runs and an eighth. To keep more free would let
 * blocks lie idle, less would pause more of them than it lets run (in the simulator, with KV for 20 to 100 % of the
 * sequences). A child may have to copy one block, and shares the others. Of those who run, only the `kept` most urgent
 * ones count: the others would give their blocks up. */
static bool has_room(const pen_schedule *schedule, const sequence *s, int kept) {
    if (kept == 0) return true; /* what is too large even so is never queued */
    int rows = schedule->options.rows;
    bool shares = parent_slot(schedule, s) >= 0;
    for (int g = 0; g < schedule->options.kv.count; g++) {
        int window = schedule->options.kv.windows[g], free = pen_kvcache_free_blocks(schedule->cache, g);
        int has = pen_kv_blocks_held(window, rows, s->known), wanted = shares ? 1 : has;
        int more = pen_kv_blocks_held(window, rows, s->spec.prompt + s->spec.output) - has;
        for (int i = 0; i < schedule->running; i++) {
            int slot = schedule->order[i];
            const sequence *other = &schedule->slots[slot];
            int held = pen_kvcache_end(schedule->cache, slot) - pen_kvcache_begin(schedule->cache, g, slot);
            if (i >= kept) {
                free += held;
                continue;
            }
            has = pen_kv_blocks_held(window, rows, other->known);
            if (is_decoding(other) || has < held) has = held;
            wanted += has - held;
            more += pen_kv_blocks_held(window, rows, other->spec.prompt + other->spec.output) - has;
        }
        int spare = kept + more / 8;
        if (wanted + (spare < more ? spare : more) > free) return false;
    }
    return true;
}

/* The running sequences stay in order. */
static void start(pen_schedule *schedule, int slot, const sequence *waiting) {
    sequence *s = &schedule->slots[slot];
    int parent = parent_slot(schedule, waiting);
    *s = *waiting;
    s->spec.parent = -1; /* should it be paused, it begins again like any other */
    s->spec.priority = s->raised;
    if (parent >= 0) {
        s->next = s->spec.prompt - 1;
        pen_kvcache_fork(schedule->cache, parent, slot, s->next);
    } else {
        /* What is found again need not be computed, but for rows whose logits are wanted. */
        int count = s->asked + 2 < s->known ? s->asked + 2 : s->known;
        s->next = pen_kvcache_open(schedule->cache, slot, s->spec.tokens, count);
    }
    int i = schedule->running++;
    for (; i > 0 && !is_before(&schedule->slots[schedule->order[i - 1]], s->spec.priority, s->number); i--)
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

/* A running sequence gives slot and blocks up and waits. */
static bool put_aside(pen_schedule *schedule, int i) {
    if (!join_queue(schedule, &schedule->slots[schedule->order[i]])) return false;
    stop(schedule, i);
    return true;
}

/* Puts as many aside, of those whom the waiting sequence may preempt, as must go for it to start; nobody where that
 * would not do. What they share with others they cannot give: then some more must go. */
static bool preempt_for(pen_schedule *schedule, const sequence *s) {
    int kept = schedule->running, priority = s->spec.priority;
    do {
        if (kept == 0 || schedule->slots[schedule->order[kept - 1]].spec.priority <= priority) return false;
    } while (!has_room(schedule, s, --kept));
    for (; schedule->running > kept; schedule->preemptions++) {
        schedule->slots[schedule->order[schedule->running - 1]].raised = priority;
        if (!put_aside(schedule, schedule->running - 1)) return false;
    }
    return true;
}

/* Starts waiting sequences, the most urgent first, while slots and KV are free, or can be had. Whom a child will
 * preempt when its parent has got through the prompt, that one does not start before. */
static void admit(pen_schedule *schedule) {
    bool preempts = schedule->options.preempts;
    int limit = INT_MAX; /* of priorities */
    for (int w = 0; w < schedule->waiting_count;) {
        const sequence *s = queued(schedule, w);
        int slot = free_slot(schedule);
        if ((slot < 0 && !preempts) || s->spec.priority > limit) return;
        if (!may_start(schedule, s)) {
            if (preempts && limit == INT_MAX) limit = s->spec.priority;
            w++;
        } else if (slot >= 0 && has_room(schedule, s, schedule->running)) {
            start(schedule, slot, s);
            leave_queue(schedule, w);
        } else if (!preempts || !preempt_for(schedule, s)) {
            return;
        }
    }
}

/* Takes the blocks of the least urgent sequence that is not in this microbatch; false where there is none but `but`. */
static bool pause_last(pen_schedule *schedule, int64_t but) {
    for (int i = schedule->running - 1; i >= 0; i--) {
        const sequence *s = &schedule->slots[schedule->order[i]];
        if (s->number == but) return false; /* all others are more urgent, or in this microbatch */
        if (s->microbatch == schedule->next_microbatch) continue;
        if (!put_aside(schedule, i)) return false; /* it goes on when others have ended */
        schedule->pauses++;
        return true;
    }
    return false;
}

void pen_schedule_continue(pen_schedule *schedule, int64_t number) {
    int i = find_running(schedule, number), w = i < 0 ? find_waiting(schedule, number) : -1;
    assert(i >= 0 || w >= 0);
    sequence *s = i >= 0 ? &schedule->slots[schedule->order[i]] : queued(schedule, w); /* it may be paused */
    assert(s->known < s->spec.prompt + s->spec.output);
    s->known++;
    schedule->exhausted = false;
}

void pen_schedule_finish(pen_schedule *schedule, int64_t number) {
    schedule->exhausted = false;
    int i = find_running(schedule, number);
    if (i >= 0) {
        const sequence *s = &schedule->slots[schedule->order[i]];
        schedule->ended = FORGETS * schedule->ended + 1;
        schedule->ended_prompts = FORGETS * schedule->ended_prompts + s->spec.prompt;
        schedule->ended_outputs = FORGETS * schedule->ended_outputs + (s->known - s->spec.prompt);
        stop(schedule, i);
        return;
    }
    int w = find_waiting(schedule, number);
    assert(w >= 0);
    leave_queue(schedule, w);
}

/* ---- Microbatches ----------------------------------------------------------------------------------------------- */

/* Blocks that a sequence began with and the stages have yet to hear of. A microbatch tells of one long table of such at
 * most, or of several short ones. */
static int old_blocks(const pen_schedule *schedule, int slot) {
    return pen_kvcache_told(schedule->cache, slot) == 0 ? pen_kv_blocks_for(schedule->slots[slot].next) : 0;
}

static bool can_tell(const pen_schedule *schedule, const pen_microbatch *microbatch, int slot) {
    return microbatch->old_blocks + old_blocks(schedule, slot) <= pen_kv_blocks_for(schedule->options.context);
}

/* Adds rows of a sequence, if its tables can grow by them. */
static bool append(pen_schedule *schedule, pen_microbatch *microbatch, int slot, int rows) {
    sequence *s = &schedule->slots[slot];
    int old = old_blocks(schedule, slot);
    if (!can_tell(schedule, microbatch, slot)) return false;
    if (!pen_kvcache_grow(schedule->cache, slot, s->next, rows)) return false;
    microbatch->old_blocks += old;
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

/* What the load is like in the long run: as ended sequences were, or before any has, as running ones may be. */
static void look_back(const pen_schedule *schedule, pen_budget_demand *demand) {
    double count = schedule->ended, rows = schedule->ended_prompts, tokens = schedule->ended_outputs;
    for (int i = 0; i < schedule->running && schedule->ended_outputs == 0; i++) {
        const sequence *s = &schedule->slots[schedule->order[i]];
        count++;
        rows += s->spec.prompt;
        tokens += s->spec.output;
    }
    if (tokens == 0) return;
    demand->prompt_rate = rows / tokens;
    demand->output = tokens / count;
}

static pen_budget_demand look(const pen_schedule *schedule) {
    pen_budget_demand demand = {0};
    look_back(schedule, &demand);
    uint64_t oldest = schedule->next_microbatch - (uint64_t)schedule->in_flight;
    for (int i = 0; i < schedule->running; i++) {
        const sequence *s = &schedule->slots[schedule->order[i]];
        if (!is_decoding(s)) {
            if (demand.prompts++ == 0) demand.chunk_context = s->next;
            demand.prompt_rows += s->known - s->next;
            demand.prompt_context += s->known / 2.0;
        } else if (s->next < s->spec.prompt + s->spec.output - 1 && (s->next < s->known || s->microbatch >= oldest)) {
            /* Others whose token came back are being held. */
            demand.decodes++;
            demand.settled += s->next > s->spec.prompt || s->next < s->known;
            demand.decode_context += s->next;
        }
    }
    if (demand.prompts > 0) demand.prompt_context /= demand.prompts;
    if (demand.decodes > 0) demand.decode_context /= demand.decodes;
    return demand;
}

static int divide_up(int a, int b) {
    return (a + b - 1) / b;
}

/* Rows of decodes in the next microbatch: an even share of those that are ready for each microbatch of decodes that is
 * not in flight, but no more than of all, so that groups which have grown apart in size become even again. */
static int share_of_decodes(const pen_schedule *schedule, const pen_budget_demand *demand, const pen_budget *budget) {
    int left = budget->depth - schedule->carriers, ready = 0;
    if (demand->decodes == 0 || left <= 0) return 0;
    for (int i = 0; i < schedule->running; i++) {
        const sequence *s = &schedule->slots[schedule->order[i]];
        ready += is_decoding(s) && s->next < s->known;
    }
    int share = divide_up(ready, left), even = divide_up(demand->decodes, budget->depth);
    return share < even ? share : even;
}

/* One row of so many decodes that are ready, the most urgent first. They take the blocks that they need from the least
 * urgent. */
static void take_decodes(pen_schedule *schedule, int share, pen_microbatch *microbatch) {
    const pen_schedule_options *options = &schedule->options;
    if (share > options->rows) share = options->rows;
    if (share > options->logit_rows) share = options->logit_rows;
    for (int i = 0; i < schedule->running && microbatch->rows < share; i++) {
        int slot = schedule->order[i];
        const sequence *s = &schedule->slots[slot];
        if (!is_decoding(s) || s->next == s->known || !can_tell(schedule, microbatch, slot)) continue;
        while (!append(schedule, microbatch, slot, 1) && pause_last(schedule, s->number)) continue;
    }
}

/* Rows of prompt beside so many decodes. While others decode, a microbatch of prompts alone is only formed where the
 * stages have time for it. */
static int share_of_prompts(const pen_schedule *schedule, const pen_budget_demand *demand, const pen_budget *budget,
                            int decodes) {
    const pen_step_cost *cost = schedule->options.cost;
    int room = schedule->options.rows - decodes, alone = schedule->in_flight - schedule->carriers;
    if (room <= 0 || demand->prompt_rows == 0) return 0;
    int rows = pen_budget_fill(cost, demand, budget, decodes, room);
    bool waits = decodes == 0 && demand->decodes > 0 && schedule->in_flight > 0;
    return waits && !pen_budget_has_time(cost, demand, budget, schedule->carriers, alone, rows) ? 0 : rows;
}

/* Chunks of the running prompts, the most urgent first, until the microbatch has its share of them. */
static void take_prompts(pen_schedule *schedule, int share, pen_microbatch *microbatch) {
    for (int i = 0; i < schedule->running && share > 0; i++) {
        int slot = schedule->order[i], first;
        const sequence *s = &schedule->slots[slot];
        if (is_decoding(s)) continue;
        int rows = s->known - s->next < share ? s->known - s->next : share;
        while (rows > 0 && logits_of(s, rows, &first) > schedule->options.logit_rows - microbatch->logit_count) rows--;
        if (rows == 0 || !append(schedule, microbatch, slot, rows)) break;
        share -= rows;
    }
}

/* Nothing is in flight, and nothing could be formed: whether somebody has rows to run, for which there are no blocks.
 * All others wait to be continued. */
static bool lacks_blocks(const pen_schedule *schedule) {
    for (int i = 0; i < schedule->running; i++) {
        const sequence *s = &schedule->slots[schedule->order[i]];
        if (s->next < s->known) return true;
    }
    return false;
}

bool pen_schedule_next(pen_schedule *schedule, pen_microbatch *microbatch) {
    if (schedule->exhausted || schedule->in_flight == schedule->options.in_flight) return false;
    admit(schedule);
    microbatch->rows = microbatch->run_count = microbatch->logit_count = 0;
    microbatch->old_blocks = 0;
    const pen_step_cost *cost = schedule->options.cost;
    pen_budget_demand demand = look(schedule);
    pen_budget budget = {0};
    if (cost) {
        budget = pen_budget_of(cost, &demand, schedule->options.in_flight, schedule->options.rows);
        schedule->depth = budget.depth;
    }
    take_decodes(schedule, cost ? share_of_decodes(schedule, &demand, &budget) : schedule->options.rows, microbatch);
    bool decodes = microbatch->rows > 0;
    int share = cost ? share_of_prompts(schedule, &demand, &budget, microbatch->rows)
                     : schedule->options.rows - microbatch->rows;
    take_prompts(schedule, share, microbatch);
    /* Prompts that have begun may hold all blocks between them. When nobody is left to give any up, the least urgent
     * must. */
    while (microbatch->rows == 0 && schedule->in_flight == 0 && schedule->running > 1 && lacks_blocks(schedule) &&
           pause_last(schedule, schedule->slots[schedule->order[0]].number))
        take_prompts(schedule, share, microbatch);
    schedule->exhausted = microbatch->rows == 0;
    if (schedule->exhausted) return false;
    schedule->decodes[schedule->next_microbatch % (uint64_t)schedule->options.in_flight] = decodes;
    schedule->carriers += decodes;
    microbatch->number = schedule->next_microbatch++ - 1;
    schedule->in_flight++;
    return true;
}

void pen_schedule_complete(pen_schedule *schedule) {
    assert(schedule->in_flight > 0);
    schedule->exhausted = false;
    uint64_t oldest = schedule->next_microbatch - (uint64_t)schedule->in_flight--;
    schedule->carriers -= schedule->decodes[oldest % (uint64_t)schedule->options.in_flight];
}
