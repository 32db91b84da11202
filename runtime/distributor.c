/*
 * The distributor; see distributor.h.
 *
 * A request that is open is in the ledger, a hash table by id, and either in the buffer, a list, or with an owner,
 * whose account it is in: with its cost, which follows from the request alone and so leaves the account as it came.
 */
#include "distributor.h"

#include "kernels.h" /* PEN_KV_BLOCK */
#include "policy.h"
#include "prefix_memory.h"
#include "replica_weight.h"
#include "urgency.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LEAST_BUCKETS = 64, NOBODY = -1 };

typedef struct request {
    pen_stamp stamp;
    pen_admission admission;
    int64_t admitted_ns;
    int owner;         /* NOBODY: it is in the buffer */
    int victim;        /* who gave it to its owner, as long as the owner has not said that he has it; or NOBODY */
    bool started;      /* with this owner */
    bool has_begun;    /* with any: it waits for as long as it takes */
    bool cancelled;    /* … is the wish */
    bool is_due;       /* … which the owner, or who waits for it, is yet to be told */
    int64_t delivered; /* tokens of its output */
    int64_t prompt_ns; /* what computing its prompt costs the owner: nothing once a token has come */
    struct request *next_in_bucket, *next_in_buffer;
    uint64_t prefix[];
} request;

typedef struct replica {
    bool alive;
    int slots;
    int64_t prompt_ns, output_ns; /* of a token */
    int requests, waiting;
    int64_t outstanding_ns;
    uint64_t dispatched, stolen, ended;
    pen_replica_weight weight;
    pen_prefix_memory *memory;
} replica;

struct pen_distributor {
    const pen_policy *policy;
    int max_queue, depth;
    int replica_count, last; /* where the last request went */
    replica *replicas;
    pen_policy_view *views; /* [replica_count] */
    request **buckets;      /* [bucket_count], a power of two: by id mod it */
    size_t bucket_count;
    int open, due;
    request *buffer;
    int buffered;
    int64_t next_id;
    pen_action *notices; /* [notice_capacity] to leaders about what they said, oldest first */
    int notice_first, notice_end, notice_capacity;
};

/* ---- Making and unmaking ----------------------------------------------------------------------------------------- */

pen_status pen_distributor_create(const pen_distributor_options *options, pen_distributor **out) {
    assert(options->replicas > 0 && options->max_queue > 0 && options->depth > 0);
    const pen_policy *policy = pen_policy_find(options->policy);
    if (!policy) return pen_fail(PEN_USAGE, "there is no policy '%s'", options->policy);
    size_t count = (size_t)options->replicas;
    pen_distributor *distributor = calloc(1, sizeof *distributor);
    if (!distributor) return pen_fail(PEN_NO_MEMORY, "no memory for a distributor");
    *distributor = (pen_distributor){.policy = policy,
                                     .max_queue = options->max_queue,
                                     .depth = options->depth,
                                     .last = NOBODY,
                                     .bucket_count = LEAST_BUCKETS};
    distributor->replicas = calloc(count, sizeof *distributor->replicas);
    distributor->views = calloc(count, sizeof *distributor->views);
    distributor->buckets = calloc(LEAST_BUCKETS, sizeof(request *));
    if (!distributor->replicas || !distributor->views || !distributor->buckets) {
        pen_distributor_destroy(distributor);
        return pen_fail(PEN_NO_MEMORY, "no memory for a distributor of %d replicas", options->replicas);
    }
    for (int i = 0; i < options->replicas; i++) {
        distributor->replicas[i] = (replica){.alive = true,
                                             .slots = options->slots[i],
                                             .prompt_ns = llround(options->costs[i].prompt_ms * 1e6),
                                             .output_ns = llround(options->costs[i].output_ms * 1e6),
                                             .weight = pen_replica_weight_at_first()};
        distributor->replica_count++;
        pen_status status = pen_prefix_memory_create(&distributor->replicas[i].memory);
        if (status != PEN_OK) {
            pen_distributor_destroy(distributor);
            return status;
        }
    }
    *out = distributor;
    return PEN_OK;
}

void pen_distributor_destroy(pen_distributor *distributor) {
    if (!distributor) return;
    for (size_t b = 0; distributor->buckets && b < distributor->bucket_count; b++) {
        for (request *r = distributor->buckets[b], *next; r; r = next) {
            next = r->next_in_bucket;
            free(r);
        }
    }
    for (int i = 0; i < distributor->replica_count; i++) pen_prefix_memory_destroy(distributor->replicas[i].memory);
    free(distributor->replicas);
    free(distributor->views);
    free(distributor->buckets);
    free(distributor->notices);
    free(distributor);
}

