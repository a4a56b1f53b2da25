lh_test(test_shard LINK lh_parallel)
lh_test(test_comm RANKS 1 2 3 4 LINK lh_parallel)
lh_test(test_comm_first RANKS 1 3 4 LINK lh_parallel)
lh_test(test_expert RANKS 1 2 3 4 5 8 LINK lh_parallel)
lh_test(test_rank LINK lh_launch)
lh_test(test_cores SOURCES keepdl.c LINK lh_launch)

# A program with its own size of pieces.
function(lh_pieces name source piece)
    add_executable(${name} ${source} ${CMAKE_SOURCE_DIR}/parallel/comm_mpi.c)
    lh_warnings(${name})
    target_compile_definitions(${name} PRIVATE LH_MPI_PIECE=${piece})
    target_link_libraries(${name} PRIVATE lh_parallel lh::mpi)
    if(LH_SANITIZE)
        target_sources(${name} PRIVATE keepdl.c)
    endif()
endfunction()

lh_pieces(test_comm_pieces test_comm.c 1024u)
add_test(NAME test_comm_pieces.np3 COMMAND ${LH_MPIEXEC} -n 3 $<TARGET_FILE:test_comm_pieces>)
lh_test_properties(test_comm_pieces.np3 3 60 mpi)

# Faults of ranks, each in its own run because a communicator is lost after one.
lh_pieces(test_comm_timeout test_comm_timeout.c 100000u)
add_test(NAME test_comm_timeout COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/test_faults.sh $<TARGET_FILE:test_comm_timeout> ${LH_MPIEXEC})
lh_test_properties(test_comm_timeout 3 120 "mpi;fault")

# Over NCCL: on GPUs, and with what stands in for NCCL in tests, which needs its headers only.
if(LH_WITH_NCCL)
    lh_test(test_comm_nccl RANKS 1 2 4 LINK lh_parallel lh_launch LABELS gpu TIMEOUT 120)
endif()
if(TARGET lh_nccl_headers)
    add_executable(test_comm_nccl_fake test_comm_nccl_fake.c fake_nccl.c ${CMAKE_SOURCE_DIR}/parallel/comm_nccl.c keepdl.c)
    lh_warnings(test_comm_nccl_fake)
    target_compile_definitions(test_comm_nccl_fake PRIVATE LH_WITH_NCCL)
    target_link_libraries(test_comm_nccl_fake PRIVATE lh_nccl_headers lh_parallel lh::mpi)
    foreach(n 1 2 3)
        add_test(NAME test_comm_nccl_fake.np${n} COMMAND ${LH_MPIEXEC} -n ${n} $<TARGET_FILE:test_comm_nccl_fake>)
        lh_test_properties(test_comm_nccl_fake.np${n} ${n} 120 "mpi;fault")
    endforeach()
    add_test(NAME test_comm_nccl_abort COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/test_code.sh 75 ${LH_MPIEXEC} -n 2
                                               $<TARGET_FILE:test_comm_nccl_fake> abort)
    lh_test_properties(test_comm_nccl_abort 2 60 "mpi;fault")
endif()
