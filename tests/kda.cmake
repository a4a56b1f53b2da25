lh_test(test_kda GPU LINK lh_kernels SOURCES reference/kda.c)
lh_test(test_kda_step GPU LINK lh_kernels SOURCES reference/kda.c)
