lh_test(test_golden RANKS 1 2 3 4 LINK lh_runtime lh::jansson TIMEOUT 120 SOURCES model_util.c)
lh_test(test_same_bits RANKS 1 2 3 4 8 LINK lh_runtime TIMEOUT 180 SOURCES model_util.c)
lh_test(test_engine RANKS 1 3 LINK lh_runtime SOURCES model_util.c)
lh_test(test_synth RANKS 1 3 LINK lh_runtime SOURCES model_util.c)
