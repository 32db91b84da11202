/*
 * The distributor's promise: a request ends exactly once, whatever is moved, cancelled or lost meanwhile. Random
 * histories of one distributor and up to five leaders with toy engines, over a network that keeps the order between any
 * two and delays as it likes. Leaders steal, requests are cancelled and time out, replicas die with their messages half
 * sent, or are only believed to be dead; in the end everything drains. See check() for what must hold.
 *
 * A history follows from its number: test_distribution NUMBER runs that one alone.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "distributor.h"
#include "policy.h"
#include "replica_queue.h"

#ifdef NDEBUG
enum { HISTORIES = 100000 };
#else
enum { HISTORIES = 5000 };
#endif

enum { LEADERS = 5, FRONT = LEADERS, NODES, REQUESTS = 14, SLOTS = 2, PARCEL = 3, ENDLESS = 1 << 20 };
#define MS INT64_C(1000000)
#define S  (1000 * MS)

/* ---- Messages ---------------------------------------------------------------------------------------------------- */

typedef enum message_kind {
    DISPATCH,
    CANCEL,
    ADOPTED,
    LOST,
    DRAIN,
    STARTED,
    TOKENS,
    ENDED,
    MOVED,
    TAKEN,
    LOAD,
    DRAINED,
    ASK,
    GIVE
} message_kind;
typedef enum end_reason { FINISHED, CANCELLED, EXPIRED } end_reason;

typedef struct message {
    message_kind kind;
    pen_stamp stamp;
    int replica;         /* LOST; MOVED: the thief */
    int position, count; /* TOKENS: where they begin in the output; GIVE: entries */
    end_reason reason;   /* ENDED */
    union {
        pen_queued entries[PARCEL];
        pen_replica_load load;
        pen_steal_ask ask;
        pen_queue_counts counts;
    };
    struct message *next;
} message;

typedef struct channel {
    message *head, *tail;
} channel;

/* ---- The world --------------------------------------------------------------------------------------------------- */

/* What the test knows of a request. */
typedef struct model {
    pen_admission admission;
    int64_t admitted_ns;
    bool dispatched, started, cancelled;
    int delivered, ends;
    uint32_t attempts_started; /* bits */
} model;

/* What a request's payload says: where in the output its life goes on. */
typedef struct payload {
    int position;
} payload;

typedef struct run {
    pen_queued entry;
    int position;
} run;

typedef struct leader {
    bool alive;   /* its process */
    bool lost;    /* … is believed to be dead by the front end */
    bool drained; /* … has said so, and the front end knows */
    bool draining, has_said;
    bool buried[LEADERS]; /* whom it has heard to be lost */
    int slots, running;
    double speed;
    run runs[SLOTS];
    pen_replica_queue *queue;
    pen_queued shadow[REQUESTS * 4]; /* what must be in the queue */
    int shadows;
} leader;

static struct world {
    uint64_t random;
    int64_t now_ns;
    int leaders, most_lost, lost;
    channel channels[NODES][NODES]; /* [from][to] */
    bool slow[NODES][NODES];
    leader nodes[LEADERS];
    pen_distributor *distributor;
    model requests[REQUESTS];
    int admitted, depth;
    bool steals, draining;
    int payloads;          /* that exist */
    pen_queue_counts sums; /* of those who have drained */
    uint64_t dispatches;
} world;

/* What happened in all histories, so that they are known to try what they are for. */
static struct seen {
    int steals, moved_first, taken_first, forwarded, stale_lives, retries, expired_here, expired_there, cancelled_here,
        moved_on, overdue;
} seen;

static uint64_t history; /* the one that runs */

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            print_error("history %llu: %s: ", (unsigned long long)history, #condition);                                \
            print_error(__VA_ARGS__);                                                                                  \
            fail();                                                                                                    \
        }                                                                                                              \
    } while (0)

static int below(int limit) {
    world.random += 0x9E3779B97F4A7C15U;
    uint64_t z = world.random;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return (int)((z ^ (z >> 31)) % (uint64_t)limit);
}

static bool one_in(int n) {
    return below(n) == 0;
}

/* ---- The network ------------------------------------------------------------------------------------------------- */

