/*
 * Launchers; see launcher.h. What Open MPI's mpirun does with a job that has lost a rank was found by trying, on one
 * machine and on two, and in the source of 4.1:
 *
 * - It waits for the end of all ranks, and of those on other nodes it may never hear: an orted tells of its first lost
 *   rank and of none after that. So neither _exit nor MPI_Finalize of all that are left ends the job for certain.
 * - Asked through PMIx to terminate it sends SIGTERM and then SIGKILL to all, and exits with 0.
 * - On SIGTERM it does the same and exits with 1.
 */
#include "launcher.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef PEN_HAS_PMIX
#include <pmix.h>
#endif

bool pen_launcher_present(void) {
    static const char *const signs[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_FD", "MPI_LOCALNRANKS"};
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++) {
        const char *value = getenv(signs[i]);
        if (value && *value) return true;
    }
    return false;
}

bool pen_launcher_recovers(void) {
    const char *value = getenv("OMPI_MCA_orte_enable_recovery");
    return value && (strcmp(value, "1") == 0 || strcmp(value, "true") == 0);
}

/* Whether our parent is mpirun itself; on other nodes it is mpirun's daemon there. */
static bool parent_is_mpirun(void) {
    static const char *const names[] = {"mpirun", "orterun", "mpiexec", "prterun"};
    char path[64], name[32] = "";
    snprintf(path, sizeof path, "/proc/%d/comm", (int)getppid());
    FILE *file = fopen(path, "r");
    if (!file) return false;
    if (!fgets(name, sizeof name, file)) name[0] = '\0';
    fclose(file);
    name[strcspn(name, ".\n")] = '\0'; /* mpirun.openmpi */
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) return true;
    return false;
}

/* Through the PMIx that MPI_Init has connected to the launcher. */
static bool terminate_job(void) {
#ifdef PEN_HAS_PMIX
    pmix_info_t terminate, *results = NULL;
    size_t result_count = 0;
    PMIX_INFO_LOAD(&terminate, PMIX_JOB_CTRL_TERMINATE, NULL, PMIX_BOOL);
    return PMIx_Job_control(NULL, 0, &terminate, 1, &results, &result_count) == PMIX_SUCCESS;
#else
    return false;
#endif
}

bool pen_launcher_end(bool success) {
    if (!success && parent_is_mpirun()) return kill(getppid(), SIGTERM) == 0;
    return terminate_job();
}
