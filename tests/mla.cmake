lh_test(test_mla GPU SOURCES reference/mla.c LINK lh_kernels)
