/* The plan as text: what was measured, what follows, and the other methods beside it. */
#ifndef PEN_REPORT_H
#define PEN_REPORT_H

#include "plan.h"

#include <stdio.h>

enum { PEN_REPORT_MS = 24 };

/* Four significant digits: "222.9", "18.20", "0.512". Returns `text`. */
const char *pen_report_ms(double ms, char text[PEN_REPORT_MS]);

/* Unit statistics with a bar chart, the stages, the methods, the trade of KV capacity for speed, remarks. A solved
 * plan; `width` columns. */
void pen_report_plan(FILE *out, const pen_plan *plan, int width);

/* Stage times that a run measured [stage_count], beside the planned ones, and the split that they suggest if they are
 * further apart than 1.15×. */
pen_status pen_report_measured(FILE *out, const pen_plan *plan, const double *measured_ms);

#endif
