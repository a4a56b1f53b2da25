lh_test(test_shard LINK lh_parallel)
lh_test(test_comm RANKS 1 2 3 4 LINK lh_parallel)
lh_test(test_expert RANKS 1 2 3 4 5 8 LINK lh_parallel)
lh_test(test_rank LINK lh_launch)

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
