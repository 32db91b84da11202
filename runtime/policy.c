/* Policies; see policy.h. All but round-robin want the least of something among the replicas with room, and take equal
 * ones in turn. */
#include "policy.h"

#include <stddef.h>
#include <string.h>

/* Strictly the next one: where that has no room, the request waits. */
static int round_robin(const pen_policy_view *replicas, int count, int last) {
    int next = (last + 1) % count;
    while (!replicas[next].alive) next = (next + 1) % count;
    return replicas[next].has_room ? next : -1;
}

typedef double score(const pen_policy_view *replica);
typedef bool filter(const pen_policy_view *replica);

static bool any(const pen_policy_view *replica) {
    (void)replica;
    return true;
}

static bool has_slot(const pen_policy_view *replica) {
    return replica->requests < replica->slots;
}

static double requests_of(const pen_policy_view *replica) {
    return replica->requests;
}

static double cost_of(const pen_policy_view *replica) {
    return replica->outstanding_ms + replica->cost_ms;
}

/* When it would be done, for a replica whose weight is what it does in a millisecond. */
static double weighted_cost_of(const pen_policy_view *replica) {
    return cost_of(replica) / replica->weight;
}

/* When the request would be done there, as far as the weights say: what waits before it must leave it a slot, and then
 * it shares the replica with as many as run at a time. */
static double finish_of(const pen_policy_view *replica) {
    int ahead = replica->requests - replica->slots + 1;
    double waits_ms = ahead > 0 ? replica->outstanding_ms * ahead / replica->requests : 0;
    return (waits_ms + replica->cost_ms * replica->slots) / replica->weight;
}

/* Of those that the filter lets through. Equal scores: who has fewer requests; then whose turn is first after `last`.
 */
static int least(const pen_policy_view *replicas, int count, int last, filter *lets_through, score *score_of) {
    int best = -1;
    double best_score = 0;
    for (int k = 1; k <= count; k++) {
        int i = (last + k) % count;
        if (!replicas[i].alive || !replicas[i].has_room || !lets_through(&replicas[i])) continue;
        double own = score_of(&replicas[i]);
        bool better =
            best < 0 || own < best_score || (own == best_score && replicas[i].requests < replicas[best].requests);
        if (!better) continue;
        best = i;
        best_score = own;
    }
    return best;
}

static int least_requests(const pen_policy_view *replicas, int count, int last) {
    return least(replicas, count, last, any, requests_of);
}

static int least_cost(const pen_policy_view *replicas, int count, int last) {
    return least(replicas, count, last, any, cost_of);
}

/* Where it starts at once it is no burden to what runs elsewhere: such a replica goes first, unless the request would
 * be done sooner behind others at one that is so much faster. */
static int weighted(const pen_policy_view *replicas, int count, int last) {
    int any_one = least(replicas, count, last, any, weighted_cost_of);
    int idle_one = least(replicas, count, last, has_slot, weighted_cost_of);
    if (idle_one < 0 || finish_of(&replicas[any_one]) < finish_of(&replicas[idle_one])) return any_one;
    return idle_one;
}

const pen_policy pen_policies[] = {
    {"weighted", weighted},
    {"least-cost", least_cost},
    {"least-requests", least_requests},
    {"round-robin", round_robin},
};
const int pen_policy_count = sizeof pen_policies / sizeof *pen_policies;

const pen_policy *pen_policy_find(const char *name) {
    for (int i = 0; i < pen_policy_count; i++)
        if (strcmp(pen_policies[i].name, name) == 0) return &pen_policies[i];
    return NULL;
}
