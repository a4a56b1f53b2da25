#ifndef LH_TOPOLOGY_TOPOLOGY_H
#define LH_TOPOLOGY_TOPOLOGY_H

#include "base/status.h"

#endif
