#include "topology/topology.h"
