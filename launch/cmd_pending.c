/* Stands in, while branches are being joined, for what other branches define; their definitions win. Then it goes. */
#include "command.h"

#define PENDING __attribute__((weak))

PENDING pen_status pen_cmd_run(const pen_options *o) {
    return pen_fail(PEN_UNSUPPORTED, "%d: not here", o->command);
}
PENDING pen_status pen_cmd_perplexity(const pen_options *o) {
    return pen_cmd_run(o);
}
PENDING pen_status pen_cmd_plan(const pen_options *o) {
    return pen_cmd_run(o);
}
