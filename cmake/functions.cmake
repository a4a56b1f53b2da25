set(LH_WARNINGS -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef)

# Everything of ours: warnings, the machine it is built for, sanitizers, includes written from the root.
# Designated initializers leave out what is zero. That is no warning in C, and in C++ it should be none.
function(lh_warnings target)
    target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR})
    target_compile_definitions(${target} PRIVATE _POSIX_C_SOURCE=200809L _DEFAULT_SOURCE)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:C>:${LH_WARNINGS}>
                                             "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Wshadow,-Wno-missing-field-initializers>")
    if(LH_WERROR)
        target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:C>:-Werror>
                                                 "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Werror>" $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
    endif()
    if(LH_PORTABLE)
        target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:C>:-march=x86-64-v3>)
    else()
        target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:C>:-march=native>)
    endif()
    if(LH_SANITIZE)
        target_compile_options(${target} PRIVATE -fsanitize=${LH_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=undefined)
        target_link_options(${target} PRIVATE -fsanitize=${LH_SANITIZE})
    endif()
endfunction()

# One folder, one static library lh_<folder>, so that the linker states the same picture as the includes.
function(lh_library folder)
    set(sources)
    foreach(dir ${folder} ${ARGN})
        file(GLOB found CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${dir}/*.c)
        list(APPEND sources ${found})
    endforeach()
    add_library(lh_${folder} STATIC ${sources})
    lh_warnings(lh_${folder})
endfunction()

# How tests start ranks: as many as wanted, on whatever cores there are.
set(LH_MPIEXEC ${MPIEXEC_EXECUTABLE} --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 --mca btl self,vader)

# A test program from tests/<name>.c. RANKS 1,2,4 runs it under mpiexec once for each count (<name>.np4), otherwise it runs once, alone.
# GPU runs it a second time (<name>.cuda) with --backend cuda, in a build that has it.
#   lh_test(test_comm RANKS 1 2 3 4 LINK lh_parallel LABELS mpi TIMEOUT 60)
function(lh_test name)
    cmake_parse_arguments(T "GPU" "TIMEOUT" "RANKS;LINK;LABELS;ARGS;SOURCES" ${ARGN})
    if(NOT T_TIMEOUT)
        set(T_TIMEOUT 60)
    endif()
    if(LH_SANITIZE)
        math(EXPR T_TIMEOUT "${T_TIMEOUT} * 10")
    endif()
    if(LH_SANITIZE AND T_RANKS)
        list(APPEND T_SOURCES ${CMAKE_SOURCE_DIR}/tests/keepdl.c) # see there
    endif()
    add_executable(${name} ${name}.c ${T_SOURCES})
    lh_warnings(${name})
    target_link_libraries(${name} PRIVATE ${T_LINK} lh_base)
    target_compile_definitions(${name} PRIVATE LH_SOURCE_DIR="${CMAKE_SOURCE_DIR}" LH_BINARY_DIR="${CMAKE_BINARY_DIR}")
    if(T_RANKS)
        foreach(n ${T_RANKS})
            add_test(NAME ${name}.np${n} COMMAND ${LH_MPIEXEC} -n ${n} $<TARGET_FILE:${name}> ${T_ARGS})
            lh_test_properties(${name}.np${n} ${n} ${T_TIMEOUT} "mpi;${T_LABELS}")
        endforeach()
    else()
        add_test(NAME ${name} COMMAND ${name} ${T_ARGS})
        lh_test_properties(${name} 1 ${T_TIMEOUT} "unit;${T_LABELS}")
    endif()
    if(T_GPU AND LH_WITH_CUDA)
        add_test(NAME ${name}.cuda COMMAND ${name} --backend cuda ${T_ARGS})
        lh_test_properties(${name}.cuda 1 ${T_TIMEOUT} "gpu;${T_LABELS}")
    endif()
endfunction()

function(lh_test_properties test processors timeout labels)
    set(environment OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1)
    if(LH_SANITIZE)
        list(APPEND environment
             ASAN_OPTIONS=fast_unwind_on_malloc=0:detect_leaks=1
             LSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/lsan.supp:print_suppressions=0:use_tls=0
             UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
             # The leak checker crashes now and then on the thread storage of OpenBLAS's idle threads.
             OPENBLAS_NUM_THREADS=1)
    endif()
    set_tests_properties(${test} PROPERTIES PROCESSORS ${processors} TIMEOUT ${timeout} SKIP_RETURN_CODE 77
                                            LABELS "${labels}" ENVIRONMENT "${environment}")
endfunction()