static message *spare; /* messages of all histories, to be used again */

static message *new_message(message_kind kind, pen_stamp stamp) {
    message *m = spare;
    if (m)
        spare = m->next;
    else
        m = malloc(sizeof *m);
    assert_non_null(m);
    m->kind = kind;
    m->stamp = stamp;
    m->next = NULL;
    return m;
}

static void free_payload(pen_queued *entry) {
    free(entry->payload);
    entry->payload = NULL;
    world.payloads--;
}

static void discard(message *m) {
    int count = m->kind == DISPATCH ? 1 : m->kind == GIVE ? m->count : 0;
    for (int i = 0; i < count; i++) free_payload(&m->entries[i]);
    m->next = spare;
    spare = m;
}

static message *receive(channel *c) {
    message *m = c->head;
    if (m) c->head = m->next;
    return m;
}

static void post(int from, int to, message *m) {
    if (to != FRONT && (from == FRONT ? world.nodes[to].lost : world.nodes[from].buried[to])) {
        discard(m);
        return;
    }
    channel *c = &world.channels[from][to];
    if (c->head)
        c->tail->next = m;
    else
        c->head = m;
    c->tail = m;
}

static void post_plain(int from, int to, message_kind kind, pen_stamp stamp) {
    post(from, to, new_message(kind, stamp));
}

/* The channel loses all but its first `keep` messages. */
static void cut(channel *c, int keep) {
    message **at = &c->head;
    c->tail = NULL;
    for (; *at && keep > 0; keep--) {
        c->tail = *at;
        at = &(*at)->next;
    }
    message *rest = *at;
    *at = NULL;
    while (rest) {
        message *next = rest->next;
        discard(rest);
        rest = next;
    }
}

static int length_of(const channel *c) {
    int length = 0;
    for (const message *m = c->head; m; m = m->next) length++;
    return length;
}

/* ---- Leaders ----------------------------------------------------------------------------------------------------- */

static void say_ended(int self, pen_queued *entry, end_reason reason) {
    message *m = new_message(ENDED, entry->stamp);
    m->reason = reason;
    post(self, FRONT, m);
    free_payload(entry);
}

static void push(int self, const pen_queued *entry) {
    leader *l = &world.nodes[self];
    assert_int_equal(pen_replica_queue_push(l->queue, entry), PEN_OK);
    l->shadow[l->shadows++] = *entry;
}

/* It has left the queue. */
static void strike(int self, pen_stamp stamp) {
    leader *l = &world.nodes[self];
    for (int i = 0; i < l->shadows; i++) {
        if (l->shadow[i].stamp.id != stamp.id || l->shadow[i].stamp.attempt != stamp.attempt) continue;
        l->shadow[i] = l->shadow[--l->shadows];
        return;
    }
    CHECK(false, "request %d was not in the queue of %d\n", (int)stamp.id, self);
}

static pen_replica_load load_of(const leader *l) {
    pen_replica_load load = {.queued = pen_replica_queue_length(l->queue),
                             .running = l->running,
                             .queued_ms = pen_replica_queue_cost_ms(l->queue),
                             .busy_s = (double)world.now_ns * 1e-9,
                             .planned_ms = (double)world.now_ns * 1e-6 * l->speed,
                             .full_ms = (double)world.now_ns * 1e-6};
    for (int i = 0; i < l->running; i++) load.running_ms += l->runs[i].entry.cost_ms;
    return load;
}

static void leader_cancels(int self, pen_stamp stamp) {
    leader *l = &world.nodes[self];
    for (int i = 0; i < l->running; i++) {
        pen_queued entry = l->runs[i].entry;
        if (entry.stamp.id != stamp.id || entry.stamp.attempt != stamp.attempt) continue;
        l->runs[i] = l->runs[--l->running];
        say_ended(self, &entry, CANCELLED);
        return;
    }
    pen_queued entry;
    int thief;
    switch (pen_replica_queue_cancel(l->queue, stamp, &entry, &thief)) {
    case PEN_CANCEL_QUEUED:
        strike(self, entry.stamp);
        say_ended(self, &entry, CANCELLED);
        break;
    case PEN_CANCEL_GIVEN:
        seen.forwarded++;
        post_plain(self, thief, CANCEL, entry.stamp);
        break;
    case PEN_CANCEL_ELSEWHERE: break;
    }
}

