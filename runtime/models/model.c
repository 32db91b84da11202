/* (being written) */
#include "model.h"
