lh_test(test_kda LINK lh_kernels SOURCES reference/kda.c)