/* ---- The ledger -------------------------------------------------------------------------------------------------- */

static request **bucket_of(const pen_distributor *distributor, int64_t id) {
    return &distributor->buckets[(size_t)id & (distributor->bucket_count - 1)];
}

static request *find(const pen_distributor *distributor, int64_t id) {
    request *r = *bucket_of(distributor, id);
    while (r && r->stamp.id != id) r = r->next_in_bucket;
    return r;
}

static void enter(pen_distributor *distributor, request *r) {
    request **bucket = bucket_of(distributor, r->stamp.id);
    r->next_in_bucket = *bucket;
    *bucket = r;
}

/* Ids are dense: as many buckets as requests, and hardly two share one. */
static pen_status reserve_bucket(pen_distributor *distributor) {
    size_t old_count = distributor->bucket_count;
    if ((size_t)distributor->open < old_count) return PEN_OK;
    request **buckets = calloc(2 * old_count, sizeof *buckets);
    if (!buckets) return pen_fail(PEN_NO_MEMORY, "no memory for a book of %d requests", distributor->open);
    request **old = distributor->buckets;
    distributor->buckets = buckets;
    distributor->bucket_count = 2 * old_count;
    for (size_t b = 0; b < old_count; b++) {
        for (request *r = old[b], *next; r; r = next) {
            next = r->next_in_bucket;
            enter(distributor, r);
        }
    }
    free(old);
    return PEN_OK;
}

static void set_due(pen_distributor *distributor, request *r, bool is_due) {
    distributor->due += (int)is_due - (int)r->is_due;
    r->is_due = is_due;
}

/* It has ended, and is in no account and not in the buffer. */
static void forget(pen_distributor *distributor, request *r) {
    set_due(distributor, r, false);
    request **at = bucket_of(distributor, r->stamp.id);
    while (*at != r) at = &(*at)->next_in_bucket;
    *at = r->next_in_bucket;
    distributor->open--;
    free(r);
}

static void put_into_buffer(pen_distributor *distributor, request *r) {
    r->next_in_buffer = distributor->buffer;
    distributor->buffer = r;
    distributor->buffered++;
}

static void take_from_buffer(pen_distributor *distributor, request *r) {
    request **at = &distributor->buffer;
    while (*at != r) at = &(*at)->next_in_buffer;
    *at = r->next_in_buffer;
    distributor->buffered--;
}

/* ---- Costs and accounts ------------------------------------------------------------------------------------------ */

/* What its prompt, and what it has put out already, costs a replica that has not got them. */
static int64_t prompt_ns_at(const request *r, const replica *at) {
    int64_t known = (int64_t)PEN_KV_BLOCK * pen_prefix_memory_known(at->memory, r->prefix, r->admission.prefix_count);
    int64_t tokens = r->admission.prompt + r->delivered - known;
    return (tokens > 1 ? tokens : 1) * at->prompt_ns; /* the last one always needs computing */
}

static int64_t output_ns_at(const request *r, const replica *at) {
    int64_t left = (int64_t)r->admission.output * r->admission.choices - r->delivered;
    return left > 0 ? left * at->output_ns : 0;
}

/* What the request has in its owner's account. */
static int64_t charge(const request *r, const replica *owner) {
    return r->prompt_ns + output_ns_at(r, owner);
}

/* Begins a life at a replica. */
static void settle(pen_distributor *distributor, request *r, int owner, int32_t hop) {
    replica *at = &distributor->replicas[owner];
    r->stamp.hop = hop;
    r->owner = owner;
    r->victim = NOBODY;
    r->started = false;
    r->prompt_ns = prompt_ns_at(r, at);
    pen_prefix_memory_remember(at->memory, r->prefix, r->admission.prefix_count);
    at->requests++;
    at->waiting++;
    at->outstanding_ns += charge(r, at);
}

/* Ends one. */
static void unsettle(pen_distributor *distributor, request *r) {
    replica *at = &distributor->replicas[r->owner];
    at->requests--;
    if (!r->started) at->waiting--;
    at->outstanding_ns -= charge(r, at);
    r->owner = NOBODY;
}

/* Its owner is gone: it waits again, as a new attempt, unless nobody wants it any more. */
static void retry(pen_distributor *distributor, request *r) {
    unsettle(distributor, r);
    r->stamp.attempt++;
    r->stamp.hop = 0;
    put_into_buffer(distributor, r);
    set_due(distributor, r, r->cancelled);
}

