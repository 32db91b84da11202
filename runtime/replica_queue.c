/* A leader's queue; see replica_queue.h. Entries lie in any order: the most urgent one, which changes with time, is
 * looked for when it is wanted. */
#include "replica_queue.h"

#include "urgency.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum {
    NOBODY = -1,
    LONG_QUEUE = 5, /* a queue longer than this may be relieved by whoever is not idle */
    LEAST_WISH = 8, /* requests that a thief wants, should it have fewer free slots */
};

/* How long to leave the others alone after one had nothing to give; doubled as long as nothing new is heard. */
static const int64_t LEAST_WAIT_NS = 20000000, MOST_WAIT_NS = 200000000;

/* What is remembered of an entry that was given away. */
typedef struct tombstone {
    pen_stamp stamp; /* of its life with the thief */
    int thief;
} tombstone;

typedef struct peer {
    bool lost;
    int refusals; /* times that it gave nothing since something new was heard */
    int queued;   /* as it said, less what it gave since */
    double queued_ms;
} peer;

struct pen_replica_queue {
    int self, replicas;
    bool steals, draining;
    pen_token_cost cost;
    pen_queued *entries;
    int length, capacity;
    tombstone *tombstones;
    int tombstone_count, tombstone_capacity;
    peer *peers; /* [replicas] */
    int asked;   /* who is to answer; or NOBODY */
    int64_t wait_ns, wait_until_ns;
    pen_queue_counts counts;
};

pen_status pen_replica_queue_create(int self, int replicas, bool steals, pen_token_cost cost, pen_replica_queue **out) {
    pen_replica_queue *queue = calloc(1, sizeof *queue);
    peer *peers = calloc((size_t)replicas, sizeof *peers);
    if (!queue || !peers) {
        free(queue);
        free(peers);
        return pen_fail(PEN_NO_MEMORY, "no memory for a queue of requests");
    }
    *queue = (pen_replica_queue){
        .self = self, .replicas = replicas, .steals = steals, .cost = cost, .peers = peers, .asked = NOBODY};
    *out = queue;
    return PEN_OK;
}

void pen_replica_queue_destroy(pen_replica_queue *queue) {
    if (!queue) return;
    for (int i = 0; i < queue->length; i++) free(queue->entries[i].payload);
    free(queue->entries);
    free(queue->tombstones);
    free(queue->peers);
    free(queue);
}

/* ---- The queue --------------------------------------------------------------------------------------------------- */

pen_status pen_replica_queue_push(pen_replica_queue *queue, const pen_queued *entry) {
    if (queue->length == queue->capacity) {
        int capacity = queue->capacity ? 2 * queue->capacity : 16;
        pen_queued *entries = realloc(queue->entries, (size_t)capacity * sizeof *entries);
        if (!entries) return pen_fail(PEN_NO_MEMORY, "no memory to queue %d requests", capacity);
        queue->entries = entries;
        queue->capacity = capacity;
    }
    queue->entries[queue->length++] = *entry;
    if (entry->stamp.hop > 0)
        queue->counts.taken++;
    else
        queue->counts.received++;
    return PEN_OK;
}

static bool goes_before(const pen_queued *a, const pen_queued *b, int64_t now_ns) {
    return pen_more_urgent((pen_urgency){a->priority, a->arrived_ns, a->stamp.id},
                           (pen_urgency){b->priority, b->arrived_ns, b->stamp.id}, now_ns);
}

static const pen_queued *most_urgent(const pen_replica_queue *queue, int64_t now_ns) {
    const pen_queued *most = queue->length > 0 ? queue->entries : NULL;
    for (int i = 1; i < queue->length; i++)
        if (goes_before(&queue->entries[i], most, now_ns)) most = &queue->entries[i];
    return most;
}

static pen_queued take_out(pen_replica_queue *queue, int at) {
    pen_queued entry = queue->entries[at];
    queue->entries[at] = queue->entries[--queue->length];
    return entry;
}

bool pen_replica_queue_pop(pen_replica_queue *queue, int64_t now_ns, pen_queued *entry) {
    const pen_queued *most = most_urgent(queue, now_ns);
    if (!most) return false;
    *entry = take_out(queue, (int)(most - queue->entries));
    queue->counts.started++;
    return true;
}

bool pen_replica_queue_peek(const pen_replica_queue *queue, int64_t now_ns, int *priority) {
    const pen_queued *most = most_urgent(queue, now_ns);
    if (most) *priority = most->priority;
    return most;
}

bool pen_replica_queue_expire(pen_replica_queue *queue, int64_t now_ns, pen_queued *entry) {
    for (int i = 0; i < queue->length; i++) {
        int64_t deadline_ns = queue->entries[i].deadline_ns;
        if (deadline_ns == 0 || now_ns < deadline_ns) continue;
        *entry = take_out(queue, i);
        queue->counts.removed++;
        return true;
    }
    return false;
}

static bool is_same_attempt(pen_stamp a, pen_stamp b) {
    return a.id == b.id && a.attempt == b.attempt;
}

