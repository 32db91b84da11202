/* (being written) */
#include "stage.h"