/* ---- Admission --------------------------------------------------------------------------------------------------- */

bool pen_distributor_has_room(const pen_distributor *distributor) {
    return distributor->buffered < distributor->max_queue;
}

pen_status pen_distributor_admit(pen_distributor *distributor, const pen_admission *admission, int64_t now_ns,
                                 int64_t *id) {
    assert(admission->prompt >= 0 && admission->output >= 0 && admission->choices > 0);
    if (!pen_distributor_has_room(distributor))
        return pen_fail(PEN_QUEUE_FULL, "%d requests wait already", distributor->buffered);
    PEN_TRY(reserve_bucket(distributor));
    size_t prefix_bytes = (size_t)admission->prefix_count * sizeof *admission->prefix;
    request *r = malloc(sizeof *r + prefix_bytes);
    if (!r) return pen_fail(PEN_NO_MEMORY, "no memory to enter a request into the book");
    *r = (request){.stamp.id = distributor->next_id++,
                   .admission = *admission,
                   .admitted_ns = now_ns,
                   .owner = NOBODY,
                   .victim = NOBODY};
    if (prefix_bytes > 0) memcpy(r->prefix, admission->prefix, prefix_bytes);
    r->admission.prefix = NULL; /* the caller's; ours is behind it */
    enter(distributor, r);
    distributor->open++;
    put_into_buffer(distributor, r);
    *id = r->stamp.id;
    return PEN_OK;
}

static pen_urgency urgency_of(const request *r) {
    return (pen_urgency){r->admission.priority, r->admitted_ns, r->stamp.id};
}

/* Nanoseconds to the first token of a request at a replica where it is, or may go. Each of those that are `alive` takes
 * its share of what waits here, no prompt of which is looked up: that takes time. */
static double ttft_ns_at(const pen_distributor *distributor, const request *r, int replica_number, int alive) {
    const replica *at = &distributor->replicas[replica_number];
    bool is_there = r->owner == replica_number;
    double before = at->requests - is_there, before_ns = (double)(at->outstanding_ns - is_there * charge(r, at));
    for (const request *w = distributor->buffer; w && !is_there; w = w->next_in_buffer) {
        if (!pen_more_urgent(urgency_of(w), urgency_of(r), r->admitted_ns)) continue;
        int64_t tokens = w->admission.prompt + w->delivered;
        before += 1.0 / alive;
        before_ns += (double)(tokens * at->prompt_ns + output_ns_at(w, at)) / alive;
    }
    double ahead = before - at->slots + 1; /* must end before this one starts */
    double waits_ns = ahead > 0 ? before_ns * fmin(ahead / before, 1) : 0;
    return (waits_ns + (double)(is_there ? r->prompt_ns : prompt_ns_at(r, at))) / at->weight.speed;
}

double pen_distributor_predict_ttft(const pen_distributor *distributor, int64_t id) {
    const request *r = find(distributor, id);
    if (!r) return 0;
    int alive = 0;
    for (int i = 0; i < distributor->replica_count; i++) alive += distributor->replicas[i].alive;
    double best_ns = INFINITY;
    for (int i = 0; i < distributor->replica_count; i++)
        if (distributor->replicas[i].alive && (r->owner == NOBODY || r->owner == i))
            best_ns = fmin(best_ns, ttft_ns_at(distributor, r, i, alive));
    return isinf(best_ns) ? 0 : best_ns * 1e-6;
}

void pen_distributor_cancel(pen_distributor *distributor, int64_t id) {
    request *r = find(distributor, id);
    if (!r || r->cancelled) return;
    r->cancelled = true;
    set_due(distributor, r, true);
}

/* ---- What is to be done ------------------------------------------------------------------------------------------ */

/* A notice to a leader. It is stored before anything is changed, so that no failure leaves half of an event behind. */
static pen_status notify(pen_distributor *distributor, pen_action_kind kind, int leader, pen_stamp stamp) {
    if (distributor->notice_first == distributor->notice_end) distributor->notice_first = distributor->notice_end = 0;
    if (distributor->notice_end == distributor->notice_capacity) {
        int capacity = distributor->notice_capacity ? 2 * distributor->notice_capacity : 16;
        pen_action *notices = realloc(distributor->notices, (size_t)capacity * sizeof *notices);
        if (!notices) return pen_fail(PEN_NO_MEMORY, "no memory to answer replica %d", leader);
        distributor->notices = notices;
        distributor->notice_capacity = capacity;
    }
    distributor->notices[distributor->notice_end++] = (pen_action){.kind = kind, .stamp = stamp, .replica = leader};
    return PEN_OK;
}

