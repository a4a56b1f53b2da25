lh_test(test_opts)
lh_test(test_cli_text SOURCES ${CMAKE_SOURCE_DIR}/runtime/cli/text.c)
if(TARGET longhaul)
    add_test(NAME test_cli COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/test_cli.sh $<TARGET_FILE:longhaul> ${MPIEXEC_EXECUTABLE} ${CMAKE_SOURCE_DIR})
    lh_test_properties(test_cli 3 300 mpi)
    if(LH_SANITIZE)
        target_sources(longhaul PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/keepdl.c) # see there
    endif()
endif()
