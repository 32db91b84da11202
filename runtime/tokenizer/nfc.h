/* Unicode's normalization form C: characters and their marks composed where one character stands for them. */
#ifndef PEN_NFC_H
#define PEN_NFC_H

#include "status.h"

#include <stddef.h>

typedef struct pen_nfc pen_nfc;

pen_status pen_nfc_create(pen_nfc **nfc);
void pen_nfc_destroy(pen_nfc *nfc);

/* *composed is `text` itself where nothing is to be done, else memory of `nfc`, until the next call. The text is UTF-8;
 * time is linear in its length, however many marks stand upon one another. */
pen_status pen_nfc_compose(pen_nfc *nfc, const char *text, size_t length, const char **composed,
                           size_t *composed_length);

#endif
