/* Opens NCCL; see nccl_library.h. */
#include "nccl_library.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <string.h>

static pen_status open_library(pen_nccl *table) {
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL); /* never closed: its threads stay */
    if (!library) return pen_fail(PEN_UNSUPPORTED, "no NCCL: %s", dlerror());
        /* Copied: C has no cast between objects and functions. */
#define TAKE(name)                                                                                                     \
    void *found_##name = dlsym(library, "nccl" #name);                                                                 \
    if (!found_##name) return pen_fail(PEN_UNSUPPORTED, "NCCL is too old: it has no nccl%s", #name);                   \
    memcpy(&table->name, &found_##name, sizeof table->name);
    PEN_NCCL_FUNCTIONS(TAKE)
#undef TAKE
    return PEN_OK;
}

pen_status pen_nccl_load(const pen_nccl **nccl) {
    static pen_nccl table;
    static bool loaded;
    if (!loaded) PEN_TRY(open_library(&table));
    loaded = true;
    *nccl = &table;
    return PEN_OK;
}
