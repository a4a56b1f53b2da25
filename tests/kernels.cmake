lh_test(test_device GPU LINK lh_kernels)
lh_test(test_vmath)
lh_test(test_kernels_dense GPU SOURCES reference/dense.c LINK lh_kernels)
lh_test(test_check_args LINK lh_kernels)
lh_test(test_kernels_product GPU SOURCES reference/dense.c LINK lh_kernels)
lh_test(test_moe_step GPU SOURCES reference/dense.c LINK lh_kernels)
lh_test(test_sample GPU LINK lh_kernels)
# Our own loops as the library compiles them.
target_compile_options(test_vmath PRIVATE -O3 -ffp-contract=fast -fno-trapping-math)
