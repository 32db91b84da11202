/* Opens cuBLASLt, of the major version that this was built with. It is never closed: it keeps threads and memory. */
#include "cublaslt.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static pen_status find(void *library, const char *name, void *call, size_t size) {
    void *found = dlsym(library, name);
    if (!found) return pen_fail(PEN_UNSUPPORTED, "cuBLASLt has no %s", name);
    memcpy(call, &found, size); /* ISO C has no cast from an object to a function */
    return PEN_OK;
}

static pen_status open_library(pen_cublaslt *calls) {
    char file[64];
    snprintf(file, sizeof file, "libcublasLt.so.%d", CUDART_VERSION / 1000);
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!library) return pen_fail(PEN_UNSUPPORTED, "cannot open %s: %s", file, dlerror());
#define PEN_FIND(name) PEN_TRY(find(library, "cublasLt" #name, &calls->name, sizeof calls->name));
    PEN_CUBLASLT_CALLS(PEN_FIND)
#undef PEN_FIND
    return PEN_OK;
}

pen_status pen_cublaslt_open(const pen_cublaslt **calls) {
    static pen_cublaslt table;
    static bool opened;
    if (!opened) PEN_TRY(open_library(&table));
    opened = true;
    *calls = &table;
    return PEN_OK;
}
