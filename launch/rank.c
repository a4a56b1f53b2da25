#include "launch/launch.h"