/* It may have been given away, have come back, and have been given away again: the last time is what counts. */
pen_cancelled pen_replica_queue_cancel(pen_replica_queue *queue, pen_stamp stamp, pen_queued *entry, int *thief) {
    for (int i = 0; i < queue->length; i++) {
        if (!is_same_attempt(queue->entries[i].stamp, stamp)) continue;
        *entry = take_out(queue, i);
        queue->counts.removed++;
        return PEN_CANCEL_QUEUED;
    }
    const tombstone *last = NULL;
    for (int i = 0; i < queue->tombstone_count; i++) {
        const tombstone *t = &queue->tombstones[i];
        if (is_same_attempt(t->stamp, stamp) && t->stamp.hop > (last ? last->stamp.hop : stamp.hop)) last = t;
    }
    if (!last) return PEN_CANCEL_ELSEWHERE;
    *entry = (pen_queued){.stamp = last->stamp};
    *thief = last->thief;
    return PEN_CANCEL_GIVEN;
}

int pen_replica_queue_length(const pen_replica_queue *queue) {
    return queue->length;
}

double pen_replica_queue_cost_ms(const pen_replica_queue *queue) {
    double cost_ms = 0;
    for (int i = 0; i < queue->length; i++) cost_ms += queue->entries[i].cost_ms;
    return cost_ms;
}

/* ---- The thief --------------------------------------------------------------------------------------------------- */

void pen_replica_queue_hear(pen_replica_queue *queue, int replica, const pen_replica_load *load) {
    peer *p = &queue->peers[replica];
    if (p->queued != load->queued) {
        p->refusals = 0;
        queue->wait_ns = 0;
    }
    p->queued = load->queued;
    p->queued_ms = load->queued_ms;
}

/* Whether a peer's queue is one to take from. */
static bool is_worth_asking(const pen_replica_queue *queue, int replica, int free_slots) {
    const peer *p = &queue->peers[replica];
    if (replica == queue->self || p->lost || p->queued == 0) return false;
    if (queue->length == 0 && free_slots > 0) return true;
    return p->queued > LONG_QUEUE && 4 * queue->length <= p->queued;
}

bool pen_replica_queue_ask(pen_replica_queue *queue, const pen_replica_load *load, double speed, int free_slots,
                           int64_t now_ns, int *victim, pen_steal_ask *ask) {
    if (!queue->steals || queue->draining || queue->asked != NOBODY || now_ns < queue->wait_until_ns) return false;
    int best = NOBODY;
    for (int i = 0; i < queue->replicas; i++) {
        if (!is_worth_asking(queue, i, free_slots)) continue;
        const peer *p = &queue->peers[i], *b = best == NOBODY ? p : &queue->peers[best];
        if (best == NOBODY || p->refusals < b->refusals || (p->refusals == b->refusals && p->queued_ms > b->queued_ms))
            best = i;
    }
    if (best == NOBODY) return false;
    queue->asked = *victim = best;
    queue->counts.asks++;
    *ask = (pen_steal_ask){.backlog_ms = load->queued_ms + load->running_ms,
                           .speed = speed,
                           .cost = queue->cost,
                           .running = load->running,
                           .free_slots = free_slots,
                           .most = free_slots > LEAST_WISH ? free_slots : LEAST_WISH};
    return true;
}

void pen_replica_queue_took(pen_replica_queue *queue, int victim, int count, int64_t now_ns) {
    peer *p = &queue->peers[victim];
    if (queue->asked == victim) queue->asked = NOBODY;
    if (count > 0) {
        p->queued = p->queued > count ? p->queued - count : 0;
        p->refusals = 0;
        queue->wait_ns = 0;
        return;
    }
    p->refusals++;
    queue->wait_ns = queue->wait_ns > 0 ? 2 * queue->wait_ns : LEAST_WAIT_NS;
    if (queue->wait_ns > MOST_WAIT_NS) queue->wait_ns = MOST_WAIT_NS;
    queue->wait_until_ns = now_ns + queue->wait_ns;
}

/* ---- The victim -------------------------------------------------------------------------------------------------- */

/* Room for so many more tombstones. */
static bool reserve_tombstones(pen_replica_queue *queue, int more) {
    int needed = queue->tombstone_count + more;
    if (needed <= queue->tombstone_capacity) return true;
    int capacity = 2 * needed;
    tombstone *tombstones = realloc(queue->tombstones, (size_t)capacity * sizeof *tombstones);
    if (!tombstones) return false;
    queue->tombstones = tombstones;
    queue->tombstone_capacity = capacity;
    return true;
}

/* Sorts the entries, the most urgent first; they were sorted before, for the most part. */
static void sort_entries(pen_replica_queue *queue, int64_t now_ns) {
    for (int i = 1; i < queue->length; i++) {
        pen_queued entry = queue->entries[i];
        int at = i;
        for (; at > 0 && goes_before(&entry, &queue->entries[at - 1], now_ns); at--)
            queue->entries[at] = queue->entries[at - 1];
        queue->entries[at] = entry;
    }
}

/* What a cost of 1 here is there, should both be known. */
static double ratio(double there, double here) {
    return there > 0 && here > 0 ? there / here : 1;
}

