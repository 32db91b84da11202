/*
 * The launcher that started this process, as far as MPI does not speak of it: whether there is one, whether it lets the
 * others live when a rank is lost, and how it is made to end all of them.
 */
#ifndef PEN_LAUNCHER_H
#define PEN_LAUNCHER_H

#include <stdbool.h>

/* Whether a launcher that speaks to MPI started us. */
bool pen_launcher_present(void);

/* Whether the loss of a rank leaves the others alone (mpirun --enable-recovery). MPI_Abort then ends its caller and
 * nobody else, and exit codes of ranks count for nothing. */
bool pen_launcher_recovers(void);

/* Has the launcher end every process of this job on every node, ours too, whatever they are doing, and then itself:
 * with 0 on success, else with something else if we are on its node. False: it cannot. Returns before it happens. */
bool pen_launcher_end(bool success);

#endif
