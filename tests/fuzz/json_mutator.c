/* Mutations of JSON; see json_mutator.h. */
#include "json_mutator.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static json_t *changed_number(const json_t *node) {
    double value = json_number_value(node);
    switch (rand() % 8) {
    case 0: return json_integer(0);
    case 1: return json_integer(-1);
    case 2: return json_integer((json_int_t)1 << rand() % 63);
    case 3: return json_real(fabs(value) < 1e290 ? value * 1e9 : 1);
    case 4: return json_real(value / 1e9);
    case 5: return json_integer(rand() % 100);
    case 6: return json_real(rand() % 1000 / 64.0);
    default: return json_integer((json_int_t)(fabs(value) < 1e18 ? value : 0) + rand() % 3 - 1);
    }
}

static json_t *other_kind(void) {
    switch (rand() % 6) {
    case 0: return json_null();
    case 1: return json_true();
    case 2: return json_array();
    case 3: return json_object();
    case 4: return json_string("");
    default: return json_integer(1);
    }
}

static json_t *changed(json_t *node);

static json_t *changed_array(json_t *node) {
    size_t count = json_array_size(node), i = count ? (size_t)rand() % count : 0;
    if (count == 0) return other_kind();
    switch (rand() % 8) {
    case 0: json_array_remove(node, i); break;
    case 1: json_array_insert_new(node, (size_t)rand() % count, json_deep_copy(json_array_get(node, i))); break;
    default: json_array_set_new(node, i, changed(json_array_get(node, i)));
    }
    return json_incref(node);
}

static json_t *changed_object(json_t *node) {
    const char *key = NULL;
    json_t *value;
    size_t count = json_object_size(node), skip = count ? (size_t)rand() % count : 0;
    void *at = json_object_iter(node);
    if (count == 0) return other_kind();
    for (; skip > 0; skip--) at = json_object_iter_next(node, at);
    key = json_object_iter_key(at);
    value = json_object_iter_value(at);
    if (rand() % 10 == 0)
        json_object_del(node, key);
    else
        json_object_iter_set_new(node, at, changed(value));
    return json_incref(node);
}

/* A new reference to what takes the node's place. */
static json_t *changed(json_t *node) {
    if (rand() % 24 == 0) return other_kind();
    if (json_is_array(node)) return changed_array(node);
    if (json_is_object(node)) return changed_object(node);
    if (json_is_number(node)) return changed_number(node);
    char text[256] = {0};
    strncpy(text, json_is_string(node) ? json_string_value(node) : "", sizeof text - 1);
    size_t length = LLVMFuzzerMutate((uint8_t *)text, strlen(text), sizeof text);
    json_t *string = json_stringn(text, length); /* NULL where it is no UTF-8 */
    return string ? string : json_string("\xef\xbf\xbe");
}

size_t json_mutate(uint8_t *data, size_t size, size_t max_size) {
    json_t *root = json_loadb((const char *)data, size, 0, NULL);
    if (!root) return LLVMFuzzerMutate(data, size, max_size);
    for (int i = 1 + rand() % 3; i > 0; i--) {
        json_t *next = changed(root);
        json_decref(root);
        root = next;
    }
    size_t written = json_dumpb(root, (char *)data, max_size, JSON_COMPACT);
    json_decref(root);
    return written > max_size ? max_size : written;
}
