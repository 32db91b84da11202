/* The worker; see worker.h. */
#include "worker.h"

#include "clock.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef enum phase { KNOWN, RECEIVING, COMPUTING, SENDING } phase;

typedef struct entry {
    pen_step step;
    phase phase;
    int32_t *tokens; /* [rows]; stage 0 */
    void *message;   /* the choices; last stage */
    pen_event *computed;
    pen_transfer receive, send;
    bool received;
    void *history; /* [history_capacity] the step's message of histories; last stage */
    size_t history_capacity;
    pen_transfer history_receive; /* 0: there is none, or it has come */
    int64_t begin_ns;             /* of computing; for the trace */
} entry;

/* The table of a sequence as the steps have told it. */
typedef struct table {
    uint32_t epoch;
    int count;
    int32_t *blocks[PEN_KV_GROUPS];
} table;

/* What a sequence in a slot has said, on the last stage; no history where it never mattered. */
typedef struct slot_history {
    pen_history *history;
    uint32_t epoch;
    bool begun;
} slot_history;

struct pen_worker {
    pen_worker_options options;
    bool first, last;
    /* A ring of steps: [head, next) were run, [next, tail) were not. Counted for ever, taken modulo options.steps. */
    uint64_t head, next, tail;
    uint64_t traced;   /* steps below this one are in the trace, */
    int64_t traced_ns; /* and the last of them ended then */
    entry *entries;
    table *tables; /* [limits.sequences] */
    int32_t *table_memory;
    pen_run *runs;       /* [limits.rows] scratch of one batch */
    int32_t *logit_rows; /* [limits.logit_rows] */
    /* On the last stage: */
    slot_history *histories; /* [limits.sequences] */
    pen_told *told;          /* [limits.rows] what a step tells */
    pen_logit_edits *edits;  /* [limits.logit_rows] of one batch */
};

static entry *entry_at(const pen_worker *worker, uint64_t i) {
    return &worker->entries[i % (uint64_t)worker->options.steps];
}

static int slot_of(const pen_worker *worker, const entry *e) {
    return (int)(e->step.number % (uint64_t)worker->options.slots);
}

static bool slot_is_free(const pen_worker *worker, uint64_t i) {
    return i < worker->head + (uint64_t)worker->options.slots;
}

static pen_buffer *slot_rows(const pen_worker *worker, const entry *e) {
    return pen_stage_rows(worker->options.stage, slot_of(worker, e));
}

static size_t row_bytes(const pen_worker *worker, const entry *e) {
    return (size_t)e->step.rows * (size_t)worker->options.hidden * sizeof(float);
}

/* ---- Making ----------------------------------------------------------------------------------------------------- */

static pen_status make_entry(pen_worker *worker, entry *e) {
    const pen_wire_limits *limits = &worker->options.limits;
    PEN_TRY(pen_step_create(limits, &e->step));
    PEN_TRY(pen_event_create(worker->options.device, &e->computed));
    if (worker->first) e->tokens = malloc((size_t)limits->rows * sizeof *e->tokens);
    if (worker->last) e->message = malloc(pen_wire_choices_bytes(limits));
    if ((worker->first && !e->tokens) || (worker->last && !e->message))
        return pen_fail(PEN_NO_MEMORY, "no memory for a step of %d rows", limits->rows);
    return PEN_OK;
}

static pen_status make_histories(pen_worker *worker) {
    const pen_wire_limits *limits = &worker->options.limits;
    worker->histories = calloc((size_t)limits->sequences, sizeof *worker->histories);
    worker->told = calloc((size_t)limits->rows, sizeof *worker->told);
    worker->edits = calloc((size_t)limits->logit_rows + 1, sizeof *worker->edits);
    if (worker->histories && worker->told && worker->edits) return PEN_OK;
    return pen_fail(PEN_NO_MEMORY, "no memory for the histories of %d sequences", limits->sequences);
}