static void leader_gives(int self, int thief, const pen_steal_ask *ask) {
    leader *l = &world.nodes[self];
    message *m = new_message(GIVE, (pen_stamp){0});
    pen_replica_load load = load_of(l);
    int before = pen_replica_queue_length(l->queue);
    m->count = pen_replica_queue_give(l->queue, thief, ask, &load, l->speed, world.now_ns, m->entries, PARCEL);
    CHECK(m->count <= (before + 1) / 2 && m->count <= ask->most, "%d of %d given\n", m->count, before);
    CHECK(!l->draining || m->count == 0, "%d given while draining\n", m->count);
    for (int i = 0; i < m->count; i++) {
        strike(self, m->entries[i].stamp);
        message *moved = new_message(MOVED, m->entries[i].stamp);
        moved->replica = thief;
        post(self, FRONT, moved);
    }
    seen.steals += m->count;
    post(self, thief, m);
}

static void leader_takes(int self, int victim, const message *m) {
    leader *l = &world.nodes[self];
    for (int i = 0; i < m->count; i++) {
        push(self, &m->entries[i]);
        seen.moved_on += m->entries[i].stamp.hop > 1;
        post_plain(self, FRONT, TAKEN, m->entries[i].stamp);
    }
    pen_replica_queue_took(l->queue, victim, m->count, world.now_ns);
}

static void bury(int self, int lost) {
    world.nodes[self].buried[lost] = true;
    cut(&world.channels[lost][self], 0);
    pen_replica_queue_lost(world.nodes[self].queue, lost);
}

static void leader_hears(int self, int from, message *m) {
    leader *l = &world.nodes[self];
    switch (m->kind) {
    case DISPATCH: push(self, &m->entries[0]); break;
    case CANCEL: leader_cancels(self, m->stamp); break;
    case ADOPTED: pen_replica_queue_adopted(l->queue, m->stamp); break;
    case LOST: bury(self, m->replica); break;
    case LOAD: pen_replica_queue_hear(l->queue, from, &m->load); break;
    case ASK: leader_gives(self, from, &m->ask); break;
    case GIVE: leader_takes(self, from, m); break;
    case DRAIN:
        l->draining = true;
        pen_replica_queue_drain(l->queue);
        break;
    default: fail_msg("a leader got a message of kind %d", (int)m->kind);
    }
    m->count = 0;
    if (m->kind == DISPATCH) m->kind = DRAIN; /* its payload is the queue's now */
    discard(m);
}

/* Nobody who has waited for 5 s is overtaken by who has not, or came later. */
static void check_patience(int self, const pen_queued *started) {
    const leader *l = &world.nodes[self];
    for (int i = 0; i < l->shadows; i++) {
        const pen_queued *other = &l->shadow[i];
        if (world.now_ns - other->arrived_ns < 5 * S) continue;
        seen.overdue++;
        CHECK(started->arrived_ns <= other->arrived_ns, "request %d overtook %d\n", (int)started->stamp.id,
              (int)other->stamp.id);
    }
}

static void leader_starts(int self) {
    leader *l = &world.nodes[self];
    pen_queued entry;
    if (l->running == l->slots || !pen_replica_queue_pop(l->queue, world.now_ns, &entry)) return;
    model *r = &world.requests[entry.stamp.id];
    strike(self, entry.stamp);
    check_patience(self, &entry);
    uint32_t attempt = 1U << entry.stamp.attempt;
    CHECK(!(r->attempts_started & attempt), "request %d starts again\n", (int)entry.stamp.id);
    r->attempts_started |= attempt;
    l->runs[l->running++] = (run){entry, ((payload *)entry.payload)->position};
    post_plain(self, FRONT, STARTED, entry.stamp);
}

