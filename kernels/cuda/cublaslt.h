/*
 * The calls of cuBLASLt that are in use, as a table: the library is opened when a device is, so that the program starts
 * where it is missing. cublaslt.c opens it; tests/gpu/emulate has a stand-in for both.
 */
#ifndef PEN_CUBLASLT_H
#define PEN_CUBLASLT_H

#include "status.h"

#include <cublasLt.h>

#define PEN_CUBLASLT_CALLS(call)                                                                                       \
    call(Create) call(Destroy) call(MatmulDescCreate) call(MatmulDescDestroy) call(MatmulDescSetAttribute)             \
        call(MatrixLayoutCreate) call(MatrixLayoutDestroy) call(MatmulPreferenceCreate) call(MatmulPreferenceDestroy)  \
            call(MatmulPreferenceSetAttribute) call(MatmulAlgoGetHeuristic) call(Matmul)

typedef struct pen_cublaslt {
#define PEN_FIELD(name) __typeof__(cublasLt##name) *name;
    PEN_CUBLASLT_CALLS(PEN_FIELD)
#undef PEN_FIELD
} pen_cublaslt;

/* PEN_UNSUPPORTED says why there is none. The table lives as long as the process. */
pen_status pen_cublaslt_open(const pen_cublaslt **calls);

#endif
