/* What a link implements; included by link.c and the links only. */
#ifndef PEN_LINK_CLASS_H
#define PEN_LINK_CLASS_H

#include "link.h"

typedef struct pen_link_class {
    const char *name;
    pen_status (*receive)(pen_link *, pen_channel, int, int, void *, size_t, pen_transfer *);
    pen_status (*send)(pen_link *, pen_channel, int, int, const void *, size_t, const pen_event *, pen_transfer *);
    /* NULL: lanes need nothing; has no rows */
    pen_status (*prepare_rows)(pen_link *, int, pen_device *, pen_buffer *, size_t);
    pen_status (*receive_rows)(pen_link *, int, int, pen_buffer *, size_t, pen_transfer *);
    pen_status (*send_rows)(pen_link *, int, int, pen_buffer *, size_t, const pen_event *, pen_transfer *);
    pen_status (*progress)(pen_link *, bool *);
    bool (*done)(pen_link *, pen_transfer, size_t *);
    int64_t (*due_ns)(const pen_link *); /* NULL: never known */
    void (*destroy)(pen_link *);
} pen_link_class;

/* First member of every link. */
struct pen_link {
    const pen_link_class *class;
};

#endif
