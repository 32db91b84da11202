/*
 * NCCL as this process found it: the functions in use, taken from the shared library when they are first needed, so
 * that the program starts where there is none.
 */
#ifndef PEN_NCCL_LIBRARY_H
#define PEN_NCCL_LIBRARY_H

#include "status.h"

#include <nccl.h>

/* FUNCTION(name after "nccl") */
#define PEN_NCCL_FUNCTIONS(FUNCTION)                                                                                   \
    FUNCTION(GetVersion)                                                                                               \
    FUNCTION(GetUniqueId)                                                                                              \
    FUNCTION(GetErrorString)                                                                                           \
    FUNCTION(GetLastError)                                                                                             \
    FUNCTION(CommInitRankConfig)                                                                                       \
    FUNCTION(CommGetAsyncError)                                                                                        \
    FUNCTION(CommFinalize)                                                                                             \
    FUNCTION(CommDestroy)                                                                                              \
    FUNCTION(CommAbort)                                                                                                \
    FUNCTION(Send)                                                                                                     \
    FUNCTION(Recv)

typedef struct pen_nccl {
#define MEMBER(name) __typeof__(nccl##name) *name;
    PEN_NCCL_FUNCTIONS(MEMBER)
#undef MEMBER
} pen_nccl;

/* The table lives as long as the process. PEN_UNSUPPORTED: there is no library, or it is too old. */
pen_status pen_nccl_load(const pen_nccl **nccl);

#endif