static pen_status fill(pen_worker *worker) {
    const pen_wire_limits *limits = &worker->options.limits;
    size_t table_blocks = (size_t)pen_kv_blocks_for(limits->context), groups = (size_t)limits->kv.count;
    worker->entries = calloc((size_t)worker->options.steps, sizeof *worker->entries);
    worker->tables = calloc((size_t)limits->sequences, sizeof *worker->tables);
    worker->table_memory = calloc((size_t)limits->sequences * groups * table_blocks, sizeof *worker->table_memory);
    worker->runs = calloc((size_t)limits->rows, sizeof *worker->runs);
    worker->logit_rows = calloc((size_t)limits->logit_rows + 1, sizeof *worker->logit_rows);
    if (!worker->entries || !worker->tables || !worker->table_memory || !worker->runs || !worker->logit_rows)
        return pen_fail(PEN_NO_MEMORY, "no memory for the steps of a stage");
    if (worker->last) PEN_TRY(make_histories(worker));
    for (size_t i = 0; i < (size_t)limits->sequences * groups; i++)
        worker->tables[i / groups].blocks[i % groups] = worker->table_memory + i * table_blocks;
    for (int i = 0; i < worker->options.steps; i++) PEN_TRY(make_entry(worker, &worker->entries[i]));
    size_t rows_bytes = (size_t)limits->rows * (size_t)worker->options.hidden * sizeof(float);
    for (int i = 0; i < worker->options.slots; i++)
        PEN_TRY(pen_link_prepare_rows(worker->options.link, i, worker->options.device,
                                      pen_stage_rows(worker->options.stage, i), rows_bytes));
    return PEN_OK;
}

pen_status pen_worker_create(const pen_worker_options *options, pen_worker **out) {
    assert(options->slots <= PEN_LANES);
    pen_worker *worker = calloc(1, sizeof *worker);
    if (!worker) return pen_fail(PEN_NO_MEMORY, "no memory for the steps of a stage");
    worker->options = *options;
    worker->first = options->index == 0;
    worker->last = options->index == options->stages - 1;
    pen_status status = fill(worker);
    if (status != PEN_OK) {
        pen_worker_destroy(worker);
        return status;
    }
    *out = worker;
    return PEN_OK;
}

void pen_worker_destroy(pen_worker *worker) {
    if (!worker) return;
    for (int i = 0; worker->entries && i < worker->options.steps; i++) {
        entry *e = &worker->entries[i];
        pen_step_destroy(&e->step);
        if (e->computed) pen_event_destroy(e->computed);
        free(e->tokens);
        free(e->message);
        free(e->history);
    }
    for (int i = 0; worker->histories && i < worker->options.limits.sequences; i++)
        pen_history_destroy(worker->histories[i].history);
    free(worker->histories);
    free(worker->told);
    free(worker->edits);
    free(worker->entries);
    free(worker->tables);
    free(worker->table_memory);
    free(worker->runs);
    free(worker->logit_rows);
    free(worker);
}

/* ---- Steps ------------------------------------------------------------------------------------------------------ */

pen_step *pen_worker_claim(pen_worker *worker) {
    if (worker->tail - worker->head == (uint64_t)worker->options.steps) return NULL;
    return &entry_at(worker, worker->tail)->step;
}

/* Waits for what the leader sends beside the step, if it does. Messages come in the order of the steps. */
static pen_status receive_history(pen_worker *worker, entry *e) {
    size_t bytes = (size_t)e->step.history_bytes;
    e->history_receive = 0;
    if (!worker->last || bytes == 0) return PEN_OK;
    if (bytes > e->history_capacity) {
        free(e->history);
        e->history = malloc(bytes);
        e->history_capacity = e->history ? bytes : 0;
        if (!e->history) return pen_fail(PEN_NO_MEMORY, "no memory for %zu bytes of histories", bytes);
    }
    return pen_link_receive(worker->options.link, PEN_CHANNEL_HISTORY, 0, 0, e->history, bytes, &e->history_receive);
}

