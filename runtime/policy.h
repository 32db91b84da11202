/*
 * Policies: which replica gets the next request. A policy is a function and a line in the table of policy.c.
 */
#ifndef PEN_POLICY_H
#define PEN_POLICY_H

#include <stdbool.h>

/* A replica as a policy sees it. */
typedef struct pen_policy_view {
    bool alive, has_room; /* no room: its queue is as long as it may be */
    int requests, slots;  /* that it has; that run at a time */
    double outstanding_ms;
    double cost_ms; /* of this request there */
    double weight;
} pen_policy_view;

/* The replica, or −1: the request waits. `last` is where the last request went, −1 at first. There is one alive. */
typedef int pen_policy_choose(const pen_policy_view *replicas, int count, int last);

typedef struct pen_policy {
    const char *name;
    pen_policy_choose *choose;
} pen_policy;

extern const pen_policy pen_policies[];
extern const int pen_policy_count;

const pen_policy *pen_policy_find(const char *name); /* NULL: there is none */

#endif