static void leader_computes(int self) {
    leader *l = &world.nodes[self];
    if (l->running == 0) return;
    int i = below(l->running), output = world.requests[l->runs[i].entry.stamp.id].admission.output;
    run *r = &l->runs[i];
    int count = 1 + below(3);
    if (count > output - r->position) count = output - r->position;
    if (count > 0) {
        message *m = new_message(TOKENS, r->entry.stamp);
        m->position = r->position;
        m->count = count;
        post(self, FRONT, m);
        r->position += count;
    }
    if (r->position < output) return;
    pen_queued entry = r->entry;
    *r = l->runs[--l->running];
    say_ended(self, &entry, FINISHED);
}

static void leader_asks(int self) {
    leader *l = &world.nodes[self];
    pen_replica_load load = load_of(l);
    int victim;
    pen_steal_ask ask;
    if (!pen_replica_queue_ask(l->queue, &load, l->speed, l->slots - l->running, world.now_ns, &victim, &ask)) return;
    CHECK(world.steals && !l->draining && victim != self, "%d asks %d\n", self, victim);
    message *m = new_message(ASK, (pen_stamp){0});
    m->ask = ask;
    post(self, victim, m);
}

static void leader_reports(int self) {
    for (int to = 0; to < NODES; to++) {
        if (to == self || (to != FRONT && to >= world.leaders)) continue;
        message *m = new_message(LOAD, (pen_stamp){0});
        m->load = load_of(&world.nodes[self]);
        post(self, to, m);
    }
}

static void leader_turns(int self) {
    leader *l = &world.nodes[self];
    pen_queued entry;
    while (pen_replica_queue_expire(l->queue, world.now_ns, &entry)) {
        seen.expired_there++;
        strike(self, entry.stamp);
        say_ended(self, &entry, EXPIRED);
    }
    if (one_in(4)) leader_reports(self);
    leader_starts(self);
    leader_computes(self);
    leader_asks(self);
    CHECK(pen_replica_queue_length(l->queue) == l->shadows, "queue of %d\n", self);
    if (!l->draining || l->has_said || l->running > 0 || !pen_replica_queue_is_still(l->queue)) return;
    l->has_said = true;
    message *m = new_message(DRAINED, (pen_stamp){0});
    m->counts = pen_replica_queue_counts(l->queue);
    post(self, FRONT, m);
}

/* ---- The front end ----------------------------------------------------------------------------------------------- */

static void end(int64_t id, end_reason reason) {
    model *r = &world.requests[id];
    r->ends++;
    CHECK(r->ends == 1, "request %d ended %d times\n", (int)id, r->ends);
    if (reason == FINISHED) CHECK(r->delivered == r->admission.output, "request %d: %d\n", (int)id, r->delivered);
    if (reason == CANCELLED) CHECK(r->cancelled, "request %d was cancelled by nobody\n", (int)id);
    if (reason == EXPIRED)
        CHECK(!r->started && r->admission.timeout_ns > 0 && world.now_ns - r->admitted_ns >= r->admission.timeout_ns,
              "request %d\n", (int)id);
}

static void dispatch(const pen_action *action) {
    model *r = &world.requests[action->stamp.id];
    int64_t patient_ns = r->admitted_ns + 5 * S;
    for (int i = 0; i < world.admitted; i++) {
        const model *other = &world.requests[i];
        if (other->dispatched || other->ends > 0 || other == r || world.now_ns < other->admitted_ns + 5 * S) continue;
        CHECK(patient_ns <= other->admitted_ns + 5 * S, "request %d overtook %d\n", (int)action->stamp.id, i);
    }
    CHECK(r->ends == 0 && action->stamp.hop == 0, "request %d\n", (int)action->stamp.id);
    CHECK(pen_distributor_account(world.distributor, action->replica).waiting <= world.depth, "%d\n", action->replica);
    CHECK(action->stamp.attempt == 0 || r->dispatched, "request %d\n", (int)action->stamp.id);
    seen.retries += action->stamp.attempt > 0;
    world.dispatches++;
    r->dispatched = true;
    message *m = new_message(DISPATCH, action->stamp);
    m->entries[0] = (pen_queued){
        .stamp = action->stamp,
        .priority = r->admission.priority,
        .arrived_ns = r->admitted_ns,
        .deadline_ns = r->admission.timeout_ns > 0 && !r->started ? r->admitted_ns + r->admission.timeout_ns : 0,
        .cost_ms = action->cost_ms,
        .prompt_ms = action->prompt_ms,
        .payload = malloc(sizeof(payload)),
        .bytes = sizeof(payload),
    };
    assert_non_null(m->entries[0].payload);
    *(payload *)m->entries[0].payload = (payload){r->delivered};
    world.payloads++;
    post(FRONT, action->replica, m);
}

