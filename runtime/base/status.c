/* Status codes and the per-thread text of the last failure; see status.h. */
#include "status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char last_error[2048];

const char *pen_status_text(pen_status status) {
    switch (status) {
#define X(name, code, text)                                                                                            \
    case name: return text;
        PEN_STATUS_CODES(X)
#undef X
    }
    return "unknown status";
}

pen_status pen_fail(pen_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    /* Through a copy, so that a caller may put the previous last error into the new one. */
    char text[sizeof last_error];
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = ' '; /* untrusted names must not move the cursor */
    snprintf(last_error, sizeof last_error, "%s", text);
    return status;
}

const char *pen_last_error(void) {
    return last_error;
}
