#include "kernels/check_args.h"
