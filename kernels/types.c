/* (being written) */
#include "types.h"
