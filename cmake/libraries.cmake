# The libraries that Longhaul stands on, all in Debian 12. What was found is printed; what is missing is an error with its package.

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)

function(lh_find target module package)
    pkg_check_modules(${target} QUIET IMPORTED_TARGET ${module})
    if(NOT ${target}_FOUND)
        message(FATAL_ERROR "${module} not found: install ${package}")
    endif()
    add_library(lh::${target} ALIAS PkgConfig::${target})
    message(STATUS "${module} ${${target}_VERSION}")
endfunction()

lh_find(hwloc hwloc libhwloc-dev)
lh_find(jansson jansson libjansson-dev)
lh_find(blas openblas libopenblas-dev)

find_package(MPI 3.1 COMPONENTS C)
if(NOT MPI_C_FOUND)
    message(FATAL_ERROR "MPI not found: install libopenmpi-dev and openmpi-bin")
endif()
message(STATUS "MPI ${MPI_C_VERSION} (${MPIEXEC_EXECUTABLE})")
add_library(lh::mpi ALIAS MPI::MPI_C)
