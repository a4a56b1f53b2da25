lh_test(test_mla GPU SOURCES reference/mla.c LINK lh_kernels)
lh_test(test_mla_decode GPU SOURCES reference/mla.c LINK lh_kernels)
