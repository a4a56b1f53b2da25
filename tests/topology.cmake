lh_test(test_topology SOURCES keepdl.c LINK lh_topology)