pen_status pen_worker_push(pen_worker *worker, const int32_t *tokens) {
    entry *e = entry_at(worker, worker->tail);
    /* Steps are numbered without holes, so a slot and its lane follow from the number. */
    if (e->step.number != worker->tail)
        return pen_fail(PEN_INTERNAL, "step %" PRIu64 " came where step %" PRIu64 " was due", e->step.number,
                        worker->tail);
    if (tokens) memcpy(e->tokens, tokens, (size_t)e->step.rows * sizeof *tokens);
    e->phase = KNOWN;
    e->received = false;
    PEN_TRY(receive_history(worker, e));
    worker->tail++;
    return pen_worker_receive(worker);
}

pen_status pen_worker_receive(pen_worker *worker) {
    if (worker->first) return PEN_OK;
    for (uint64_t i = worker->next; i < worker->tail && slot_is_free(worker, i); i++) {
        entry *e = entry_at(worker, i);
        if (e->phase != KNOWN) continue;
        PEN_TRY(pen_link_receive_rows(worker->options.link, worker->options.index - 1, slot_of(worker, e),
                                      slot_rows(worker, e), row_bytes(worker, e), &e->receive));
        e->phase = RECEIVING;
    }
    return PEN_OK;
}

/* Brings the sequences' tables up to this step. Only now: earlier steps were run with what the tables were then. */
static pen_status apply_tables(pen_worker *worker, const pen_step *step) {
    const int32_t *blocks = step->blocks;
    for (int i = 0; i < step->run_count; i++) {
        const pen_step_run *run = &step->runs[i];
        table *t = &worker->tables[run->sequence];
        if (t->epoch != run->epoch) {
            t->epoch = run->epoch;
            t->count = 0;
        }
        if (run->table_first > t->count)
            return pen_fail(PEN_INTERNAL, "bad step %" PRIu64 ": table of sequence %d has a hole at block %d",
                            step->number, run->sequence, t->count);
        for (int g = 0; g < worker->options.limits.kv.count; g++, blocks += run->table_count)
            memcpy(t->blocks[g] + run->table_first, blocks, (size_t)run->table_count * sizeof *blocks);
        if (run->table_first + run->table_count > t->count) t->count = run->table_first + run->table_count;
        if (t->count < pen_kv_blocks_for(run->position + run->rows))
            return pen_fail(PEN_INTERNAL, "bad step %" PRIu64 ": table of sequence %d ends before position %d",
                            step->number, run->sequence, run->position + run->rows);
    }
    uint64_t hash = 0;
    for (int i = 0; i < step->run_count; i++)
        for (int g = 0; g < worker->options.limits.kv.count; g++)
            hash = pen_wire_hash_table(hash, &step->runs[i], worker->options.limits.kv.windows[g],
                                       worker->tables[step->runs[i].sequence].blocks[g]);
    if (hash != step->table_hash)
        return pen_fail(PEN_INTERNAL, "step %" PRIu64 ": the block tables are not the leader's", step->number);
    return PEN_OK;
}

static pen_status tell(pen_worker *worker, const pen_step *step, const pen_told *told) {
    slot_history *slot = &worker->histories[told->sequence];
    if (!slot->history) PEN_TRY(pen_history_create(&slot->history));
    if (told->first == 0) {
        PEN_TRY(pen_history_begin(slot->history, &told->rules, told->biases, told->bans));
        slot->epoch = told->epoch;
        slot->begun = true;
    } else if (!slot->begun || slot->epoch != told->epoch || pen_history_count(slot->history) != told->first) {
        return pen_fail(PEN_INTERNAL, "bad step %" PRIu64 ": history of sequence %d has a hole before position %d",
                        step->number, told->sequence, told->first);
    }
    return pen_history_append(slot->history, told->tokens, told->count);
}

