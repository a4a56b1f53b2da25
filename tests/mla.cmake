lh_test(test_mla SOURCES reference/mla.c LINK lh_kernels)
