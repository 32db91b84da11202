/* (being written) */
#include "pool.h"
