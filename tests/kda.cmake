lh_test(test_kda GPU LINK lh_kernels SOURCES reference/kda.c)