static void front_acts(void) {
    pen_action action;
    while (pen_distributor_next(world.distributor, world.now_ns, &action)) {
        switch (action.kind) {
        case PEN_ACTION_DISPATCH: dispatch(&action); break;
        case PEN_ACTION_CANCEL: post_plain(FRONT, action.replica, CANCEL, action.stamp); break;
        case PEN_ACTION_ADOPTED: post_plain(FRONT, action.replica, ADOPTED, action.stamp); break;
        case PEN_ACTION_EXPIRED:
            seen.expired_here++;
            end(action.stamp.id, EXPIRED);
            break;
        case PEN_ACTION_CANCELLED:
            seen.cancelled_here++;
            end(action.stamp.id, CANCELLED);
            break;
        }
    }
}

static void front_drained(int from, const pen_queue_counts *counts) {
    world.nodes[from].drained = true;
    world.sums.received += counts->received;
    world.sums.taken += counts->taken;
    world.sums.given += counts->given;
    CHECK(counts->received + counts->taken == counts->started + counts->given + counts->removed, "at %d\n", from);
}

static void front_hears(int from, message *m) {
    pen_distributor *d = world.distributor;
    model *r = &world.requests[m->stamp.id];
    uint64_t stolen;
    switch (m->kind) {
    case STARTED:
        if (pen_distributor_started(d, from, m->stamp)) r->started = true;
        break;
    case TOKENS:
        if (!pen_distributor_progressed(d, from, m->stamp, m->count)) break;
        CHECK(m->position == r->delivered, "request %d: %d behind %d\n", (int)m->stamp.id, m->position, r->delivered);
        r->delivered += m->count;
        break;
    case ENDED:
        if (pen_distributor_ended(d, from, m->stamp))
            end(m->stamp.id, m->reason);
        else
            seen.stale_lives++;
        break;
    case MOVED:
        stolen = pen_distributor_account(d, m->replica).stolen;
        assert_int_equal(pen_distributor_moved(d, from, m->stamp, m->replica), PEN_OK);
        seen.moved_first += pen_distributor_account(d, m->replica).stolen > stolen;
        break;
    case TAKEN:
        stolen = pen_distributor_account(d, from).stolen;
        assert_int_equal(pen_distributor_taken(d, from, m->stamp), PEN_OK);
        seen.taken_first += pen_distributor_account(d, from).stolen > stolen;
        break;
    case LOAD: pen_distributor_report(d, from, &m->load, world.now_ns); break;
    case DRAINED: front_drained(from, &m->counts); break;
    default: fail_msg("the front end got a message of kind %d", (int)m->kind);
    }
    discard(m);
}

static void front_admits(void) {
    static const uint64_t hashes[] = {11, 12, 13, 14, 15, 16, 17, 18};
    if (world.admitted == REQUESTS) return;
    model r = {.admitted_ns = world.now_ns};
    r.admission = (pen_admission){.prompt = 1 + below(200),
                                  .output = one_in(4) ? ENDLESS : below(12),
                                  .choices = 1,
                                  .priority = below(3),
                                  .timeout_ns = one_in(3) ? 1 + below(4000) * MS : 0,
                                  .prefix = hashes,
                                  .prefix_count = below(8)};
    int64_t id;
    bool has_room = pen_distributor_has_room(world.distributor);
    pen_status status = pen_distributor_admit(world.distributor, &r.admission, world.now_ns, &id);
    assert_int_equal(status, has_room ? PEN_OK : PEN_QUEUE_FULL);
    if (!has_room) return;
    assert_int_equal(id, world.admitted);
    CHECK(pen_distributor_predict_ttft(world.distributor, id) > 0, "request %d\n", (int)id);
    world.requests[world.admitted++] = r;
}

