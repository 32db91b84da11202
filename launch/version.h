/* What --version prints. */
#ifndef PEN_VERSION_H
#define PEN_VERSION_H

#include <stdio.h>

/* Version, build type and compiler, and the features that this build and this machine have. */
void pen_version_print(FILE *out);

#endif