/* The entry as it is when the thief has it: its costs are those there. */
static pen_queued for_thief(const pen_replica_queue *queue, const pen_queued *entry, const pen_steal_ask *ask) {
    pen_queued moved = *entry;
    moved.stamp.hop++;
    moved.prompt_ms = entry->prompt_ms * ratio(ask->cost.prompt_ms, queue->cost.prompt_ms);
    double output_ms = entry->cost_ms - entry->prompt_ms;
    moved.cost_ms = moved.prompt_ms + output_ms * ratio(ask->cost.output_ms, queue->cost.output_ms);
    return moved;
}

/* What is being given away. */
typedef struct gift {
    const pen_steal_ask *ask;
    int thief, count, most;
    double there_ms; /* what the thief will have to do */
    pen_queued *entries;
} gift;

static void add_to(gift *g, pen_replica_queue *queue, int at, const pen_queued *moved) {
    memmove(&queue->entries[at], &queue->entries[at + 1],
            (size_t)(--queue->length - at) * sizeof *queue->entries); /* they stay sorted */
    g->there_ms += moved->cost_ms;
    g->entries[g->count++] = *moved;
    queue->tombstones[queue->tombstone_count++] = (tombstone){moved->stamp, g->thief};
}

/* The most urgent ones as far as the thief can start them at once. Each of n requests that run together takes its share
 * of the time; and here one begins when (i + 1) ÷ n of what the n before it cost is gone, if i of them wait. */
static void give_to_slots(gift *g, pen_replica_queue *queue, const pen_replica_load *load, double speed) {
    double before_ms = load->running_ms;
    int running = load->running > 0 ? load->running : 1;
    for (int i = 0; i < queue->length && g->count < g->most && g->count < g->ask->free_slots;) {
        double cost_ms = queue->entries[i].cost_ms;
        pen_queued moved = for_thief(queue, &queue->entries[i], g->ask);
        double here_ms = before_ms * (i + 1) / (running + i) + cost_ms * running;
        double there_ms = moved.cost_ms * (g->ask->running + g->count + 1);
        if (there_ms / g->ask->speed < here_ms / speed) {
            add_to(g, queue, i, &moved);
        } else {
            before_ms += cost_ms;
            i++;
        }
    }
}

/* Beginning with the least urgent one, each that the thief would be done with sooner: what starts soonest here stays.
 */
static void give_to_queue(gift *g, pen_replica_queue *queue, const pen_replica_load *load, double speed) {
    double here_ms = load->running_ms + pen_replica_queue_cost_ms(queue);
    for (int i = queue->length - 1; i >= 0 && g->count < g->most; i--) {
        double cost_ms = queue->entries[i].cost_ms;
        pen_queued moved = for_thief(queue, &queue->entries[i], g->ask);
        bool sooner = (g->there_ms + moved.cost_ms) / g->ask->speed < here_ms / speed;
        here_ms -= cost_ms;
        if (sooner) add_to(g, queue, i, &moved);
    }
}

int pen_replica_queue_give(pen_replica_queue *queue, int thief, const pen_steal_ask *ask, const pen_replica_load *load,
                           double speed, int64_t now_ns, pen_queued *entries, int capacity) {
    gift g = {
        .ask = ask, .thief = thief, .most = (queue->length + 1) / 2, .there_ms = ask->backlog_ms, .entries = entries};
    if (g.most > ask->most) g.most = ask->most;
    if (g.most > capacity) g.most = capacity;
    if (queue->draining || g.most <= 0 || !reserve_tombstones(queue, g.most)) return 0;
    sort_entries(queue, now_ns);
    give_to_slots(&g, queue, load, speed);
    give_to_queue(&g, queue, load, speed);
    queue->counts.given += (uint64_t)g.count;
    return g.count;
}

void pen_replica_queue_adopted(pen_replica_queue *queue, pen_stamp stamp) {
    for (int i = 0; i < queue->tombstone_count; i++) {
        pen_stamp own = queue->tombstones[i].stamp;
        if (!is_same_attempt(own, stamp) || own.hop != stamp.hop) continue;
        queue->tombstones[i] = queue->tombstones[--queue->tombstone_count];
        return;
    }
}

/* Nobody is there any more to forward a cancel to, or to answer. */
void pen_replica_queue_lost(pen_replica_queue *queue, int replica) {
    queue->peers[replica].lost = true;
    if (queue->asked == replica) queue->asked = NOBODY;
    for (int i = queue->tombstone_count - 1; i >= 0; i--)
        if (queue->tombstones[i].thief == replica) queue->tombstones[i] = queue->tombstones[--queue->tombstone_count];
}

/* ---- Draining and counting --------------------------------------------------------------------------------------- */

void pen_replica_queue_drain(pen_replica_queue *queue) {
    queue->draining = true;
}

bool pen_replica_queue_is_still(const pen_replica_queue *queue) {
    return queue->length == 0 && queue->asked == NOBODY && queue->tombstone_count == 0;
}

pen_queue_counts pen_replica_queue_counts(const pen_replica_queue *queue) {
    return queue->counts;
}
