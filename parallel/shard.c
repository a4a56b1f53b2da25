#include "parallel/shard.h"