static void front_cancels(int id) {
    world.requests[id].cancelled = true;
    pen_distributor_cancel(world.distributor, id);
}

/* ---- Losses ------------------------------------------------------------------------------------------------------ */

/* The process ends. Some of what it has sent never left. */
static void die(int self) {
    leader *l = &world.nodes[self];
    l->alive = false;
    for (int to = 0; to < NODES; to++) {
        channel *c = &world.channels[self][to];
        cut(c, below(1 + length_of(c)));
        if (one_in(2)) cut(c, 0);
        cut(&world.channels[to][self], 0);
    }
    for (int i = 0; i < l->running; i++) free_payload(&l->runs[i].entry);
    l->running = 0;
    world.payloads -= pen_replica_queue_length(l->queue); /* freed with the queue */
    pen_replica_queue_destroy(l->queue);
    l->queue = NULL;
}

/* The front end finds out, or believes so. */
static void lose(int lost) {
    world.nodes[lost].lost = true;
    cut(&world.channels[lost][FRONT], 0);
    cut(&world.channels[FRONT][lost], 0);
    pen_distributor_lost(world.distributor, lost);
    for (int to = 0; to < world.leaders; to++) {
        if (to == lost || world.nodes[to].lost) continue;
        message *m = new_message(LOST, (pen_stamp){0});
        m->replica = lost;
        post(FRONT, to, m);
    }
}

static void strike_down(void) {
    int victim = below(world.leaders);
    leader *l = &world.nodes[victim];
    bool is_first = l->alive && !l->lost;
    if (is_first && world.lost == world.most_lost) return;
    world.lost += is_first;
    if (l->alive && one_in(2))
        die(victim);
    else if (!l->lost)
        lose(victim);
}

/* ---- Histories --------------------------------------------------------------------------------------------------- */

static void deliver(void) {
    int start = below(NODES * NODES);
    for (int k = 0; k < NODES * NODES; k++) {
        int from = (start + k) % (NODES * NODES) / NODES, to = (start + k) % NODES;
        channel *c = &world.channels[from][to];
        if (!c->head || (world.slow[from][to] && !one_in(8))) continue;
        bool reaches = to == FRONT ? !world.nodes[from].lost
                                   : world.nodes[to].alive && (from == FRONT || !world.nodes[to].buried[from]);
        message *m = receive(c);
        if (!reaches)
            discard(m);
        else if (to == FRONT)
            front_hears(from, m);
        else
            leader_hears(to, from, m);
        return;
    }
}

static void check(void) {
    int owned = 0;
    for (int i = 0; i < world.leaders; i++) {
        pen_replica_account account = pen_distributor_account(world.distributor, i);
        CHECK(account.waiting >= 0 && account.waiting <= account.requests, "replica %d\n", i);
        CHECK(account.outstanding_ms >= 0 && (account.requests > 0 || account.outstanding_ms == 0), "replica %d\n", i);
        CHECK(!world.nodes[i].lost || account.requests == 0, "replica %d\n", i);
        owned += account.requests;
    }
    CHECK(owned + pen_distributor_waiting(world.distributor) == pen_distributor_open(world.distributor), "%d\n", owned);
}

static void step(void) {
    int what = below(100);
    if (what < 50)
        deliver();
    else if (what < 75) {
        int self = below(world.leaders);
        if (world.nodes[self].alive) leader_turns(self);
    } else if (what < 90)
        front_acts();
    else if (what < 98)
        world.now_ns += below(20) * MS;
    else if (what < 99)
        world.now_ns += one_in(4) ? below(6000) * MS : below(300) * MS;
    else if (one_in(4))
        strike_down();
}