/* Brings the histories up to this step, and finds what they change in its logits. */
static pen_status apply_histories(pen_worker *worker, const entry *e) {
    const pen_step *step = &e->step;
    int count = 0, logits = 0;
    if (step->history_bytes > 0)
        PEN_TRY(pen_wire_decode_history(e->history, (size_t)step->history_bytes, &worker->options.limits, step->number,
                                        worker->told, &count));
    for (int i = 0; i < count; i++) PEN_TRY(tell(worker, step, &worker->told[i]));
    for (int i = 0; i < step->run_count; i++) {
        const pen_step_run *run = &step->runs[i];
        const slot_history *slot = &worker->histories[run->sequence];
        bool applies = slot->begun && slot->epoch == run->epoch;
        for (int end = logits + run->logit_rows; logits < end; logits++)
            worker->edits[logits] =
                applies ? pen_history_edits(slot->history, step->picks[logits].position) : (pen_logit_edits){NULL, 0};
    }
    return PEN_OK;
}

static pen_status compute(pen_worker *worker, entry *e) {
    const pen_step *step = &e->step;
    PEN_TRY(apply_tables(worker, step));
    if (worker->last) PEN_TRY(apply_histories(worker, e));
    pen_stage_copy_blocks(worker->options.stage, step->copies, step->copy_count);
    int row = 0, logits = 0;
    for (int i = 0; i < step->run_count; i++) {
        const pen_step_run *run = &step->runs[i];
        int32_t *const *blocks = worker->tables[run->sequence].blocks;
        worker->runs[i] = (pen_run){row, run->rows, run->position, {blocks[0], blocks[1]}};
        for (int l = 0; l < run->logit_rows; l++) worker->logit_rows[logits++] = row + run->logit_first + l;
        row += run->rows;
    }
    pen_batch batch = {.rows = step->rows,
                       .run_count = step->run_count,
                       .runs = worker->runs,
                       .tokens = e->tokens,
                       .logit_count = step->logit_count,
                       .logit_rows = worker->logit_rows,
                       .edits = worker->edits};
    if (worker->options.trace) e->begin_ns = pen_clock_ns();
    pen_meter_set(worker->options.meter, PEN_BUSY);
    pen_stage_run(worker->options.stage, slot_of(worker, e), &batch, worker->last ? step->picks : NULL);
    pen_event_record(e->computed);
    worker->options.meter->total.steps++;
    worker->options.meter->total.rows += (uint64_t)step->rows;
    return PEN_OK;
}

/* Writes the steps that were computed into the trace. One that was enqueued behind another began when that ended. */
static void trace_steps(pen_worker *worker) {
    while (worker->options.trace && worker->traced < worker->next) {
        const entry *e = entry_at(worker, worker->traced);
        if (!pen_event_done(e->computed)) return;
        pen_trace_slice slice = {.step = e->step.number,
                                 .begin_ns = e->begin_ns > worker->traced_ns ? e->begin_ns : worker->traced_ns,
                                 .end_ns = pen_clock_ns(),
                                 .rows = e->step.rows};
        for (int i = 0; i < e->step.run_count; i++) {
            const pen_step_run *run = &e->step.runs[i];
            slice.decode_rows += run->rows == 1 && run->logit_rows == 1;
            if (run->position + run->rows > slice.context) slice.context = run->position + run->rows;
        }
        pen_trace_add_slice(worker->options.trace, &slice);
        worker->traced_ns = slice.end_ns;
        worker->traced++;
    }
}

/* What was computed goes on: rows to the next stage, behind the event; choices, which the host must read first, to the
 * leader. */
