/* (being written) */
#include "gguf.h"
