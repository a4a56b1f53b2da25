#include "runtime/model.h"