static pen_status send_on(pen_worker *worker, entry *e) {
    const pen_worker_options *options = &worker->options;
    if (!worker->last)
        return pen_link_send_rows(options->link, options->index + 1, slot_of(worker, e), slot_rows(worker, e),
                                  row_bytes(worker, e), e->computed, &e->send);
    const pen_choice *choices = pen_stage_choices(options->stage, slot_of(worker, e));
    size_t bytes = pen_wire_encode_choices(e->step.number, choices, e->step.picks, e->step.logit_count,
                                           options->limits.plan_epoch, e->message);
    return pen_link_send(options->link, PEN_CHANNEL_TOKEN, 0, 0, e->message, bytes, NULL, &e->send);
}

/* Moves the steps that were computed on, and forgets the oldest ones that were sent. */
static pen_status finish_steps(pen_worker *worker, bool *moved) {
    trace_steps(worker);
    for (uint64_t i = worker->head; i < worker->next; i++) {
        entry *e = entry_at(worker, i);
        if (e->phase != COMPUTING) continue;
        if (worker->last && !pen_event_done(e->computed)) break;
        PEN_TRY(send_on(worker, e));
        e->phase = SENDING;
        *moved = true;
    }
    while (worker->head < worker->next) {
        entry *e = entry_at(worker, worker->head);
        if (e->phase != SENDING || !pen_link_done(worker->options.link, e->send, NULL)) break;
        trace_steps(worker); /* its place may be taken now */
        worker->head++;
        *moved = true;
    }
    return PEN_OK;
}

static bool is_ready(pen_worker *worker, entry *e) {
    if (e->history_receive != 0) {
        if (!pen_link_done(worker->options.link, e->history_receive, NULL)) return false;
        e->history_receive = 0;
    }
    if (worker->first) return slot_is_free(worker, worker->next);
    if (e->phase == RECEIVING && !e->received) e->received = pen_link_done(worker->options.link, e->receive, NULL);
    return e->received;
}

pen_status pen_worker_advance(pen_worker *worker, bool *moved) {
    PEN_TRY(finish_steps(worker, moved));
    PEN_TRY(pen_worker_receive(worker));
    if (worker->next == worker->tail) return PEN_OK;
    entry *e = entry_at(worker, worker->next);
    if (!is_ready(worker, e)) return PEN_OK;
    PEN_TRY(compute(worker, e));
    e->phase = COMPUTING;
    worker->next++;
    *moved = true;
    return finish_steps(worker, moved);
}

pen_worker_state pen_worker_about(const pen_worker *worker) {
    const entry *e = entry_at(worker, worker->next);
    pen_worker_state state = {PEN_IDLE, worker->next, PEN_CHANNEL_CONTROL};
    if (worker->next > worker->head && !pen_event_done(entry_at(worker, worker->next - 1)->computed)) {
        state.activity = PEN_BUSY;
        state.step = worker->next - 1;
    } else if (worker->next < worker->tail && e->history_receive != 0) { /* it left long before the rows did */
        state.activity = PEN_WAIT_RECEIVE;
        state.channel = PEN_CHANNEL_HISTORY;
    } else if (worker->next < worker->tail) {
        state.activity = !worker->first && e->phase == RECEIVING ? PEN_WAIT_RECEIVE : PEN_WAIT_SEND;
        state.channel = state.activity == PEN_WAIT_SEND && worker->last ? PEN_CHANNEL_TOKEN : PEN_CHANNEL_ACTIVATION;
    }
    return state;
}

int64_t pen_worker_due_ns(const pen_worker *worker) {
    for (uint64_t i = worker->head; i < worker->next; i++) {
        const pen_event *computed = entry_at(worker, i)->computed;
        if (!pen_event_done(computed)) return pen_event_due_ns(computed);
    }
    return 0;
}

pen_status pen_worker_time(pen_worker *worker, const pen_batch *batch, const pen_pick *picks, double *ms) {
    int64_t begin = pen_clock_ns();
    pen_stage_run(worker->options.stage, 0, batch, worker->last ? picks : NULL);
    PEN_TRY(pen_device_sync(worker->options.device));
    *ms = (double)(pen_clock_ns() - begin) * 1e-6;
    return PEN_OK;
}
