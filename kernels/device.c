/* (being written) */
#include "device_class.h"