/* A request that ends while it is in the buffer. */
static void end_in_buffer(pen_distributor *distributor, request *r, pen_action_kind kind, pen_action *action) {
    *action = (pen_action){.kind = kind, .stamp = r->stamp, .replica = NOBODY};
    take_from_buffer(distributor, r);
    forget(distributor, r);
}

static bool next_notice(pen_distributor *distributor, pen_action *action) {
    while (distributor->notice_first < distributor->notice_end) {
        *action = distributor->notices[distributor->notice_first++];
        if (distributor->replicas[action->replica].alive) return true;
    }
    return false;
}

static bool next_cancel(pen_distributor *distributor, pen_action *action) {
    for (size_t b = 0; distributor->due > 0 && b < distributor->bucket_count; b++) {
        request *r = distributor->buckets[b];
        while (r && !r->is_due) r = r->next_in_bucket;
        if (!r) continue;
        if (r->owner == NOBODY) {
            end_in_buffer(distributor, r, PEN_ACTION_CANCELLED, action);
        } else {
            *action = (pen_action){.kind = PEN_ACTION_CANCEL, .stamp = r->stamp, .replica = r->owner};
            set_due(distributor, r, false);
        }
        return true;
    }
    return false;
}

static bool next_expired(pen_distributor *distributor, int64_t now_ns, pen_action *action) {
    for (request *r = distributor->buffer; r; r = r->next_in_buffer) {
        int64_t timeout_ns = r->admission.timeout_ns;
        if (timeout_ns <= 0 || r->has_begun || now_ns - r->admitted_ns < timeout_ns) continue;
        end_in_buffer(distributor, r, PEN_ACTION_EXPIRED, action);
        return true;
    }
    return false;
}

static bool has_room(const pen_distributor *distributor, const replica *at) {
    return at->alive && at->waiting < distributor->depth;
}

/* The policy's choice for a request. */
static int choose(const pen_distributor *distributor, const request *r) {
    bool any_room = false;
    for (int i = 0; i < distributor->replica_count; i++)
        any_room = any_room || has_room(distributor, &distributor->replicas[i]);
    if (!any_room) return NOBODY;
    for (int i = 0; i < distributor->replica_count; i++) {
        const replica *at = &distributor->replicas[i];
        distributor->views[i] = (pen_policy_view){
            .alive = at->alive,
            .has_room = has_room(distributor, at),
            .requests = at->requests,
            .slots = at->slots,
            .outstanding_ms = (double)at->outstanding_ns * 1e-6,
            .cost_ms = (double)(prompt_ns_at(r, at) + output_ns_at(r, at)) * 1e-6,
            .weight = pen_replica_weight_value(&at->weight),
        };
    }
    return distributor->policy->choose(distributor->views, distributor->replica_count, distributor->last);
}

static bool next_dispatch(pen_distributor *distributor, int64_t now_ns, pen_action *action) {
    request *most = distributor->buffer;
    if (!most) return false;
    for (request *r = most->next_in_buffer; r; r = r->next_in_buffer)
        if (pen_more_urgent(urgency_of(r), urgency_of(most), now_ns)) most = r;
    int chosen = choose(distributor, most);
    if (chosen == NOBODY) return false;
    take_from_buffer(distributor, most);
    settle(distributor, most, chosen, 0);
    distributor->last = chosen;
    replica *at = &distributor->replicas[chosen];
    at->dispatched++;
    *action = (pen_action){.kind = PEN_ACTION_DISPATCH,
                           .stamp = most->stamp,
                           .replica = chosen,
                           .waited_ns = now_ns - most->admitted_ns,
                           .cost_ms = (double)charge(most, at) * 1e-6,
                           .prompt_ms = (double)most->prompt_ns * 1e-6};
    return true;
}

bool pen_distributor_next(pen_distributor *distributor, int64_t now_ns, pen_action *action) {
    return next_notice(distributor, action) || next_cancel(distributor, action) ||
           next_expired(distributor, now_ns, action) || next_dispatch(distributor, now_ns, action);
}

/* ---- What leaders say -------------------------------------------------------------------------------------------- */

/* The request, where this is the life that counts. */
static request *find_life(const pen_distributor *distributor, int leader, pen_stamp stamp) {
    request *r = find(distributor, stamp.id);
    bool counts = r && r->owner == leader && r->stamp.attempt == stamp.attempt && r->stamp.hop == stamp.hop;
    return counts ? r : NULL;
}