static void begin(uint64_t number) {
    history = number;
    memset(&world, 0, sizeof world);
    world.random = number * 0xD1342543DE82EF95U;
    world.leaders = 1 + below(LEADERS);
    world.most_lost = one_in(2) ? below(world.leaders) : 0;
    world.depth = 1 + below(8);
    world.steals = !one_in(8);
    int slots[LEADERS];
    pen_token_cost costs[LEADERS];
    for (int i = 0; i < world.leaders; i++) {
        slots[i] = 1 + below(SLOTS);
        costs[i] = (pen_token_cost){0.1 * (1 + below(20)), 0.3 * (1 + below(20))};
        world.nodes[i] = (leader){.alive = true, .slots = slots[i], .speed = 0.5 + 0.5 * below(3)};
        assert_int_equal(pen_replica_queue_create(i, world.leaders, world.steals, costs[i], &world.nodes[i].queue),
                         PEN_OK);
    }
    for (int from = 0; from < NODES; from++)
        for (int to = 0; to < NODES; to++) world.slow[from][to] = one_in(5);
    pen_distributor_options options = {.replicas = world.leaders,
                                       .policy = pen_policies[below(pen_policy_count)].name,
                                       .max_queue = 1 + below(8),
                                       .depth = world.depth,
                                       .costs = costs,
                                       .slots = slots};
    assert_int_equal(pen_distributor_create(&options, &world.distributor), PEN_OK);
}

/* Requests come and are cancelled. */
static void live(void) {
    int steps = 50 + below(300), admissions = 2 + below(12), cancels = 10 + below(90);
    for (int i = 0; i < steps; i++) {
        if (one_in(admissions)) front_admits();
        if (world.admitted > 0 && one_in(cancels)) front_cancels(below(world.admitted));
        step();
        if (one_in(16)) check();
    }
}

static bool has_drained(void) {
    for (int i = 0; i < world.leaders; i++)
        if (!world.nodes[i].lost && !world.nodes[i].drained) return false;
    return true;
}

/* Whoever is dead is found out; what would never end is cancelled; then everything ends, and drains. */
static void wind_up(void) {
    for (int i = 0; i < world.admitted; i++)
        if (world.requests[i].admission.output == ENDLESS) front_cancels(i);
    for (int i = 0; !world.draining || !has_drained(); i++) {
        CHECK(i < 30000, "%d requests never end, draining %d\n", pen_distributor_open(world.distributor),
              world.draining);
        step();
        if (i % 64 == 0) {
            check();
            for (int k = 0; k < world.leaders; k++)
                if (!world.nodes[k].alive && !world.nodes[k].lost) lose(k);
        }
        if (world.draining || pen_distributor_open(world.distributor) > 0) continue;
        world.draining = true;
        for (int to = 0; to < world.leaders; to++) post_plain(FRONT, to, DRAIN, (pen_stamp){0});
    }
}

static void finish(void) {
    check();
    CHECK(pen_distributor_open(world.distributor) == 0, "\n");
    for (int id = 0; id < world.admitted; id++) CHECK(world.requests[id].ends == 1, "request %d has not ended\n", id);
    for (int i = 0; i < world.leaders; i++) {
        pen_replica_account account = pen_distributor_account(world.distributor, i);
        CHECK(account.requests == 0 && account.waiting == 0 && account.outstanding_ms == 0, "replica %d\n", i);
        leader *l = &world.nodes[i];
        if (l->alive && !l->lost) CHECK(l->running == 0 && pen_replica_queue_is_still(l->queue), "replica %d\n", i);
        if (l->alive) die(i);
    }
    if (world.lost == 0) {
        CHECK(world.sums.given == world.sums.taken, "stolen\n");
        CHECK(world.sums.received == world.dispatches, "dispatched\n");
    }
    for (int from = 0; from < NODES; from++)
        for (int to = 0; to < NODES; to++) cut(&world.channels[from][to], 0);
    CHECK(world.payloads == 0, "%d payloads are left\n", world.payloads);
    pen_distributor_destroy(world.distributor);
}

static void run_history(uint64_t number) {
    begin(number);
    live();
    wind_up();
    finish();
}

static void test_every_request_ends_once(void **state) {
    const char *only = *state;
    if (only) {
        run_history(strtoull(only, NULL, 10));
    } else {
        for (uint64_t number = 1; number <= HISTORIES; number++) run_history(number);
        const int *counts = (const int *)&seen;
        for (size_t i = 0; i < sizeof seen / sizeof *counts; i++) assert_true(counts[i] > 0);
    }
    while (spare) {
        message *next = spare->next;
        free(spare);
        spare = next;
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_every_request_ends_once, argc > 1 ? argv[1] : NULL),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
