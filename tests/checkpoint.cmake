lh_test(test_sha256)
lh_test(test_maps)
