/* --version; see version.h. The MPI library is named by the macros of its header: nothing of it is started. */
#include "version.h"

#include "cpu.h"
#include "cuda.h"

#include <mpi.h>

#define STRINGIFY(x) #x
#define NUMBER(x)    STRINGIFY(x)

#if defined(OMPI_MAJOR_VERSION)
#define MPI_LIBRARY                                                                                                    \
    "Open MPI " NUMBER(OMPI_MAJOR_VERSION) "." NUMBER(OMPI_MINOR_VERSION) "." NUMBER(OMPI_RELEASE_VERSION)
#elif defined(MPICH_VERSION)
#define MPI_LIBRARY "MPICH " MPICH_VERSION
#else
#define MPI_LIBRARY "a library that does not say its name"
#endif

#if defined(__clang__)
#define COMPILER "Clang " __clang_version__
#else
#define COMPILER "GCC " __VERSION__
#endif

void pen_version_print(FILE *out) {
    fprintf(out, "penstock %s (%s, %s)\n", PEN_VERSION, PEN_BUILD_TYPE, COMPILER);
    fprintf(out, "  MPI:  %s\n", MPI_LIBRARY);
    fprintf(out, "  CPU:  %s\n", pen_cpu_isa_names());
    fprintf(out, "  CUDA: %s\n", pen_cuda_version() ? pen_cuda_version() : "no");
}
