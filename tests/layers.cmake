add_test(NAME layers COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/test_layers.sh ${CMAKE_SOURCE_DIR})
lh_test_properties(layers 1 60 unit)
add_test(NAME headers COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/test_headers.sh ${CMAKE_SOURCE_DIR} ${CMAKE_C_COMPILER}
                              -D_POSIX_C_SOURCE=200809L -D_DEFAULT_SOURCE)
lh_test_properties(headers 1 120 unit)
