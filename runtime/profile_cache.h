/*
 * Profiles on disk: one file per combination of model shape, device, ranks of the machine and build, in
 * $XDG_CACHE_HOME/penstock or ~/.cache/penstock. Nothing here can fail a run: what cannot be read is measured again,
 * what cannot be written is a warning.
 */
#ifndef PEN_PROFILE_CACHE_H
#define PEN_PROFILE_CACHE_H

#include "profile.h"

typedef struct pen_profile_key {
    const pen_model *model;
    const pen_device *device;
    int ranks;   /* that measure on this machine at the same time */
    int context; /* pen_profile_options.context */
} pen_profile_key;

/* `folder` is pen_config.cache: "" the usual place, "-" no cache. NULL where there is no usable profile. */
pen_profile *pen_profile_cache_load(const char *folder, const pen_profile_key *key);
void pen_profile_cache_store(const char *folder, const pen_profile_key *key, const pen_profile *profile);

#endif
