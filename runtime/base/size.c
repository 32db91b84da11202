/* Sizes in bytes as people read them; see size.h. */
#include "size.h"

#include <inttypes.h>
#include <stdio.h>

const char *pen_size_text(uint64_t bytes, char text[PEN_SIZE_TEXT]) {
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    if (bytes < 1024) {
        snprintf(text, PEN_SIZE_TEXT, "%" PRIu64 " B", bytes);
        return text;
    }
    double value = (double)bytes / 1024;
    int unit = 0;
    for (; value >= 999.5 && unit < 5; unit++) value /= 1024;
    snprintf(text, PEN_SIZE_TEXT, "%.*f %s", value < 9.995 ? 2 : value < 99.95 ? 1 : 0, value, units[unit]);
    return text;
}
