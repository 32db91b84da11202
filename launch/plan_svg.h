/* The plan as a picture: unit times as bars with the stages as bands, stage times, memory against its limit. */
#ifndef PEN_PLAN_SVG_H
#define PEN_PLAN_SVG_H

#include "plan.h"

/* A solved plan. A regular file appears whole or not at all; PEN_IO names the file. */
pen_status pen_plan_svg_write(const pen_plan *plan, const char *path);

/* The same as text, which the caller frees. */
pen_status pen_plan_svg(const pen_plan *plan, char **text);

#endif