bool pen_distributor_started(pen_distributor *distributor, int leader, pen_stamp stamp) {
    request *r = find_life(distributor, leader, stamp);
    if (!r) return false;
    if (!r->started) distributor->replicas[leader].waiting--;
    r->started = r->has_begun = true;
    return true;
}

bool pen_distributor_progressed(pen_distributor *distributor, int leader, pen_stamp stamp, int tokens) {
    request *r = find_life(distributor, leader, stamp);
    if (!r) return false;
    replica *at = &distributor->replicas[leader];
    at->outstanding_ns -= charge(r, at);
    r->delivered += tokens;
    if (tokens > 0) r->prompt_ns = 0;
    at->outstanding_ns += charge(r, at);
    return true;
}

bool pen_distributor_ended(pen_distributor *distributor, int leader, pen_stamp stamp) {
    request *r = find_life(distributor, leader, stamp);
    if (!r) return false;
    unsettle(distributor, r);
    forget(distributor, r);
    distributor->replicas[leader].ended++;
    return true;
}

/* A steal that was not known. */
static void adopt(pen_distributor *distributor, request *r, int thief, int32_t hop) {
    unsettle(distributor, r);
    settle(distributor, r, thief, hop);
    distributor->replicas[thief].stolen++;
    set_due(distributor, r, r->cancelled);
}

/* Whether a life of the request's present attempt is meant, so that its hop says which is the later one. */
static bool is_of_attempt(const request *r, pen_stamp stamp) {
    return r && r->owner != NOBODY && r->stamp.attempt == stamp.attempt;
}

pen_status pen_distributor_moved(pen_distributor *distributor, int victim, pen_stamp stamp, int thief) {
    if (!distributor->replicas[victim].alive) return PEN_OK;
    PEN_TRY(notify(distributor, PEN_ACTION_ADOPTED, victim, stamp));
    request *r = find(distributor, stamp.id);
    if (!is_of_attempt(r, stamp) || stamp.hop <= r->stamp.hop) return PEN_OK;
    adopt(distributor, r, thief, stamp.hop);
    r->victim = victim;
    if (!distributor->replicas[thief].alive) retry(distributor, r);
    return PEN_OK;
}

pen_status pen_distributor_taken(pen_distributor *distributor, int thief, pen_stamp stamp) {
    if (!distributor->replicas[thief].alive) return PEN_OK;
    request *r = find(distributor, stamp.id);
    if (!is_of_attempt(r, stamp)) return notify(distributor, PEN_ACTION_CANCEL, thief, stamp);
    if (stamp.hop < r->stamp.hop) return PEN_OK;
    if (stamp.hop > r->stamp.hop) adopt(distributor, r, thief, stamp.hop);
    r->victim = NOBODY;
    /* A cancel that went there before may have come there before it. */
    set_due(distributor, r, r->cancelled);
    return PEN_OK;
}

void pen_distributor_report(pen_distributor *distributor, int leader, const pen_replica_load *load, int64_t now_ns) {
    if (distributor->replicas[leader].alive)
        pen_replica_weight_learn(&distributor->replicas[leader].weight, load, now_ns);
}

void pen_distributor_lost(pen_distributor *distributor, int lost) {
    replica *at = &distributor->replicas[lost];
    if (!at->alive) return;
    at->alive = false;
    for (size_t b = 0; b < distributor->bucket_count; b++)
        for (request *r = distributor->buckets[b]; r; r = r->next_in_bucket)
            if (r->owner != NOBODY && (r->owner == lost || r->victim == lost)) retry(distributor, r);
}

bool pen_distributor_alive(const pen_distributor *distributor, int leader) {
    return distributor->replicas[leader].alive;
}

/* ---- What is known ----------------------------------------------------------------------------------------------- */

pen_replica_account pen_distributor_account(const pen_distributor *distributor, int leader) {
    const replica *at = &distributor->replicas[leader];
    return (pen_replica_account){
        .requests = at->requests,
        .waiting = at->waiting,
        .outstanding_ms = (double)at->outstanding_ns * 1e-6,
        .weight = pen_replica_weight_value(&at->weight),
        .speed = at->weight.speed,
        .utilisation = at->weight.utilisation,
        .dispatched = at->dispatched,
        .stolen = at->stolen,
        .ended = at->ended,
    };
}

int pen_distributor_waiting(const pen_distributor *distributor) {
    return distributor->buffered;
}

int pen_distributor_open(const pen_distributor *distributor) {
    return distributor->open;
}
