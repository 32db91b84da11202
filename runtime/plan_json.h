/* The plan as JSON: what `plan --json` prints, `--profile FILE` reads and rank 0 broadcasts. */
#ifndef PEN_PLAN_JSON_H
#define PEN_PLAN_JSON_H

#include "plan.h"

/* The text belongs to the caller: free(). */
pen_status pen_plan_to_json(const pen_plan *plan, char **text);

/* Untrusted text. Only `units` with `name` and `time_ms` are needed; what is missing costs nothing. With `hidden`,
 * layers without weight_bytes and units without workspace_bytes get the estimates of plan.h. `origin` is the file for
 * messages. `stages` are taken over, if there are any, so that a broadcast plan arrives solved; their times and memory
 * are worked out again. PEN_BAD_INPUT names origin and field. */
pen_status pen_plan_from_json(const char *origin, const char *text, size_t length, pen_plan **plan);
pen_status pen_plan_read(const char *path, pen_plan **plan);

#endif
